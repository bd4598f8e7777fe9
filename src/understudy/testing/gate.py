"""What stands between a daemon and its server: a gate in front of the server that lets websockets
through or not, and a proxy of the daemon's side. Both on loopback, both on real sockets."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal
from urllib.parse import urlsplit

import trio

HEAD_END: Final = b"\r\n\r\n"
BYTES_MAX: Final = 65536


@dataclass
class Gate:
    """`websockets`: what becomes of them. `mute` lets them open, and nothing else through."""

    server: str
    websockets: Literal["pass", "reject", "hang up", "mute"] = "pass"
    is_shut: bool = False
    """Nothing passes, and each request is answered 502."""
    address: str = ""
    asked: list[str] = field(default_factory=list)
    """The first line of what each connection began with."""
    upgrades: int = 0

    async def answer(self, client: trio.SocketStream) -> None:
        head = await _read_head(client)
        self.asked.append(_first_line(head))
        is_upgrade = b"upgrade: websocket" in head.lower()
        self.upgrades += is_upgrade
        if self.is_shut or (is_upgrade and self.websockets == "reject"):
            await client.send_all(_status("502 Bad Gateway"))
        elif not (is_upgrade and self.websockets == "hang up"):
            async with await _reach(self.server) as server:
                await server.send_all(head)
                if is_upgrade and self.websockets == "mute":
                    await client.send_all(await _read_head(server))
                    await trio.sleep_forever()
                await _join(client, server)


@dataclass
class Tunnels:
    """A proxy that knows one server, by whatever name. It forwards, and makes tunnels."""

    server: str
    login: str | None = None
    """`name:password`, if it wants one."""
    makes_tunnels: bool = True
    address: str = ""
    asked: list[str] = field(default_factory=list)

    async def answer(self, client: trio.SocketStream) -> None:
        head = await _read_head(client)
        self.asked.append(_first_line(head))
        is_tunnel = head.startswith(b"CONNECT ")
        if not self._may_pass(head):
            await client.send_all(_status("407 Proxy Authentication Required"))
        elif is_tunnel and not self.makes_tunnels:
            await client.send_all(_status("405 Method Not Allowed"))
        else:
            async with await _reach(self.server) as server:
                if is_tunnel:
                    await client.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
                else:
                    await server.send_all(_as_origin_form(head))
                await _join(client, server)

    def _may_pass(self, head: bytes) -> bool:
        if self.login is None:
            return True
        pair = b64encode(self.login.encode())
        return b"proxy-authorization: basic " + pair.lower() in head.lower()


@asynccontextmanager
async def open_waypoint(waypoint: Gate | Tunnels) -> AsyncIterator[None]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    waypoint.address = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.serve_listeners, partial(_contained, waypoint), [listener]))
        yield
        nursery.cancel_scope.cancel()


async def _contained(waypoint: Gate | Tunnels, client: trio.SocketStream) -> None:
    """A connection that breaks is the traveller's affair."""
    try:
        async with client:
            await waypoint.answer(client)
    except* (trio.BrokenResourceError, OSError):
        pass


async def _read_head(stream: trio.abc.ReceiveStream) -> bytes:
    """And what came with it."""
    head = b""
    while HEAD_END not in head:
        if not (more := await stream.receive_some(BYTES_MAX)):
            raise trio.BrokenResourceError("it hung up")
        head += more
    return head


def _first_line(head: bytes) -> str:
    return head.partition(b"\r\n")[0].decode()


def _as_origin_form(head: bytes) -> bytes:
    """One request for each connection: the next one may be for somebody else."""
    line, _, rest = head.partition(b"\r\n")
    method, target, version = line.decode().split(" ")
    parts = urlsplit(target)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    return f"{method} {path} {version}\r\nConnection: close\r\n".encode() + _without_keeping(rest)


def _without_keeping(headers: bytes) -> bytes:
    head, end, body = headers.partition(HEAD_END)
    kept = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join(kept) + end + body


def _status(line: str) -> bytes:
    return f"HTTP/1.1 {line}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()


async def _reach(server: str) -> trio.SocketStream:
    parts = urlsplit(server)
    assert parts.hostname
    assert parts.port
    return await trio.open_tcp_stream(parts.hostname, parts.port)


async def _join(one: trio.SocketStream, other: trio.SocketStream) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_pump, one, other, nursery.cancel_scope)
        nursery.start_soon(_pump, other, one, nursery.cancel_scope)


async def _pump(source: trio.SocketStream, sink: trio.SocketStream, both: trio.CancelScope) -> None:
    while data := await source.receive_some(BYTES_MAX):
        await sink.send_all(data)
    both.cancel()
