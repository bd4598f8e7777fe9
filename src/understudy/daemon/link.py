"""The daemon's connection to the server, opened again whenever it breaks (R11.2).

One websocket, or HTTP where none gets through. What is not answered was refused, was not sent, or
is unknown (`outcomes.py`). `deliver` asks until there is an answer or a refusal: every call it is
used for may be sent twice.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from itertools import count
from random import Random
from typing import Any, Final, final
from uuid import UUID

import msgspec
import trio
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    HandshakeError,
    WebSocketConnection,
)

from understudy.config import DaemonConfig, Transport
from understudy.core.struct import Struct
from understudy.daemon import trust
from understudy.daemon.outcomes import LinkLost, LinkRefused, NotSent, Unknown
from understudy.daemon.polling import Poll
from understudy.daemon.proxies import ProxyTrouble, proxy_for
from understudy.daemon.session import FramedSession, Host, Session, headers, wait_frames_pass
from understudy.daemon.upgrade import UpgradeFailed, open_socket
from understudy.daemon.ways import WEBSOCKET_AGAIN_S, Ways
from understudy.wire.daemon import Heartbeats, HeartbeatsHeard
from understudy.wire.errors import Refusal, RemoteProtocolError

logger = logging.getLogger(__name__)

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


class Shutout(Exception):
    """The server does not accept this daemon's key; a person has to act."""


BROKEN: Final = (
    OSError, trio.BrokenResourceError, HandshakeError, ConnectionClosed, UpgradeFailed,
    ProxyTrouble, RemoteProtocolError, LinkLost, LinkRefused,
)  # fmt: skip
Dial = Callable[[], AbstractAsyncContextManager[WebSocketConnection]]


def dial(config: DaemonConfig) -> Dial:
    """How to reach the server of `config`."""
    url = config.server.rstrip("/") + "/api/daemon/ws"

    @asynccontextmanager
    async def open_one() -> AsyncIterator[WebSocketConnection]:
        proxy = proxy_for(url, os.environ)
        async with open_socket(url, proxy, headers(config.token)) as socket:
            yield socket

    return open_one


def pause_s(failures: int, jitter: float) -> float:
    """Before the next connection: 1 s to 30 s, spread, so that a fleet does not come at once."""
    longest_s = min(RECONNECT_S_MAX, RECONNECT_S_MIN * 2.0 ** max(1, min(failures, 10)))
    return RECONNECT_S_MIN + jitter * (longest_s - RECONNECT_S_MIN)


