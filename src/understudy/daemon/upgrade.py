"""A websocket to the server, through a proxy if need be; the library opens none through proxies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, cast, final
from urllib.parse import urlsplit

import trio
from trio_websocket import WebSocketConnection, wrap_client_stream

from understudy.daemon.proxies import PORTS, Proxy, bracketed, open_stream

CONNECT_S: Final = 15.0
DISCONNECT_S: Final = 2.0
"""For the server's half of the goodbye; on a half-open connection it never comes."""
MESSAGE_MAX: Final = 32 * 1024 * 1024


class UpgradeFailed(Exception):
    """Something is there, and no websocket comes of it."""


@asynccontextmanager
async def open_socket(
    url: str, proxy: Proxy | None, headers: dict[str, str]
) -> AsyncIterator[WebSocketConnection]:
    """`url` begins with http or https.

    Raises OSError where nobody is reached, `ProxyTrouble`, `UpgradeFailed`, and in a group
    `ConnectionRejected`.
    """
    server = urlsplit(url)
    with trio.move_on_after(CONNECT_S) as patience:
        stream = _Watched(await open_stream(server, proxy))
    if patience.cancelled_caught:
        raise TimeoutError(f"{server.netloc} cannot be reached within {CONNECT_S:.0f} s")
    try:
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(CONNECT_S) as patience:
                stream.on_end = patience.cancel
                socket = await wrap_client_stream(
                    nursery, cast(Any, stream), _host(url), server.path,
                    extra_headers=[(n.encode(), v.encode()) for n, v in headers.items()],
                    max_message_size=MESSAGE_MAX,
                )  # fmt: skip
            if patience.cancelled_caught:
                raise UpgradeFailed(f"{server.netloc} does not open a websocket")
            try:
                yield socket
            finally:
                with trio.move_on_after(DISCONNECT_S):
                    await socket.aclose()
    finally:
        await trio.aclose_forcefully(stream)


def _host(url: str) -> str:
    parts = urlsplit(url)
    host = bracketed(parts.hostname or "")
    return host if parts.port in {None, PORTS[parts.scheme]} else f"{host}:{parts.port}"


@final
class _Watched(trio.abc.Stream):
    """Tells of its end: the library waits for ever for an answer that breaks off."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.on_end: Callable[[], object] = lambda: None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        try:
            data = await self._stream.receive_some(max_bytes)
        except trio.BrokenResourceError:
            self.on_end()
            raise
        if not data:
            self.on_end()
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()
