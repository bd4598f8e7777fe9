"""Server-sent events on a whole node: nothing missed, nothing twice (R11.4)."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from random import Random
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import h11
import msgspec
import pytest
import trio

from understudy.actors.broadcast import written
from understudy.core.records import Message
from understudy.store import claims, runtimes, tasks
from understudy.store.connection import open_connection
from understudy.store.tasks import Holder
from understudy.testing.node import Node
from understudy.wire.daemon import ClaimedTask

COURIER = 1
"""Who waits for the tail's mark as long as the node lives."""
INSERT = "insert into understudy.events (workspace_id, kind, payload) values ($1, $2, '{}')"


class Event(msgspec.Struct):
    kind: str
    data: Any
    id: int | None = None


@asynccontextmanager
async def reading(
    node: Node, path: str, after: int | None = None
) -> AsyncGenerator[AsyncGenerator[Event]]:
    """A browser that hangs up at the end of the block."""
    url = urlsplit(node.address)
    assert url.hostname is not None
    assert url.port is not None
    headers = {"Host": url.netloc, "Authorization": f"Bearer {node.personal_key}"}
    if after is not None:
        headers["Last-Event-ID"] = str(after)
    client = h11.Connection(h11.CLIENT)
    async with await trio.open_tcp_stream(url.hostname, url.port) as stream:
        request = h11.Request(method="GET", target=path, headers=list(headers.items()))
        await stream.send_all(
            (client.send(request) or b"") + (client.send(h11.EndOfMessage()) or b"")
        )
        async with aclosing(_events(client, stream)) as events:
            yield events


async def _events(client: h11.Connection, stream: trio.SocketStream) -> AsyncGenerator[Event]:
    buffer = b""
    while not isinstance(part := client.next_event(), h11.EndOfMessage):
        if part is h11.NEED_DATA:
            client.receive_data(await stream.receive_some())
        elif isinstance(part, h11.Response):
            assert part.status_code == 200
        elif isinstance(part, h11.Data):
            *frames, buffer = (buffer + bytes(part.data)).split(b"\n\n")
            for frame in frames:
                fields = dict(line.split(b": ", 1) for line in frame.split(b"\n"))
                if b"event" in fields:
                    number = int(fields[b"id"]) if b"id" in fields else None
                    yield Event(fields[b"event"].decode(), json.loads(fields[b"data"]), number)


async def last_id(node: Node) -> int:
    found: int = await node.database.pool.fetchval(
        "select coalesce(max(id), 0) from understudy.events"
    )
    return found


async def write(dsn: str, workspace_id: UUID, dice: Random, names: list[str]) -> None:
    """Transactions that stay open for a while; some are rolled back and leave gaps."""
    connection = await open_connection(dsn)
    for name in names:
        await connection.execute("begin")
        await connection.execute("select pg_current_xact_id()")
        await connection.execute(INSERT, workspace_id, name)
        await trio.sleep(dice.choice((0.0, 0.0, 0.002, 0.02)))
        await connection.execute("rollback" if dice.random() < 0.2 else "commit")
    connection.close()


async def test_nothing_is_missed_or_told_twice_while_commits_come_out_of_order(
    node: Node, dsn: str
) -> None:
    """Three readers, each losing its connection again and again, eight writers."""
    first, done = await last_id(node), trio.Event()
    heard: dict[int, list[int]] = {0: [], 1: [], 2: []}

    async def read(mine: list[int], dice: Random) -> None:
        while True:
            after = mine[-1] if mine else first
            async with reading(node, "/api/events", after) as events:
                for _ in range(dice.choice((1, 3, 20))):
                    event = await anext(events)
                    assert event.id is not None
                    mine.append(event.id)
                    if event.kind == "the end":
                        return

    async def write_all() -> None:
        async with trio.open_nursery() as writers:
            for writer in range(8):
                names = [f"{writer}.{number}" for number in range(25)]
                writers.start_soon(write, dsn, node.workspace.id, Random(writer), names)
        await node.database.pool.execute(INSERT, node.workspace.id, "the end")
        done.set()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_all)
            for reader, mine in heard.items():
                nursery.start_soon(read, mine, Random(reader))
    rows = await node.database.pool.fetch(
        "select id from understudy.events where id > $1 order by id", first
    )
    ids = [row["id"] for row in rows]
    assert len(ids) < 201
    assert heard == {0: ids, 1: ids, 2: ids}