@final
class Link:
    """`poll`: how to go on over HTTP where no websocket gets through."""

    def __init__(
        self,
        dial: Dial,
        *,
        heartbeat_s: float,
        dice: Random,
        poll: Poll | None = None,
        transport: Transport = "auto",
        incarnation: str | None = None,
    ) -> None:
        self._dial = dial
        self._poll = poll
        self._ways = Ways(transport if poll else "websocket")
        self._heartbeat_s = heartbeat_s
        self._incarnation = incarnation
        self._dice = dice
        self._session: Session | None = None
        self._changed = trio.Event()
        self._stale = trio.Event()
        self._unwanted = trio.Event()
        self._linked_at = math.inf
        self.runtime_ids: list[UUID] = []
        self.trouble: str | None = None
        """Why there is no link."""
        self._no_websocket: str | None = None

    @property
    def is_up(self) -> bool:
        return self._session is not None and self._session.is_registered

    @property
    def is_over_http(self) -> bool:
        return self.is_up and self._ways.is_over_http

    @property
    def no_websocket(self) -> str | None:
        """Why it is over HTTP, unless that was dictated."""
        return self._no_websocket if self.is_over_http else None

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
                self._note_trouble(error, host)
            else:
                logger.info("a websocket gets through again")
                self._ways.websocket_works()
                continue
            lasted_s = trio.current_time() - self._linked_at
            failures = 0 if lasted_s > RECONNECT_S_MAX else failures + 1
            await trio.sleep(pause_s(failures, self._dice.random()))

    def _note_trouble(self, error: Exception, host: Host) -> None:
        was_over_http = self._ways.is_over_http
        self._ways.broke(error, was_linked=self._linked_at < math.inf)
        self.trouble = _in_words(error)
        logger.warning("no link: %s", self.trouble)
        if self._ways.is_over_http and not was_over_http:
            self._no_websocket = self.trouble
            logger.warning("no websocket gets through; the next try is over HTTP")
        host.link_changed()

    async def _connect_once(self, host: Host) -> None:
        """Until it breaks; returns when a websocket gets through where HTTP had to do."""
        broken: Exception | None = None
        try:
            if self._ways.is_over_http:
                await self._work_over_http(host)
            else:
                await self._work_over_websocket(host)
        except* BROKEN as group:
            broken = _as_the_server_said(_first(group))
        if broken is not None:  # Raised in there it would share a group with a cancellation.
            raise broken

    async def _work_over_websocket(self, host: Host) -> None:
        self._unwanted = trio.Event()
        async with self._dial() as socket, trio.open_nursery() as nursery:
            nursery.start_soon(self._wait_unwanted)
            await self._converse(FramedSession(socket), host)

    async def _work_over_http(self, host: Host) -> None:
        assert self._poll is not None
        async with self._poll() as session, trio.open_nursery() as nursery:
            nursery.start_soon(self._converse, session, host)
            if self._ways.may_return:
                await self._wait_websocket()
                async with session.claiming:
                    nursery.cancel_scope.cancel()

    async def _wait_websocket(self) -> None:
        for tries in count():
            await trio.sleep(WEBSOCKET_AGAIN_S[min(tries, len(WEBSOCKET_AGAIN_S) - 1)])
            if await self._does_websocket_work():
                return

    async def _does_websocket_work(self) -> bool:
        does_work = False
        with trio.move_on_after(ANSWER_S):
            try:
                async with self._dial() as socket:
                    await wait_frames_pass(socket)
                    does_work = True
            except* BROKEN as group:
                logger.info("still no websocket: %s", _in_words(_first(group)))
        return does_work

    async def _converse(self, session: Session, host: Host) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.carry, host, self._forgotten)
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

    def _forgotten(self) -> None:
        logger.warning("the server knows runtimes of ours no longer")
        self.register_again()

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
                beat = Heartbeats(runtime_ids=self.runtime_ids, incarnation=self._incarnation)
                heard = await self.call("heartbeats", beat)
            assert isinstance(heard, HeartbeatsHeard)
            host.trusted(asked_at, heard.trust_s)
            host.stop([each.task_id for each in heard.cancelled])
            for ping in heard.pending_pings:
                session.pong(ping)
            if heard.gone:
                self._forgotten()

    def offer(self, free: int) -> None:
        """Tell the server how many slots are free, should it count on fewer."""
        if self._session is not None and self._session.is_registered:
            self._session.offer(free)

    async def call(self, name: str, body: Struct, subject: UUID | None = None) -> Any:  # noqa: ANN401  # The answer of that call.
        """One try over the connection of the moment.

        Raises `NotSent`, `Unknown` or `LinkRefused`.
        """
        if self._session is None:
            raise NotSent("not connected")
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
            session = self._session
            try:
                return await self._call_patiently(name, body, subject)
            except NotSent as error:
                logger.debug("%s was not sent: %s", name, error)
            except Unknown as error:
                logger.info("%s may have been done (%s): asking again", name, error)
            except LinkRefused as refused:
                if not _will_pass(refused.refusal.status):
                    raise
                logger.warning("%s: %s; asking again", name, refused)
            with trio.move_on_after(RETRY_S[min(tries, len(RETRY_S) - 1)]):
                await self._wait_other_than(session)
        raise AssertionError("count() is endless")

    async def _call_patiently(self, name: str, body: Struct, subject: UUID) -> object:
        with trio.move_on_after(DELIVER_S):
            return await self.call(name, body, subject)
        raise Unknown(f"not answered within {DELIVER_S:.0f} s")

    async def _wait_up(self) -> None:
        while not self.is_up:
            await self._changed.wait()

    async def _wait_other_than(self, session: Session | None) -> None:
        while not self.is_up or self._session is session:
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


def _as_the_server_said(error: Exception) -> Exception:
    """What a rejected websocket was told, if it was the server that rejected it."""
    if not isinstance(error, ConnectionRejected):
        return error
    try:
        refusal = msgspec.json.decode(error.body or b"", type=Refusal)
    except msgspec.MsgspecError:
        return error
    return LinkRefused(msgspec.structs.replace(refusal, status=error.status_code))


def _raise_shutout(error: Exception) -> None:
    if isinstance(error, LinkRefused) and error.refusal.status in {401, 403}:
        raise Shutout(
            f"the server does not accept this daemon's key ({error}): run `understudy join` again"
        ) from None


def _in_words(error: Exception) -> str:
    match error:
        case ConnectionRejected(status_code=status):
            return f"the server answered {status}"
        case ConnectionClosed():
            return f"closed: {error.reason}"
        case _:
            return str(error) or type(error).__name__
