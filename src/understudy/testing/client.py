"""An HTTP client over the network in memory."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import inf

import httpcore2
import httpx2
import trio

from understudy.testing.network import MemoryNetwork
from understudy.testing.streams import MemoryStream

# httpcore reads the real clock to expire connections: under a virtual one that must never happen.
KEEPALIVE_EXPIRY_S = 1e9


def open_client(
    network: MemoryNetwork,
    base_url: str,
    *,
    client: str = "10.0.0.1",
    headers: dict[str, str] | None = None,
) -> httpx2.AsyncClient:
    """Use as an async context manager. `client` is the address it connects from."""
    transport = httpx2.AsyncHTTPTransport(verify=False)
    transport._pool = httpcore2.AsyncConnectionPool(  # noqa: SLF001 -- no argument for it
        network_backend=_MemoryBackend(network, client), keepalive_expiry=KEEPALIVE_EXPIRY_S
    )
    return httpx2.AsyncClient(
        transport=transport, base_url=base_url, headers=headers, trust_env=False
    )


class _MemoryBackend(httpcore2.AsyncNetworkBackend):
    def __init__(self, network: MemoryNetwork, client: str) -> None:
        self._network = network
        self._client = client

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 -- httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        with _as_httpcore(timeout, httpcore2.ConnectTimeout, httpcore2.ConnectError):
            return _Stream(await self._network.connect(host, port, client=self._client))

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


class _Stream(httpcore2.AsyncNetworkStream):
    def __init__(self, stream: MemoryStream) -> None:
        self._stream = stream

    async def read(
        self,
        max_bytes: int,
        timeout: float | None = None,  # noqa: ASYNC109 -- httpcore's signature
    ) -> bytes:
        with _as_httpcore(timeout, httpcore2.ReadTimeout, httpcore2.ReadError):
            return await self._stream.receive_some(max_bytes)

    async def write(
        self,
        buffer: bytes,
        timeout: float | None = None,  # noqa: ASYNC109 -- httpcore's signature
    ) -> None:
        with _as_httpcore(timeout, httpcore2.WriteTimeout, httpcore2.WriteError):
            await self._stream.send_all(buffer)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 -- httpcore's signature
    ) -> httpcore2.AsyncNetworkStream:
        raise NotImplementedError("the network in memory speaks no TLS")

    def get_extra_info(self, info: str) -> object:
        return self._stream.is_readable() if info == "is_readable" else None


@contextmanager
def _as_httpcore(
    limit_s: float | None, too_slow: type[Exception], failed: type[Exception]
) -> Iterator[None]:
    try:
        with trio.fail_after(inf if limit_s is None else limit_s):
            yield
    except trio.TooSlowError as error:
        raise too_slow(error) from error
    except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
        raise failed(error) from error
