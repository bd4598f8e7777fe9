"""PostgreSQL goes away under load and comes back: refused for a while, and nothing is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial
from itertools import count
from random import Random
from typing import Any

import httpx2
import pytest
import trio

from understudy.store import schema
from understudy.store.connection import open_connection
from understudy.store.database import Database
from understudy.store.embedded import EmbeddedServer
from understudy.store.pool import Pool
from understudy.testing.node import Node, open_node
from understudy.testing.postgres import kill_server, throwaway_database, throwaway_server


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    """Others share one, which must not be stopped under them. This one keeps what it confirms."""
    with throwaway_server(settings={"fsync": "off"}) as server:
        yield server


@pytest.fixture
async def frail(own_server: EmbeddedServer, nursery: trio.Nursery) -> AsyncIterator[Node]:
    with throwaway_database(own_server) as dsn:
        pool = Pool(partial(open_connection, dsn), size=4)
        async with pool.connection() as connection:
            await schema.bring_up(connection)
        async with open_node(dsn, Database(pool, Random(7))) as node:
            yield node
        await pool.aclose()


async def ask(client: httpx2.AsyncClient, path: str, body: object) -> Any:
    """The answer, or None where the server says: later."""
    with trio.fail_after(60):
        answer = await client.post(path, json=body)
    if answer.status_code == 503:
        assert int(answer.headers["Retry-After"]) > 0
        assert answer.json()["code"] == "unavailable"
        return None
    assert answer.is_success, answer.text
    return answer.json()


async def insist(client: httpx2.AsyncClient, path: str, body: object) -> Any:
    while True:
        if (answer := await ask(client, path, body)) is not None:
            return answer
        await trio.sleep(0.05)


class Load:
    """People that open issues and a machine that works them off; what each was promised."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.opened: set[str] = set()
        self.completed: set[str] = set()
        self.refused = 0
        self.numbers = count()

    async def open_issues(self) -> None:
        while True:
            body = {"title": f"Issue {next(self.numbers)}", "agent": "nia"}
            made = await ask(self.node.person, "/api/issues", body)
            if made is None:
                self.refused += 1
                await trio.sleep(0.05)
            else:
                self.opened.add(made["issue"]["id"])

    async def work(self, runtime_id: str) -> None:
        machine = self.node.machine
        while True:
            claim = await ask(machine, f"/api/daemon/runtimes/{runtime_id}/tasks/claim", {})
            if claim is None or claim["task"] is None:
                await trio.sleep(0.05)
                continue
            task = claim["task"]
            path, held = f"/api/daemon/tasks/{task['id']}", {"claim_token": task["claim_token"]}
            await insist(machine, f"{path}/start", held)
            done = await insist(machine, f"{path}/complete", held | {"output": task["id"]})
            assert done["status"] == "completed"
            self.completed.add(task["id"])

    async def run(self) -> None:
        body = {"name": "Nia", "provider": "scripted", "max_concurrent_tasks": 50}
        await self.node.person.post("/api/agents", json=body)
        body = {
            "workspace_id": str(self.node.workspace.id),
            "daemon_id": "d",
            "runtimes": [{"type": "scripted"}],
        }
        registered = await insist(self.node.machine, "/api/daemon/register", body)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(self.open_issues)
                nursery.start_soon(self.work, registered["runtimes"][0]["id"])

    async def wait_progress(self) -> None:
        wanted = len(self.completed) + 10
        with trio.fail_after(120):
            while len(self.completed) < wanted:  # noqa: ASYNC110  # It is counted elsewhere.
                await trio.sleep(0.05)


@pytest.mark.parametrize("end", [EmbeddedServer.stop, kill_server], ids=["stopped", "killed"])
async def test_nothing_acknowledged_is_lost_and_nobody_restarts_anything(
    frail: Node, own_server: EmbeddedServer, nursery: trio.Nursery, end: Any
) -> None:
    """R4.6, R11.3"""
    load = Load(frail)
    nursery.start_soon(load.run)
    await load.wait_progress()
    await trio.to_thread.run_sync(end, own_server)
    health = await frail.stranger.get("/api/health")
    assert (health.status_code, health.json()["status"]) == (503, "database_away")
    before = load.refused
    with trio.fail_after(60):
        while load.refused < before + 5:  # noqa: ASYNC110  # It is counted elsewhere.
            await trio.sleep(0.05)
    await trio.to_thread.run_sync(own_server.start)
    await load.wait_progress()
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await check(frail, load)


async def check(node: Node, load: Load) -> None:
    pool = node.database.pool
    issues = await pool.fetch("select id::text from understudy.issues")
    assert load.opened <= {row["id"] for row in issues}
    tasks = await pool.fetch(
        "select id::text from understudy.tasks where status = 'completed'"
        " and result ->> 'output' = id::text"
    )
    assert load.completed <= {row["id"] for row in tasks}
    twice = await pool.fetch(
        "select task_id from understudy.comments group by task_id having count(*) > 1"
    )
    assert twice == []
    assert (await node.stranger.get("/api/health")).status_code == 200
