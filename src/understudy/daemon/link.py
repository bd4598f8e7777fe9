"""The daemon's connection to the server: one websocket, opened again whenever it breaks (R11.2).

A call ends in one of three ways, and a caller must know which: answered, refused, or unknown
because the connection broke after it was sent. `deliver` turns the last into the first two by
asking again: every call it is used for may be sent twice.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from itertools import count
from random import Random
from typing import Any, Final, Protocol, final
from uuid import UUID

import trio
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    HandshakeError,
    WebSocketConnection,
    open_websocket_url,
)

from understudy.config import DaemonConfig
from understudy.core.struct import Struct
from understudy.daemon import trust
from understudy.daemon.session import LinkLost, Session
from understudy.wire.daemon import (
    CLAIM_LEASE,
    FENCED_REPORTS,
    ClaimedTask,
    Heartbeats,
    HeartbeatsHeard,
)
from understudy.wire.errors import Refusal, RemoteProtocolError
from understudy.wire.frames import (
    Answers,
    BeatHeard,
    Bye,
    Cancel,
    Pinged,
    RuntimesGone,
    TaskAvailable,
    TasksPushed,
    decode_from_server,
)

logger = logging.getLogger(__name__)

CONNECT_S: Final = 15.0
DISCONNECT_S: Final = 2.0
"""For the server's half of the goodbye; on a half-open connection it never comes."""
ANSWER_S: Final = 30.0
"""For a registration or a heartbeat: what leaves it unanswered for so long is half-open."""
DELIVER_S: Final = 120.0
"""For any other call: it is asked again, on the same connection."""
RECONNECT_S_MIN: Final = 1.0
RECONNECT_S_MAX: Final = 30.0
RETRY_S: Final = (4.0, 8.0, 16.0, 32.0, 64.0)
"""After a refusal that may pass (R6.3); the last one repeats."""
PASSING: Final = frozenset({401, 403, 408, 429})
"""Beside 5xx. A key that is refused ends the daemon, by its link; no run fails for it."""
MESSAGE_MAX: Final = 32 * 1024 * 1024


class LinkRefused(Exception):
    """The server has said no, for good."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.error)
        self.refusal = refusal


class Shutout(Exception):
    """The server does not accept this daemon's key; a person has to act."""


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


BROKEN: Final = (
    OSError, trio.BrokenResourceError, HandshakeError, ConnectionClosed,
    RemoteProtocolError, LinkLost, LinkRefused,
)  # fmt: skip
Dial = Callable[[], AbstractAsyncContextManager[WebSocketConnection]]


def dial(config: DaemonConfig) -> Dial:
    """How to reach the server of `config`."""
    url = config.server.rstrip("/").replace("http", "ws", 1) + "/api/daemon/ws"
    headers = [
        ("Authorization", f"Bearer {config.token}"),
        ("X-Client-Capabilities", f"{CLAIM_LEASE}, {FENCED_REPORTS}"),
    ]
    return lambda: open_websocket_url(
        url, extra_headers=[(n.encode(), v.encode()) for n, v in headers],
        max_message_size=MESSAGE_MAX, connect_timeout=CONNECT_S, disconnect_timeout=DISCONNECT_S,
    )  # fmt: skip


def pause_s(failures: int, jitter: float) -> float:
    """Before the next connection: 1 s to 30 s, spread, so that a fleet does not come at once."""
    longest_s = min(RECONNECT_S_MAX, RECONNECT_S_MIN * 2.0 ** max(1, min(failures, 10)))
    return RECONNECT_S_MIN + jitter * (longest_s - RECONNECT_S_MIN)


