"""What the link asks of a connection, and the one that is a websocket: who waits for which answer,
and how many slots the server was told of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, final
from uuid import UUID

import trio
from trio_websocket import WebSocketConnection

from understudy.core.struct import Struct
from understudy.daemon.outcomes import LinkLost, NotSent, unanswered
from understudy.wire.daemon import CLAIM_LEASE, FENCED_REPORTS, ClaimedTask, Heartbeats, Ping, Pong
from understudy.wire.frames import (
    Answer,
    Answers,
    BeatHeard,
    Bye,
    Call,
    CallBook,
    Calls,
    Cancel,
    Credit,
    CreditGranted,
    Pinged,
    RuntimesGone,
    TaskAvailable,
    TasksPushed,
    batches,
    decode_from_server,
    encode,
)

OUTBOUND_MAX: Final = 256


def headers(token: str) -> dict[str, str]:
    """What every connection says of its daemon (R3.6, R3.13)."""
    return {
        "Authorization": f"Bearer {token}",
        "X-Client-Capabilities": f"{CLAIM_LEASE}, {FENCED_REPORTS}",
    }


class Host(Protocol):
    """The daemon, as its link sees it."""

    async def connected(self) -> list[UUID]:
        """Register over the fresh connection; the runtimes that take tasks over it."""
        ...

    def take(self, tasks: list[ClaimedTask]) -> None: ...

    def stop(self, task_ids: Sequence[UUID]) -> None:
        """Somebody wants these runs stopped (R7.1); those it does not have are none of its own."""
        ...

    def trusted(self, asked_at: float, trust_s: Mapping[UUID, float]) -> None:
        """By runtime, from when it was asked by `trust.now`: its work stays its own (R4.11)."""
        ...

    def free_slots(self) -> int: ...

    def link_changed(self) -> None:
        """It is up, or it is gone."""
        ...


class Session(Protocol):
    """One connection, of either kind."""

    is_registered: bool

    async def carry(self, host: Host, forgotten: Callable[[], object]) -> None:
        """Until the connection breaks. `forgotten`: the server knows a runtime no longer (R4.7)."""
        ...

    async def call(self, name: str, body: Struct, subject: UUID | None) -> object:
        """The answer, or the `Refusal`. Raises `NotSent` or `Unknown`."""
        ...

    def pong(self, ping: Ping) -> None: ...

    def announce(self, runtime_ids: list[UUID], free: int) -> None:
        """These take tasks; to say it again attaches a runtime that the server had lost."""
        ...

    def offer(self, free: int) -> None:
        """So many slots are free now."""
        ...

    def end(self) -> None:
        """Whoever waits for an answer learns that none will come."""
        ...


@dataclass
class _Waiter:
    is_sent: bool = False
    settled: trio.Event = field(default_factory=trio.Event)
    answers: list[object] = field(default_factory=list)


@final
class FramedSession:
    """Over a websocket."""

    def __init__(self, socket: WebSocketConnection) -> None:
        self._socket = socket
        self.is_registered = False
        self._book = CallBook()
        self._outbound, self._waiting = trio.open_memory_channel[Call | None](OUTBOUND_MAX)
        self._waiters: dict[int, _Waiter] = {}
        self._credit = Credit(total=0)
        self._is_told = True
        self._taken = 0
        """Tasks pushed over this connection, whatever became of them."""

    def announce(self, runtime_ids: list[UUID], free: int) -> None:
        self._tell(Credit(total=self._total(free), runtime_ids=runtime_ids))

    def offer(self, free: int) -> None:
        """The total follows from what is free now, so no slot is ever counted twice or lost."""
        if (total := self._total(free)) > self._credit.total:
            self._tell(Credit(total=total, runtime_ids=self._credit.runtime_ids))

    def _total(self, free: int) -> int:
        return max(self._credit.total, self._taken + free)

    def _tell(self, credit: Credit) -> None:
        self._credit, self._is_told = credit, False
        try:
            self._outbound.send_nowait(None)
        except (trio.WouldBlock, trio.ClosedResourceError):
            pass  # Full: the credit goes with what is waiting. Closed: so is the connection.

    async def call(self, name: str, body: Struct, subject: UUID | None) -> object:
        call = self._book.call(name, body, subject)
        waiter = self._waiters[call.id] = _Waiter()
        try:
            await self._outbound.send(call)
            await waiter.settled.wait()
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            raise NotSent("the connection broke") from None
        finally:
            self._waiters.pop(call.id, None)
        if not waiter.answers:
            raise unanswered("the connection broke before the answer", is_sent=waiter.is_sent)
        return waiter.answers[0]

    def pong(self, ping: Ping) -> None:
        """At once (R4.12), and without an answer; what finds no room is asked for again."""
        try:
            self._outbound.send_nowait(
                self._book.call("pong", Pong(ping_id=ping.id), ping.runtime_id)
            )
        except (trio.WouldBlock, trio.ClosedResourceError):
            pass

    async def carry(self, host: Host, forgotten: Callable[[], object]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.send_frames)
            await self._receive_frames(host, forgotten)

    async def _receive_frames(self, host: Host, forgotten: Callable[[], object]) -> None:
        while True:
            match decode_from_server(await self._socket.get_message()):
                case Answers(payload=answers):
                    self._settle(answers)
                case TasksPushed(payload=tasks):
                    self._take(tasks, host)
                case Cancel(payload=runs):
                    host.stop([each.task_id for each in runs])
                case RuntimesGone():
                    forgotten()
                case Pinged(payload=ping):
                    self.pong(ping)
                case BeatHeard() | TaskAvailable():
                    pass  # For daemons that grant no credit.
                case Bye():
                    raise LinkLost("the server stops")

    def _settle(self, answers: list[Answer]) -> None:
        for answer in answers:
            body = self._book.answered(answer)
            if (waiter := self._waiters.get(answer.id)) is not None:
                waiter.answers.append(body)
                waiter.settled.set()

    def _take(self, tasks: list[ClaimedTask], host: Host) -> None:
        self._taken += len(tasks)
        host.take(tasks)
        if self.is_registered:
            self.offer(host.free_slots())

    async def send_frames(self) -> None:
        """What has queued up while the last frame was sent travels together."""
        async for first in self._waiting:
            calls = [each for each in (first, *_queued(self._waiting)) if each is not None]
            for batch in batches(calls):
                self._note_sent(batch.payload)
                await self._socket.send_message(encode(batch))
            if not self._is_told:
                self._is_told = True
                await self._socket.send_message(encode(CreditGranted(payload=self._credit)))

    def _note_sent(self, calls: list[Call]) -> None:
        """Before the first byte: where a frame breaks off, nobody here knows what arrived."""
        for call in calls:
            if (waiter := self._waiters.get(call.id)) is not None:
                waiter.is_sent = True

    def end(self) -> None:
        self._outbound.close()
        for waiter in self._waiters.values():
            waiter.settled.set()


def _queued(waiting: trio.MemoryReceiveChannel[Call | None]) -> Iterator[Call | None]:
    try:
        while True:
            yield waiting.receive_nowait()
    except (trio.WouldBlock, trio.EndOfChannel):
        return


async def wait_frames_pass(socket: WebSocketConnection) -> None:
    """A word to the server and one back: that a websocket opens does not prove that it carries.

    Raises `ConnectionClosed` or `RemoteProtocolError`.
    """
    call = CallBook().call("heartbeats", Heartbeats(runtime_ids=[]))
    await socket.send_message(encode(Calls(payload=[call])))
    decode_from_server(await socket.get_message())
