"""One connection, from accept to close: its deadlines, its one reader, and what it may cost others.

Hypercorn's protocol objects are good; its trio server around them must not be exposed. Five
defects, each of which a peer without a login can use, and what is done about them:

D1  A byte that follows a websocket upgrade in the same packet crashes the connection, and with it
    the whole process. Here `BoundedWebsocket` refuses such bytes, and `run` contains every crash.
D2  Sending to a websocket that has gone returns without a checkpoint, so a handler that only sends
    freezes the event loop. Here a send that sends nothing is a checkpoint.
D3  A send is shielded without a limit: a peer that does not read blocks shutdown. Here each piece
    has `send_s`, and shutdown shortens that.
D4  The idle timer is armed by a task that Quart-trio has cancelled by then, so idle connections
    stay for ever. Here the timer is the deadline of the reader's cancel scope: setting it cannot
    be interrupted.
D5  A crash among the app's background tasks leaves a server that answers but is dead inside. See
    `serve.py`: it ends `serve`.

A connection is one task, the reader, and the app's own tasks in a nursery beneath it. Whoever
wants the connection to end cancels the reader; the rest is the end of `_converse`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from math import inf
from typing import Protocol, TypeAlias, final, runtime_checkable

import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import (
    AppWrapper,
    ASGIReceiveEvent,
    ASGISendEvent,
    ConnectionState,
    Scope,
)

from understudy.http.protocol import Http1

logger = logging.getLogger(__name__)

RECEIVE_MAX = 64 * 1024
PIECE_MAX = 256 * 1024
FAREWELL_S = 2.0  # for an app that was told its peer is gone
LINGER_S = 1.0  # for a peer that is still sending what nobody will read

Address: TypeAlias = tuple[str, int]


@runtime_checkable
class Addressed(Protocol):
    """A stream that is no socket and still knows its two ends."""

    @property
    def local(self) -> Address: ...
    @property
    def peer(self) -> Address: ...


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    keep_alive_s: float = 75
    """How long a connection may be idle between requests."""
    head_s: float = 20
    """From the first byte of a request, or the connection's start, to the end of its headers."""
    send_s: float = 20
    """For the peer to take a quarter of a megabyte."""
    graceful_s: float = 10
    """For running requests to finish once the server stops."""
    body_max_bytes: int = 64 * 1024 * 1024
    """Where the server steps in. The app's own limit is lower and has the better answer."""
    websocket_message_max_bytes: int = 16 * 1024 * 1024


@dataclass(frozen=True)
class Terms:
    """What all connections of a server share."""

    app: AppWrapper
    limits: ServeConfig
    protocol: Config
    context: WorkerContext


class Phase(Enum):
    QUIET = auto()  # between two requests
    HEAD = auto()  # some of a request's head has come, or nothing since the connection opened
    BUSY = auto()  # the app is at work