@final
class Link:
    def __init__(self, dial: Dial, *, heartbeat_s: float, dice: Random) -> None:
        self._dial = dial
        self._heartbeat_s = heartbeat_s
        self._dice = dice
        self._session: Session | None = None
        self._changed = trio.Event()
        self._stale = trio.Event()
        self._unwanted = trio.Event()
        self._linked_at = math.inf
        self.runtime_ids: list[UUID] = []
        self.trouble: str | None = None
        """Why there is no link."""

    @property
    def is_up(self) -> bool:
        return self._session is not None and self._session.is_registered

    async def run(
        self, host: Host, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep a connection for ever. Raises `Shutout`."""
        task_status.started()
        failures = 0
        while True:
            self._linked_at = math.inf
            try:
                await self._connect_once(host)
            except BROKEN as error:
                _raise_shutout(error)
                self.trouble = _in_words(error)
                logger.warning("no link: %s", self.trouble)
                host.link_changed()
            lasted_s = trio.current_time() - self._linked_at
            failures = 0 if lasted_s > RECONNECT_S_MAX else failures + 1
            await trio.sleep(pause_s(failures, self._dice.random()))

    async def _connect_once(self, host: Host) -> None:
        try:
            async with self._dial() as socket:
                await self._converse(Session(socket), host)
        except* BROKEN as group:
            raise _first(group) from None

    async def _converse(self, session: Session, host: Host) -> None:
        self._unwanted = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._wait_unwanted)
            nursery.start_soon(session.send_frames)
            nursery.start_soon(self._receive, session, host)
            self._set_session(session)
            try:
                await self._register(session, host)
                self._linked_at = trio.current_time()
                nursery.start_soon(self._register_again, session, host)
                await self._heartbeat_forever(session, host)
            finally:
                session.end()
                self._set_session(None)
                host.link_changed()

    async def _register(self, session: Session, host: Host) -> None:
        self._stale = trio.Event()
        with _patiently("a registration"):
            self.runtime_ids = await host.connected()
        session.is_registered = True
        self.trouble = None
        self._tell_changed()
        session.announce(self.runtime_ids, host.free_slots())
        host.link_changed()
        logger.info("linked; %s runtimes take tasks", len(self.runtime_ids))

    async def _register_again(self, session: Session, host: Host) -> None:
        """Once for many reasons, and ever more slowly while they go on (R4.7)."""
        times, registered_at = 0, -math.inf
        while True:
            await self._stale.wait()
            is_calm = trio.current_time() - registered_at > RECONNECT_S_MAX
            times = 0 if is_calm else times + 1
            await trio.sleep(pause_s(times, self._dice.random()))
            await self._register(session, host)
            registered_at = trio.current_time()

    def register_again(self) -> None:
        """What this machine offers has changed, or the server forgot it (R4.7)."""
        self._stale.set()

    def connect_again(self) -> None:
        """Credit is never taken back (it only grows): but a new connection begins without any."""
        self._unwanted.set()

    async def _wait_unwanted(self) -> None:
        await self._unwanted.wait()
        raise LinkLost("a new connection is wanted")

    async def _heartbeat_forever(self, session: Session, host: Host) -> None:
        """Liveness has its own task and deadline: no report or checkout delays it (R4.8)."""
        while True:
            await trio.sleep(self._heartbeat_s)
            asked_at = trust.now()
            with _patiently("a heartbeat"):
                heard = await self.call("heartbeats", Heartbeats(runtime_ids=self.runtime_ids))
            assert isinstance(heard, HeartbeatsHeard)
            host.trusted(asked_at, heard.trust_s)
            host.stop([each.task_id for each in heard.cancelled])
            for ping in heard.pending_pings:
                session.pong(ping)
            if heard.gone:
                logger.warning("the server does not know %s of our runtimes", len(heard.gone))
                self.register_again()

    async def _receive(self, session: Session, host: Host) -> None:
        while True:
            frame = decode_from_server(await session.socket.get_message())
            match frame:
                case Answers(payload=answers):
                    for answer in answers:
                        session.settle(answer)
                case TasksPushed(payload=tasks):
                    session.taken += len(tasks)
                    host.take(tasks)
                    self.offer(host.free_slots())
                case Cancel(payload=runs):
                    host.stop([each.task_id for each in runs])
                case RuntimesGone(payload=gone):
                    logger.warning("the server knows %s of our runtimes no longer", len(gone))
                    self.register_again()
                case Pinged(payload=ping):
                    session.pong(ping)
                case BeatHeard() | TaskAvailable():
                    pass  # For daemons that grant no credit.
                case Bye():
                    raise LinkLost("the server stops")

    def offer(self, free: int) -> None:
        """Tell the server how many slots are free, should it count on fewer."""
        if self._session is not None and self._session.is_registered:
            self._session.offer(free)

    async def call(self, name: str, body: Struct, subject: UUID | None = None) -> Any:  # noqa: ANN401  # The answer of that call.
        """One try over the connection of the moment. Raises `LinkLost` or `LinkRefused`."""
        if self._session is None:
            raise LinkLost("not connected")
        answer = await self._session.call(name, body, subject)
        if isinstance(answer, Refusal):
            raise LinkRefused(answer)
        return answer

    async def deliver(self, name: str, body: Struct, subject: UUID) -> Any:  # noqa: ANN401  # The answer of that call.
        """Ask until there is a definite answer, however long the server is away (R6.3, R6.4).

        Raises `LinkRefused` for what asking again will not change.
        """
        for tries in count():
            await self._wait_up()
            try:
                with trio.move_on_after(DELIVER_S):
                    return await self.call(name, body, subject)
                logger.warning("%s: not answered within %s s; asking again", name, DELIVER_S)
            except LinkLost:
                pass
            except LinkRefused as refused:
                if not _will_pass(refused.refusal.status):
                    raise
                logger.warning("%s: %s; asking again", name, refused)
                with trio.move_on_after(RETRY_S[min(tries, len(RETRY_S) - 1)]):
                    await self._wait_reconnected()
        raise AssertionError("count() is endless")

    async def _wait_up(self) -> None:
        while not self.is_up:
            await self._changed.wait()

    async def _wait_reconnected(self) -> None:
        before = self._session
        while not self.is_up or self._session is before:
            await self._changed.wait()

    def _set_session(self, session: Session | None) -> None:
        self._session = session
        self._tell_changed()

    def _tell_changed(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


@contextmanager
def _patiently(what: str) -> Iterator[None]:
    with trio.move_on_after(ANSWER_S) as patience:
        yield
    if patience.cancelled_caught:
        raise LinkLost(f"no answer to {what}")


def _will_pass(status: int) -> bool:
    return status in PASSING or status >= 500  # noqa: PLR2004


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Exception)
    return error


def _raise_shutout(error: Exception) -> None:
    status = getattr(error, "status_code", None)
    if isinstance(error, ConnectionRejected) and status in {401, 403}:
        raise Shutout(
            "the server does not accept this daemon's key: run `understudy join` again"
        ) from None
    if isinstance(error, LinkRefused) and error.refusal.status in {401, 403}:
        raise Shutout(f"{error.refusal.error}: run `understudy join` again") from None


def _in_words(error: Exception) -> str:
    match error:
        case ConnectionRejected(status_code=status):
            return f"the server answered {status}"
        case ConnectionClosed():
            return f"closed: {error.reason}"
        case _:
            return str(error) or type(error).__name__
