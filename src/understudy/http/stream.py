"""Server-sent events (R11.4): the workspace's events, and the messages of one task.

Nothing is missed over a reconnection: ids are positions, history comes from the database. No cancel
scope is open across a yield; the waiting is done in helpers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, TypeVar
from uuid import UUID

import msgspec
import trio
from quart import Blueprint, Response, request

from understudy.actors import broadcast
from understudy.core.lifecycle import TERMINAL
from understudy.core.records import Event, Message
from understudy.http import auth
from understudy.http.errors import answer
from understudy.http.site import Site
from understudy.store import tasks
from understudy.store.errors import DatabaseUnavailable
from understudy.wire.errors import invalid, not_found

PING_S: Final = 15.0
AWAY_S: Final = 1.0
PAGE_MAX: Final = 500

Chunks = AsyncIterator[bytes]
T = TypeVar("T")


def blueprint(site: Site) -> Blueprint:
    routes = Blueprint("stream", __name__)

    @routes.get("/api/events")
    async def events() -> Response:
        person = await auth.person(request, site.database)
        after = _cursor(site.cast.tail.mark.value)
        return _stream(_events(site, person.workspace.id, after))

    @routes.get("/api/tasks/<task_id>/stream")
    async def task_stream(task_id: str) -> Response:
        person = await auth.person(request, site.database)
        identity = auth.parse_id(task_id, "task_id")
        if await tasks.find(site.database, person.workspace.id, identity) is None:
            raise not_found("task")
        return _stream(_messages(site, person.workspace.id, identity, _cursor(-1)))

    @routes.get("/api/tasks/<task_id>/messages")
    async def messages(task_id: str) -> Response:
        person = await auth.person(request, site.database)
        identity = auth.parse_id(task_id, "task_id")
        if await tasks.find(site.database, person.workspace.id, identity) is None:
            raise not_found("task")
        return answer(await tasks.messages(site.database, identity, after=_cursor(-1)))

    return routes


def _cursor(default: int) -> int:
    text = request.headers.get("Last-Event-ID", request.args.get("after"))
    if text is None:
        return default
    try:
        cursor = int(text)
    except ValueError:
        raise invalid(f"Last-Event-ID is not a number: {text[:80]!r}") from None
    if not -1 <= cursor < 2**63:
        raise invalid(f"Last-Event-ID is out of range: {text[:80]}")
    return cursor


def _stream(chunks: Chunks) -> Response:
    response = Response(
        chunks,
        content_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )
    response.timeout = None  # Quart would cut it after 60 s.
    return response


async def _events(site: Site, workspace_id: UUID, after: int) -> Chunks:
    yield b"retry: 1000\n: hello\n\n"  # So that the headers leave at once.

    async def news() -> tuple[list[Event], int]:
        try:
            return await broadcast.follow(site.cast.tail, site.database, workspace_id, after)
        except DatabaseUnavailable:  # Only for history; the reader waits as the tail does.
            await trio.sleep(AWAY_S)
            return [], after

    while not site.stopping.is_set():
        found = await _or_stopping(site, news)
        if found is None:
            yield b": ping\n\n"
            continue
        rows, after = found
        yield b"".join(_frame(row.id, row.kind, row) for row in rows) or b": \n\n"
    yield _frame(None, "bye", {})


async def _messages(site: Site, workspace_id: UUID, task_id: UUID, after: int) -> Chunks:
    """Each message once, in order; `end` with the task when it is over and all is told."""
    yield b"retry: 1000\n: hello\n\n"
    newest = site.cast.newest(task_id)
    mark = -1

    async def rise() -> int:
        return await newest.wait_above(mark)

    while not site.stopping.is_set():
        mark = newest.value
        try:
            row = await tasks.find(site.database, workspace_id, task_id)
            found = await tasks.messages(site.database, task_id, after=after, rows_max=PAGE_MAX)
        except DatabaseUnavailable:
            return  # The browser comes back with the last id it has.
        if found:
            yield b"".join(_frame(each.seq, "task:message", each) for each in found)
            after = found[-1].seq
        elif row is None or row.status in TERMINAL:
            yield _frame(None, "end", row)
            return
        elif await _or_stopping(site, rise) is None:
            yield b": ping\n\n"
    yield _frame(None, "bye", {})


def _frame(identity: int | None, kind: str, data: Event | Message | object) -> bytes:
    head = b"" if identity is None else b"id: %d\n" % identity
    return head + b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode(data))


async def _or_stopping(site: Site, wait: Callable[[], Awaitable[T]]) -> T | None:
    """What is waited for; None after `PING_S`, or at once when the server stops."""
    found: T | None = None

    async def stop() -> None:
        await site.stopping.wait()
        nursery.cancel_scope.cancel()

    with trio.move_on_after(PING_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop)
            found = await wait()
            nursery.cancel_scope.cancel()
    return found
