"""The way to the server through a proxy, as the environment says: HTTPS_PROXY, HTTP_PROXY,
ALL_PROXY and NO_PROXY, in capitals or not. A server on this machine is never behind one."""

from __future__ import annotations

import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from ipaddress import ip_address, ip_network
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

import h11
import trio

from understudy.daemon.machine import here

PORTS: Final = {"http": 80, "https": 443}
ANSWER_MAX: Final = 64 * 1024


class ProxyTrouble(Exception):
    """A proxy does not let us through, or is none that is spoken here."""


@dataclass(frozen=True)
class Proxy:
    scheme: str
    host: str
    port: int
    login: tuple[str, str] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"the proxy {self.host}:{self.port}"

    @property
    def url(self) -> str:
        """Without the login."""
        return f"{self.scheme}://{bracketed(self.host)}:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        if self.login is None:
            return {}
        pair = b64encode(":".join(self.login).encode()).decode()
        return {"Proxy-Authorization": f"Basic {pair}"}


def proxy_for(server: str, environment: Mapping[str, str]) -> Proxy | None:
    """For the URL of a server. Raises `ProxyTrouble` for what names no HTTP proxy."""
    parts = urlsplit(server)
    if _is_near(parts, _setting("no_proxy", environment)):
        return None
    named = _setting(f"{parts.scheme}_proxy", environment) or _setting("all_proxy", environment)
    return _proxy(named) if named else None


def _setting(name: str, environment: Mapping[str, str]) -> str:
    return (environment.get(name) or environment.get(name.upper()) or "").strip()


def _proxy(named: str) -> Proxy:
    parts = urlsplit(named if "://" in named else f"http://{named}")
    if parts.scheme not in PORTS:
        raise ProxyTrouble(f"a {parts.scheme} proxy is not spoken here: it has to be an HTTP proxy")
    try:
        port = parts.port or PORTS[parts.scheme]
    except ValueError:
        port = 0
    if not parts.hostname or not port:
        raise ProxyTrouble("the proxy in the environment is no address: http://host:port is one")
    login = None
    if parts.username is not None:
        login = unquote(parts.username), unquote(parts.password or "")
    return Proxy(parts.scheme, parts.hostname, port, login)


def _is_near(server: SplitResult, no_proxy: str) -> bool:
    host = server.hostname or ""
    if host == "localhost" or _is_loopback(host):
        return True
    port = server.port or PORTS.get(server.scheme)
    entries = (each.strip().lower() for each in no_proxy.split(","))
    return any(_covers(entry, host, port) for entry in entries if entry)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _covers(entry: str, host: str, port: int | None) -> bool:
    """`*`, a network, an address, or a domain with all that is in it; each perhaps with a port."""
    name, _, at = entry.rpartition(":")
    if at.isdigit() and name.count(":") == 0:
        return int(at) == port and _covers(name, host, port)
    try:
        return ip_address(host) in ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        domain = entry.removeprefix("*").removeprefix(".")
        return entry == "*" or host == domain or host.endswith(f".{domain}")


def in_words(status: int) -> str:
    """What a proxy means by its status."""
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return "the proxy wants a login: write it as http://name:password@host:port"
    return f"the proxy does not let us through: it answered {status}"


async def open_stream(server: SplitResult, proxy: Proxy | None) -> trio.abc.Stream:
    """To the server, as if there were no proxy; encrypted for https.

    Raises OSError or `ProxyTrouble`, in words.
    """
    host, port = server.hostname or "", server.port or PORTS[server.scheme]
    if proxy is None:
        stream = await here().open_tcp(host, port)
    else:
        stream = await _open_tunnel(proxy, f"{bracketed(host)}:{port}")
    return await _secured(stream, host) if server.scheme == "https" else stream


async def _open_tunnel(proxy: Proxy, target: str) -> trio.abc.Stream:
    try:
        stream = await here().open_tcp(proxy.host, proxy.port)
    except OSError as error:
        raise OSError(f"{proxy} cannot be reached: {error}") from None
    if proxy.scheme == "https":
        stream = await _secured(stream, proxy.host)
    async with _closed_on_error(stream):
        status = await _asked_for_tunnel(stream, proxy, target)
        if not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            raise ProxyTrouble(in_words(status))
    return stream


async def _asked_for_tunnel(stream: trio.abc.Stream, proxy: Proxy, target: str) -> int:
    """The status it answers with. No more is read: what follows belongs to the tunnel."""
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=ANSWER_MAX)
    headers = [("Host", target), *proxy.headers.items()]
    try:
        await stream.send_all(
            http.send(h11.Request(method="CONNECT", target=target, headers=headers))
        )
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(bytes(await stream.receive_some()))
            elif isinstance(event, h11.Response):
                return event.status_code
            elif isinstance(event, h11.ConnectionClosed):
                raise ProxyTrouble(f"{proxy} hung up")
    except trio.BrokenResourceError:
        raise ProxyTrouble(f"{proxy} hung up") from None
    except h11.RemoteProtocolError as error:
        raise ProxyTrouble(f"{proxy} answers no HTTP: {error}") from None


async def _secured(stream: trio.abc.Stream, host: str) -> trio.abc.Stream:
    context = ssl.create_default_context()
    secured = trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)
    async with _closed_on_error(secured):
        try:
            await secured.do_handshake()
        except trio.BrokenResourceError as error:
            raise OSError(f"no TLS with {host}: {error.__cause__ or 'it hung up'}") from None
    return secured


@asynccontextmanager
async def _closed_on_error(stream: trio.abc.Stream) -> AsyncIterator[None]:
    try:
        yield
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
