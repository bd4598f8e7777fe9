"""A daemon's connection in a simulated world: calls that get lost, are late or come twice."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol, final
from uuid import UUID

import msgspec
import trio

from understudy.actors.link import Link
from understudy.actors.mailbox import ActorGone
from understudy.core.struct import Struct
from understudy.http.auth import Machine
from understudy.http.calls import Desk
from understudy.store.errors import DatabaseUnavailable
from understudy.testing.auditor import Auditor
from understudy.testing.chance import Chance
from understudy.wire.daemon import CALLS
from understudy.wire.errors import Refusal, Refused

LATENCIES_S: Final = (0.0, 0.0, 0.01, 0.01, 0.05, 0.25)
"""Few values, so that things happen at the same time."""
LATE_S: Final = (5.0, 20.0, 45.0, 60.0, 70.0)
PATIENCE_S: Final = 30.0
SILENCE_S: Final = 45.0
PASSING: Final = Refusal(error="try again", code="unavailable", status=503)


class LineLost(Exception):
    """The call may have been done, or not."""


class InjectedCrash(Exception):
    """A defect that nobody foresaw, in the middle of anything."""


class Cable(Protocol):
    """What a line runs over: a machine's network, each way of which may be cut."""

    @property
    def name(self) -> str: ...
    @property
    def is_cut_up(self) -> bool: ...
    @property
    def is_cut_down(self) -> bool: ...
    @property
    def chance(self) -> Chance: ...
    @property
    def auditor(self) -> Auditor: ...


class Outlet(Protocol):
    """The node's way to the database: who has lost it hears in vain."""

    @property
    def is_cut(self) -> bool: ...


@final
class Line:
    """`node` is where requests are carried out: they outlive the daemon that sent them."""

    def __init__(
        self, cable: Cable, desk: Desk, machine: Machine, *, node: trio.Nursery, outlet: Outlet
    ) -> None:
        self.link = Link()
        self.closed = trio.Event()
        self._cable = cable
        self._desk = desk
        self._machine = machine
        self._node = node
        self._outlet = outlet
        self._chance = cable.chance

    @property
    def name(self) -> str:
        return self._cable.name

    async def call(self, name: str, body: Struct, subject: UUID | None = None) -> Any:  # noqa: ANN401
        """The answer or the `Refusal`. Raises `LineLost`."""
        site = f"{self.name}/{name}"
        if self.closed.is_set():
            raise LineLost(site)
        send, answers = trio.open_memory_channel[object](2)
        raw = msgspec.json.encode(body)
        if not self._chance.strikes(f"{site}/lost_request", 0.03) and not self._cable.is_cut_up:
            delays_s = LATE_S if self._chance.strikes(f"{site}/late", 0.02) else LATENCIES_S
            self._start(self._carry_out, send, (name, subject, raw), delays_s)
            if self._chance.strikes(f"{site}/twice", 0.05):
                self._start(self._carry_out, send, (name, subject, raw), LATE_S)
        with trio.move_on_after(PATIENCE_S):
            answer = await answers.receive()
            if not self.closed.is_set() and not self._chance.strikes(f"{site}/lost_answer", 0.03):
                return _decoded(name, answer)
        self.close()
        raise LineLost(site)

    async def _carry_out(
        self,
        send: trio.MemorySendChannel[object],
        call: tuple[str, UUID | None, bytes],
        delays_s: Sequence[float],
    ) -> None:
        await trio.sleep(self._chance.pick(f"{self.name}/up", delays_s))
        name, subject, raw = call
        if name in {"register", "heartbeats"} and self.closed.is_set():
            return  # The server ends what a closed connection has asked: these speak of the past.
        came_at = trio.current_time()
        try:
            done = await self._desk.answer(self._machine, name, subject, raw)
            answer: object = msgspec.json.encode(done)
            is_judge = not self.closed.is_set() and not self._outlet.is_cut
            if name in {"register", "heartbeats"} and is_judge:
                self._cable.auditor.heard(self.name, came_at)
        except Refused as refused:
            answer = refused.refusal
        except (DatabaseUnavailable, ActorGone, InjectedCrash):
            answer = PASSING
        await trio.sleep(self._chance.pick(f"{self.name}/down", LATENCIES_S))
        if not self._cable.is_cut_down:
            send.send_nowait(answer)

    def close(self) -> None:
        """What comes down is lost from now on; the node may take a while to notice."""
        if not self.closed.is_set():
            self.closed.set()
            if self._chance.strikes(f"{self.name}/half_open", 0.3):
                self._start(self._close_late)
            else:
                self.link.close()

    def _start(self, task: Callable[..., Awaitable[None]], *arguments: object) -> None:
        try:
            self._node.start_soon(task, *arguments)
        except RuntimeError:  # The node has just ended.
            self.link.close()

    async def _close_late(self) -> None:
        await trio.sleep(SILENCE_S)
        self.link.close()


def _decoded(name: str, answer: object) -> object:
    if isinstance(answer, bytes):
        return msgspec.json.decode(answer, type=CALLS[name].answer)
    return answer
