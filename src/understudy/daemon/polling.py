"""A connection over HTTP, where no websocket gets through: the same calls, one request each.

Nothing is pushed: tasks are asked for while slots are free, what is to be stopped while any are
taken, and what else the server has to say comes with the heartbeats.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from http import HTTPStatus
from typing import Any, Final, final
from uuid import UUID

import httpx2
import msgspec
import trio

from understudy.config import DaemonConfig
from understudy.core.struct import Struct
from understudy.daemon import proxies
from understudy.daemon.outcomes import LinkLost, NotSent, Unknown, unanswered
from understudy.daemon.proxies import Proxy
from understudy.daemon.session import Host, headers
from understudy.wire.daemon import (
    CALLS,
    Acknowledged,
    CallShape,
    ClaimedMany,
    ClaimedTask,
    ClaimMany,
    Heartbeats,
    HeartbeatsHeard,
    Ping,
    Pong,
)
from understudy.wire.errors import Refusal

logger = logging.getLogger(__name__)

CONNECT_S: Final = 15.0
CALL_S: Final = 120.0
CLAIM_S_MIN: Final = 2.0
CLAIM_S_MAX: Final = 10.0
STOPS_S: Final = 1.5
"""An agent that obeys to nothing but SIGKILL is gone 4 s after it was heard of: R7.2 has 6 s."""
SLOTS_MAX: Final = 100
"""In one claim, as the wire has it."""
PINGS_MAX: Final = 16

Poll = Callable[[], "AbstractAsyncContextManager[PolledSession]"]


def poll(config: DaemonConfig, environment: Mapping[str, str] = os.environ) -> Poll:
    """How to work for the server of `config` by HTTP alone."""
    return lambda: _open(config, environment)


@asynccontextmanager
async def _open(
    config: DaemonConfig, environment: Mapping[str, str]
) -> AsyncIterator[PolledSession]:
    proxy = proxies.proxy_for(config.server, environment)
    async with httpx2.AsyncClient(
        base_url=config.server.rstrip("/"),
        headers=headers(config.token),
        proxy=_for_httpx(proxy),
        verify=ssl.create_default_context(),
        timeout=httpx2.Timeout(None, connect=CONNECT_S),
        trust_env=False,
    ) as http:
        yield PolledSession(http, proxy, slots=config.tasks_max)


def _for_httpx(proxy: Proxy | None) -> httpx2.Proxy | None:
    if proxy is None:
        return None
    context = ssl.create_default_context() if proxy.scheme == "https" else None
    return httpx2.Proxy(proxy.url, auth=proxy.login, ssl_context=context)


@final
class PolledSession:
    """`slots`: of this machine, free or taken."""

    def __init__(self, http: httpx2.AsyncClient, proxy: Proxy | None = None, *, slots: int) -> None:
        self.is_registered = False
        self.claiming = trio.Lock()
        """Held from a claim until what it brought is taken."""
        self._http = http
        self._proxy = proxy
        self._slots = slots
        self._is_over = False
        self._under_way = set[trio.CancelScope]()
        self._runtime_ids = list[UUID]()
        self._free = 0
        self._wanted = trio.Event()
        self._to_answer, self._pings = trio.open_memory_channel[Ping](PINGS_MAX)

    async def carry(self, host: Host, forgotten: Callable[[], object]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._answer_pings)
            nursery.start_soon(self._ask_what_to_stop, host)
            await self._claim_forever(host)

    async def _ask_what_to_stop(self, host: Host) -> None:
        """Between the link's heartbeats, and as cheap: the server answers from memory (R7.1)."""
        while True:
            await trio.sleep(STOPS_S)
            if self._runtime_ids and host.free_slots() < self._slots:
                beat = Heartbeats(runtime_ids=self._runtime_ids)
                with suppress(LinkLost):
                    heard = await self.call("heartbeats", beat, None)
                    if isinstance(heard, HeartbeatsHeard):
                        host.stop([each.task_id for each in heard.cancelled])

    async def _claim_forever(self, host: Host) -> None:
        pause_s = CLAIM_S_MIN
        while True:
            self._wanted, found = trio.Event(), list[ClaimedTask]()
            async with self.claiming:
                if self._runtime_ids and (slots := min(host.free_slots(), SLOTS_MAX)) > 0:
                    found = await self._claim(slots)
                    host.take(found)
                self._free = host.free_slots()
            pause_s = CLAIM_S_MIN if found else min(CLAIM_S_MAX, pause_s * 1.5)
            with trio.move_on_after(pause_s):
                await self._wanted.wait()

    async def _claim(self, slots: int) -> list[ClaimedTask]:
        """Whether the server is there at all, the heartbeats find out."""
        claim = ClaimMany(runtime_ids=self._runtime_ids, slots=slots)
        try:
            answer = await self.call("claims", claim, None)
        except NotSent:
            return []
        except Unknown as unknown:
            # R3.8: its lease runs out, and our next claim takes it back.
            logger.warning("what was claimed may not have arrived: %s", unknown)
            return []
        if isinstance(answer, Refusal):
            logger.warning("no tasks: %s", answer.error)
            return []
        assert isinstance(answer, ClaimedMany)
        return answer.tasks

    def announce(self, runtime_ids: list[UUID], free: int) -> None:
        self._runtime_ids, self._free = runtime_ids, free
        self._wanted.set()

    def offer(self, free: int) -> None:
        if free > self._free:
            self._wanted.set()
        self._free = free

    def pong(self, ping: Ping) -> None:
        with suppress(trio.WouldBlock):  # What finds no room is asked for again (R4.12).
            self._to_answer.send_nowait(ping)

    async def _answer_pings(self) -> None:
        async for ping in self._pings:
            with suppress(LinkLost):
                await self.call("pong", Pong(ping_id=ping.id), ping.runtime_id)

    async def call(self, name: str, body: Struct, subject: UUID | None) -> object:
        if self._is_over:
            raise NotSent("not connected")
        sending = _Sending()
        try:
            with trio.move_on_after(CALL_S) as scope, self._counted(scope):
                answer = await self._request(CALLS[name], body, subject, sending)
                return _read(CALLS[name], answer)
        except httpx2.RequestError as error:
            raise unanswered(self._in_words(error), is_sent=sending.has_begun) from None
        raise unanswered(f"no answer to {name}", is_sent=sending.has_begun)

    async def _request(
        self, shape: CallShape, body: Struct, subject: UUID | None, sending: _Sending
    ) -> httpx2.Response:
        return await self._http.request(
            shape.method,
            shape.path.replace("<subject>", str(subject)),
            content=msgspec.json.encode(body) if shape.method == "POST" else None,
            headers={"Content-Type": "application/json"},
            extensions={"trace": sending.trace},
        )

    @contextmanager
    def _counted(self, scope: trio.CancelScope) -> Iterator[None]:
        self._under_way.add(scope)
        try:
            yield
        finally:
            self._under_way.remove(scope)

    def end(self) -> None:
        self._is_over = True
        for scope in self._under_way:
            scope.cancel()

    def _in_words(self, error: httpx2.RequestError) -> str:
        said = str(error) or type(error).__name__
        if isinstance(error, httpx2.ProxyError):
            status = said.partition(" ")[0]
            return proxies.in_words(int(status)) if status.isdigit() else said
        return said if self._proxy is None else f"{said}, through {self._proxy}"


