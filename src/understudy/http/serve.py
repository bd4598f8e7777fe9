"""Serve an ASGI app on listeners, real or simulated, and stop without cutting anyone off."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, final

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.worker_context import EventWrapper, WorkerContext
from hypercorn.typing import ASGIFramework, ASGIReceiveEvent, ASGISendEvent, LifespanScope

from understudy.http.connection import Connection, ServeConfig, Terms

__all__ = ["CannotListen", "LifespanFailed", "ServeConfig", "open_listeners", "serve"]

BACKLOG = 1024
SHUTDOWN_S = 30.0


class CannotListen(Exception):
    """The address is taken, forbidden or not ours; the message says what to do."""


class LifespanFailed(Exception):
    """The app's own start or end failed."""


async def open_listeners(host: str, port: int) -> list[trio.SocketListener]:
    try:
        return await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG)
    except OSError as error:
        raise CannotListen(_advice(host, port, error)) from error


def _advice(host: str, port: int, error: OSError) -> str:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine: listen on 127.0.0.1, or on 0.0.0.0."
    if error.errno == errno.EADDRINUSE:
        return f"{host}:{port} is in use: stop the program that listens there, or change the port."
    if error.errno == errno.EACCES:
        return f"{host}:{port} needs privileges: choose a port above 1023."
    return f"Cannot listen on {host}:{port}: {error.strerror}."


async def serve(
    app: ASGIFramework,
    listeners: Sequence[trio.abc.Listener[trio.abc.HalfCloseableStream]],
    *,
    config: ServeConfig,
    stopping: trio.Event,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `stopping` is set; return when the last connection has ended.

    Once it is, listeners and idle connections close at once, running requests may finish within
    `graceful_s`, and then the app's lifespan ends. Websockets and streams count as running: the
    app ends them itself, by watching the same event.

    The listeners are closed in any case. A crash among the app's background tasks ends this
    function (D5), in an exception group, as does an app that cannot start.
    """
    try:
        async with trio.open_nursery() as nursery:
            lifespan = Lifespan(app)
            await nursery.start(lifespan.run)
            terms = Terms(ASGIWrapper(app), config, _for_hypercorn(config), _Context(stopping))
            await _serve_connections(terms, listeners, stopping, task_status)
            await lifespan.end()
    finally:
        for listener in listeners:
            await trio.aclose_forcefully(listener)


async def _serve_connections(
    terms: Terms,
    listeners: Sequence[trio.abc.Listener[trio.abc.HalfCloseableStream]],
    stopping: trio.Event,
    task_status: trio.TaskStatus[None],
) -> None:
    connections: set[Connection] = set()

    async def run(stream: trio.abc.HalfCloseableStream) -> None:
        connection = Connection(stream, terms)
        connections.add(connection)
        try:
            await connection.run()
        finally:
            connections.discard(connection)

    async with trio.open_nursery() as running:
        async with trio.open_nursery() as accepting:
            accept = partial(trio.serve_listeners, run, list(listeners), handler_nursery=running)
            await accepting.start(accept)
            task_status.started()
            await stopping.wait()
            accepting.cancel_scope.cancel()
        for connection in connections:
            connection.stop()


def _for_hypercorn(config: ServeConfig) -> Config:
    hypercorn = Config()
    hypercorn.accesslog = None
    hypercorn.errorlog = None
    hypercorn.include_server_header = False
    hypercorn.keep_alive_max_requests = sys.maxsize
    hypercorn.websocket_max_message_size = config.websocket_message_max_bytes
    hypercorn.wsgi_max_body_size = config.body_max_bytes
    return hypercorn


class _Stopping(EventWrapper):
    def __init__(self, event: trio.Event) -> None:
        self._event = event


class _Context(WorkerContext):
    """Tells Hypercorn's protocol to close a connection once its response is out."""

    def __init__(self, stopping: trio.Event) -> None:
        super().__init__(max_requests=None)
        self.terminated = _Stopping(stopping)


@final
class Lifespan:
    """The app's own start and end, around everything else."""

    def __init__(self, app: ASGIFramework) -> None:
        self._app = app
        self._to_app, self._events = trio.open_memory_channel[ASGIReceiveEvent](1)
        self._patience = trio.CancelScope()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        async def send(message: ASGISendEvent) -> None:
            if message["type"] == "lifespan.startup.complete":
                task_status.started()
            elif message["type"] in {"lifespan.startup.failed", "lifespan.shutdown.failed"}:
                raise LifespanFailed(message.get("message"))

        await self._to_app.send({"type": "lifespan.startup"})
        with self._patience:
            await self._app(_lifespan_scope(), self._events.receive, send)

    async def end(self) -> None:
        self._patience.deadline = trio.current_time() + SHUTDOWN_S
        await self._to_app.send({"type": "lifespan.shutdown"})


def _lifespan_scope() -> LifespanScope:
    state: dict[str, Any] = {}
    return {
        "type": "lifespan",
        "asgi": {"spec_version": "2.0", "version": "3.0"},
        "state": state,
    }