async def test_what_happens_elsewhere_is_not_told(node: Node) -> None:
    elsewhere, first = uuid4(), await last_id(node)
    for kind, place in (("theirs", elsewhere), ("mine", node.workspace.id), ("theirs", elsewhere)):
        await node.database.pool.execute(INSERT, place, kind)
    written(node.site.cast.news)
    async with reading(node, "/api/events", first) as events:
        assert (await anext(events)).kind == "mine"
        await node.database.pool.execute(INSERT, node.workspace.id, "mine too")
        written(node.site.cast.news)
        with trio.fail_after(30):
            assert (await anext(events)).kind == "mine too"


async def test_a_node_that_stops_says_goodbye_to_every_reader(node: Node) -> None:
    async with reading(node, "/api/events") as events:
        node.site.stopping.set()
        with trio.fail_after(30):
            assert (await anext(events)).kind == "bye"
            assert [event async for event in events] == []


@pytest.mark.parametrize("position", ["x", "1.5", "-2", str(2**63), "9" * 5000, "1e3"])
async def test_a_position_that_is_none_is_refused(node: Node, position: str) -> None:
    for path in ("/api/events", f"/api/tasks/{uuid4()}/stream"):
        answer = await node.person.get(path, headers={"Last-Event-ID": position})
        assert answer.status_code in {400, 404}
        assert answer.json()["error"]
    answer = await node.person.get("/api/events", headers={"Last-Event-ID": position})
    assert answer.status_code == 400


async def running(node: Node) -> tuple[ClaimedTask, Holder]:
    await node.person.post("/api/agents", json={"name": "Nia", "provider": "scripted"})
    await node.person.post("/api/issues", json={"title": "A thing", "agent": "nia"})
    machine = runtimes.Machine(node.workspace.id, "d", "d", None)
    offer = runtimes.Offer("scripted", "r", "", "1", "online", None)
    (runtime,) = (await runtimes.register(node.database, machine, [offer])).runtimes
    (claim,) = (
        await claims.claim(node.database, runtime.id, slots=1, fence="full", claim_s=60)
    ).tasks
    holder = Holder(node.workspace.id, claim.id, claim.claim_token)
    await tasks.start(node.database, holder)
    return claim, holder


async def test_a_run_is_told_from_its_beginning_live_and_to_its_end(node: Node) -> None:
    """R11.4: history, then what is said meanwhile, then the end; and again from any position."""
    claim, _ = await running(node)
    said = f"/api/daemon/tasks/{claim.id}"
    held = {"claim_token": str(claim.claim_token)}

    async def say(*numbers: int) -> None:
        rows = [{"seq": number, "type": "text", "content": str(number)} for number in numbers]
        answer = await node.machine.post(f"{said}/messages", json=held | {"messages": rows})
        assert answer.status_code == 200, answer.text

    await say(0, 1)
    path = f"/api/tasks/{claim.id}/stream"
    async with reading(node, path) as events:
        with trio.fail_after(10):  # The end is told at once, not with the next ping.
            assert [(await anext(events)).id for _ in range(2)] == [0, 1]
            await say(2)
            assert (await anext(events)).data["content"] == "2"
            await node.machine.post(f"{said}/complete", json=held | {"output": "x"})
            await node.machine.post(f"{said}/messages", json=held | {"messages": []})
            end = [event async for event in events]
    assert [(event.kind, event.data["status"]) for event in end] == [("end", "completed")]
    async with reading(node, path, after=1) as events:
        assert [event.id async for event in events] == [2, None]


async def test_a_reader_that_goes_away_leaves_nothing_behind(node: Node) -> None:
    claim, holder = await running(node)
    rows = [Message(seq=number, type="text", content="x") for number in range(3)]
    await tasks.append_messages(node.database, holder, rows)
    for _ in range(5):
        async with reading(node, f"/api/tasks/{claim.id}/stream") as events:
            await anext(events)
        async with reading(node, "/api/events", 0) as events:
            await anext(events)
    with trio.fail_after(30):
        while node.site.cast._newest or waiting(node) > COURIER:  # noqa: ASYNC110  # Others end.
            await trio.sleep(0.01)


def waiting(node: Node) -> int:
    return node.site.cast.tail.mark._risen.statistics().tasks_waiting