@final
class Connection:
    def __init__(self, stream: trio.abc.HalfCloseableStream, terms: Terms) -> None:
        self._stream = stream
        self._terms = terms
        self._http: Http1
        self._life = trio.CancelScope()
        self._reading = trio.CancelScope()
        self._sending = trio.CancelScope()
        self._send_lock = trio.Lock()
        self._send_before = inf
        self._hung_up = False
        self._lingers = False
        self._patience_s = {
            Phase.QUIET: terms.limits.keep_alive_s,
            Phase.HEAD: terms.limits.head_s,
            Phase.BUSY: inf,
        }
        self._enter(Phase.HEAD)

    async def run(self) -> None:
        """Serve until one side hangs up. Whatever a peer sends ends its own connection only."""
        try:
            with self._life:
                await self._converse()
            if self._lingers:
                await self._hear_out()
        except* OSError:
            pass  # The peer left before it could be asked for its address.
        except* Exception:
            logger.exception("a connection crashed")
        finally:
            await trio.aclose_forcefully(self._stream)

    def stop(self) -> None:
        """Hang up if no request is running; let one that is finish within `graceful_s`."""
        if self._phase is not Phase.BUSY:
            self._hang_up()
            return
        cut_at = trio.current_time() + self._terms.limits.graceful_s
        self._life.deadline = min(self._life.deadline, cut_at)
        self._send_before = cut_at + FAREWELL_S
        self._sending.deadline = min(self._sending.deadline, self._send_before)

    async def _converse(self) -> None:
        local, peer = _ends(self._stream)
        terms = self._terms
        async with trio.open_nursery() as apps:
            self._http = Http1(
                terms.app,
                terms.protocol,
                terms.context,
                Apps(apps),
                ConnectionState({}),
                False,  # noqa: FBT003 -- TLS ends at the proxy; Hypercorn has no keyword
                peer,
                local,
                self._on_event,
            )
            await self._read()
            farewell_ends = trio.current_time() + FAREWELL_S
            self._life.deadline = min(self._life.deadline, farewell_ends)
            await self._http.handle(Closed())

    async def _read(self) -> None:
        with self._reading, suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await self._stream.receive_some(RECEIVE_MAX):
                if self._reading.cancel_called:  # In the same instant: begin nothing new.
                    self._http.hear_out(bytes(data))
                    break
                if self._phase is Phase.QUIET:
                    self._enter(Phase.HEAD)
                await self._http.handle(RawData(bytes(data)))
        self._hung_up = True

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        self._reading.deadline = trio.current_time() + self._patience_s[phase]

    def _hang_up(self) -> None:
        self._hung_up = True
        self._reading.cancel()

    async def _on_event(self, event: Event) -> None:
        if isinstance(event, RawData):
            await self._send(event.data)
        elif isinstance(event, Updated):
            self._enter(Phase.QUIET if event.idle else Phase.BUSY)
        elif isinstance(event, Closed):
            self._lingers = True
            self._hang_up()

    async def _send(self, data: bytes) -> None:
        """Send whole or hang up. A cancelled app must not leave half a frame: hence the shield."""
        with trio.CancelScope(shield=True):
            await self._acquire_send_lock()
            try:
                await self._send_pieces(memoryview(data))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._hang_up()
            finally:
                self._send_lock.release()
        if self._hung_up:
            await trio.lowlevel.checkpoint()

    async def _acquire_send_lock(self) -> None:
        try:
            self._send_lock.acquire_nowait()  # The common case, at no trip through the scheduler.
        except trio.WouldBlock:
            await self._send_lock.acquire()

    async def _send_pieces(self, data: memoryview) -> None:
        with trio.CancelScope() as self._sending:
            for start in range(0, len(data), PIECE_MAX):
                if self._hung_up:
                    return
                give_up_at = trio.current_time() + self._terms.limits.send_s
                self._sending.deadline = min(give_up_at, self._send_before)
                await self._stream.send_all(data[start : start + PIECE_MAX])
        if self._sending.cancelled_caught:
            self._hang_up()

    async def _hear_out(self) -> None:
        """Let a peer in mid-sentence finish: closing on it would reset it and eat our answer."""
        with (
            trio.CancelScope(shield=True, deadline=trio.current_time() + LINGER_S),
            suppress(trio.BrokenResourceError, trio.ClosedResourceError),
        ):
            await self._stream.send_eof()
            while self._http.is_peer_sending:
                data = await self._stream.receive_some(RECEIVE_MAX)
                if not data:
                    break
                self._http.hear_out(bytes(data))


def _ends(stream: trio.abc.HalfCloseableStream) -> tuple[Address | None, Address | None]:
    if isinstance(stream, trio.SocketStream):
        local, peer = stream.socket.getsockname(), stream.socket.getpeername()
        return (local[0], local[1]), (peer[0], peer[1])
    if isinstance(stream, Addressed):
        return stream.local, stream.peer
    return None, None


@final
class Apps(TaskGroup):
    """Runs the app's half of each request in the connection's nursery."""

    def __init__(self, nursery: trio.Nursery) -> None:
        super().__init__()
        self._nursery = nursery

    async def spawn_app(
        self,
        app: AppWrapper,
        config: Config,
        scope: Scope,
        send: Callable[[ASGISendEvent | None], Awaitable[None]],
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        inbox = Inbox(config.max_app_queue_size)
        assert self._nursery is not None
        self._nursery.start_soon(_run_app, app, scope, inbox, send)
        return inbox.put


async def _run_app(
    app: AppWrapper,
    scope: Scope,
    inbox: Inbox,
    send: Callable[[ASGISendEvent | None], Awaitable[None]],
) -> None:
    try:
        with inbox:
            await app(scope, inbox.receive, send, trio.to_thread.run_sync, trio.from_thread.run)
    except Exception:
        logger.exception("the app crashed on %s", scope.get("path"))
    finally:
        await send(None)


@final
class Inbox:
    """Events on their way to the app. Telling it that the peer has gone never waits."""

    def __init__(self, events_max: int) -> None:
        self._send, self._receive = trio.open_memory_channel[ASGIReceiveEvent](events_max)
        self._farewell: ASGIReceiveEvent = {"type": "http.disconnect"}

    async def put(self, event: ASGIReceiveEvent) -> None:
        if event["type"] in {"http.disconnect", "websocket.disconnect"}:
            self._farewell = event
            self._send.close()
            return
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._send.send(event)  # Nobody may be left to read: the app has answered.

    async def receive(self) -> ASGIReceiveEvent:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            await trio.lowlevel.checkpoint()
            return self._farewell

    def __enter__(self) -> Inbox:
        return self

    def __exit__(self, *_: object) -> None:
        self._receive.close()