@final
class _Sending:
    """Whether a request has begun to leave for the server; asking a proxy for its tunnel is not
    that yet."""

    def __init__(self) -> None:
        self.has_begun = False

    async def trace(self, event: str, details: Mapping[str, Any]) -> None:
        if event.endswith("send_request_headers.started"):
            self.has_begun |= details["request"].method != b"CONNECT"


def _read(shape: CallShape, answer: httpx2.Response) -> object:
    """The call's answer, or the server's `Refusal`. What else is on the way is not the server."""
    if answer.status_code != shape.status:
        return _refusal(answer)
    if shape.status == HTTPStatus.NO_CONTENT:
        return Acknowledged()
    try:
        return msgspec.json.decode(answer.content, type=shape.answer)
    except msgspec.MsgspecError:
        raise Unknown("something on the way to the server answers in its place") from None


def _refusal(answer: httpx2.Response) -> Refusal:
    """A proxy's own 404 proves nothing (R4.6), and its 502 not even that nothing was done.

    Raises `NotSent` or `Unknown`.
    """
    status = answer.status_code
    try:
        refusal = msgspec.json.decode(answer.content, type=Refusal)
    except msgspec.MsgspecError:
        if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            raise NotSent(proxies.in_words(status)) from None
        if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:  # To send it again would change nothing.
            return Refusal(error="too large for the way to the server", code="", status=status)
        raise Unknown(f"something on the way to the server answered {status}") from None
    retry_after = answer.headers.get("Retry-After", "")
    return msgspec.structs.replace(
        refusal,
        status=status,
        retry_after_s=float(retry_after) if retry_after.isdigit() else None,
    )
