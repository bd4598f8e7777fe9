"""Two server nodes on one database, a crowd at both, and one of them killed midway."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Final
from uuid import UUID

import httpx2
import pytest
import trio

from understudy.core.leases import Leases
from understudy.store import schema, tokens
from understudy.store.connection import open_connection
from understudy.store.database import Database
from understudy.store.pool import Pool
from understudy.store.tokens import Owner
from understudy.testing import crowd
from understudy.testing.board import PROVIDER, Board
from understudy.testing.postgres import throwaway_database, throwaway_server
from understudy.testing.processes import free_port

# `understudy serve` with claims that end sooner: $1 is the port, $2 the database, $3 the seconds.
HASTY_NODE: Final = """
import sys
from functools import partial
from pathlib import Path
from understudy.config import Home, ServerConfig
from understudy.core.leases import Leases
from understudy.server import run_node
from understudy.supervisor import run_tree

port, database_url, claim_s = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
leases = Leases(claim_s=claim_s, renew_every_s=claim_s / 4, renew_by_s=claim_s)
home = Home(Path("/nonexistent"))
config = ServerConfig(home, port=port, database_url=database_url, leases=leases)
sys.exit(run_tree(partial(run_node, config)))
"""
CAPABILITIES: Final = "claim-lease, fenced-reports"
POLL_S: Final = 0.1


@dataclass
class Node:
    address: str
    process: trio.Process
    http: httpx2.AsyncClient


@asynccontextmanager
async def open_node(dsn: str, key: str, *, claim_s: float, home: Path) -> AsyncIterator[Node]:
    port = free_port()
    arguments = ["-m", "understudy", "serve", "--port", str(port), "--database-url", dsn]
    if claim_s != Leases().claim_s:
        arguments = ["-c", HASTY_NODE, str(port), dsn, str(claim_s)]
    address = f"http://127.0.0.1:{port}"
    headers = {"Authorization": f"Bearer {key}", "X-Client-Capabilities": CAPABILITIES}
    with (home / f"{port}.log").open("wb") as log:
        process = await trio.lowlevel.open_process(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "UNDERSTUDY_HOME": str(home)},
        )
    try:
        async with httpx2.AsyncClient(
            base_url=address, headers=headers, trust_env=False, timeout=30
        ) as http:
            await _wait_ready(http, process)
            yield Node(address, process, http)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def _wait_ready(http: httpx2.AsyncClient, process: trio.Process) -> None:
    with trio.fail_after(60):
        while True:
            assert process.poll() is None, "a node has ended"
            try:
                if (await http.get("/api/health")).is_success:
                    return
            except httpx2.TransportError:
                pass
            await trio.sleep(POLL_S)


@dataclass
class Crowd:
    """What its claimers were given and told, until they have brought `count` tasks to an end."""

    count: int
    claims: list[dict[str, Any]] = field(default_factory=list)
    began: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    forgotten: list[dict[str, Any]] = field(default_factory=list)
    too_late: int = 0

    @property
    def is_done(self) -> bool:
        return self.ended.total() >= self.count


@dataclass
class Claimer:
    """A daemon that polls. When its node does not answer it turns to the next one."""

    nodes: list[Node]
    crowd: Crowd
    dice: Random
    runtime_id: str = ""
    moves: int = 0

    async def register(self, workspace_id: UUID, name: str) -> None:
        body = {
            "workspace_id": str(workspace_id),
            "daemon_id": name,
            "runtimes": [{"type": PROVIDER}],
        }
        answer = await self._ask("/api/daemon/register", body)
        self.runtime_id = answer.json()["runtimes"][0]["id"]

    async def work(self) -> None:
        while not self.crowd.is_done:
            for task in await self.claim(self.dice.randint(1, 4)):
                await self._run(task)

    async def claim(self, slots: int) -> list[dict[str, Any]]:
        body = {"runtime_ids": [self.runtime_id], "slots": slots}
        answer = await self._ask("/api/daemon/tasks/claim", body)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["tasks"]
        self.crowd.claims += found
        if not found:
            await trio.sleep(POLL_S)
        return found

    async def _run(self, task: dict[str, Any]) -> None:
        path, token = f"/api/daemon/tasks/{task['id']}", {"claim_token": task["claim_token"]}
        started = await self._ask(f"{path}/start", token)
        if started.status_code == 409:
            self.crowd.too_late += 1
            return
        assert started.status_code == 200, started.text
        self.crowd.began[task["id"]] += 1
        done = await self._ask(f"{path}/complete", {**token, "output": "x"})
        assert done.status_code == 200, done.text
        self.crowd.ended[task["id"]] += 1

    async def _ask(self, path: str, body: dict[str, Any]) -> httpx2.Response:
        """Until there is an answer: all of it may be asked twice."""
        while True:
            try:
                answer = await self.nodes[0].http.post(path, json=body)
                if answer.status_code < 500:
                    return answer
            except httpx2.TransportError:
                self.nodes = self.nodes[::-1]
                self.moves += 1
            await trio.sleep(POLL_S)


@pytest.fixture
async def board() -> AsyncIterator[tuple[Board, str, str]]:
    """With the address of its database, and a machine's key."""
    with (
        throwaway_server(settings=crowd.COMMIT_ORDERED) as server,
        throwaway_database(server) as dsn,
    ):
        pool = Pool(partial(open_connection, dsn), size=2)
        async with pool.connection() as connection:
            await schema.bring_up(connection)
        made = await Board.set_up(Database(pool, Random(1)))
        owner = Owner(user_id=made.user_id, workspace_id=made.workspace_id)
        yield made, dsn, await tokens.create(made.database, "daemon", owner)
        await pool.aclose()


async def kill_midway(victim: Claimer, everybody: Crowd) -> None:
    """Once half of the tasks are done. What the victim has just claimed there it forgets."""
    while everybody.ended.total() < everybody.count // 2:  # noqa: ASYNC110  A counter.
        await trio.sleep(0.01)
    while not everybody.forgotten:
        everybody.forgotten += await victim.claim(3)
    victim.nodes[0].process.kill()
    await victim.nodes[0].process.wait()


async def watch(database: Database, seen: list[str]) -> None:
    while True:
        seen += await crowd.over_their_limit(database)
        await trio.sleep(0.05)


async def work_through(crew: list[Claimer], everybody: Crowd, database: Database) -> list[str]:
    """To the end of the queue. Who was seen over its limit meanwhile."""
    seen = list[str]()
    async with trio.open_nursery() as watching:
        watching.start_soon(watch, database, seen)
        async with trio.open_nursery() as working:
            for claimer in crew[1:]:
                working.start_soon(claimer.work)
            await kill_midway(crew[0], everybody)
            await crew[0].work()
        watching.cancel_scope.cancel()
    return seen


@asynccontextmanager
async def open_crew(
    dsn: str, key: str, everybody: Crowd, *, claimers: int, claim_s: float
) -> AsyncIterator[list[Claimer]]:
    """Half of them at each of two nodes."""
    with TemporaryDirectory(prefix="understudy-") as home:
        node = partial(open_node, dsn, key, claim_s=claim_s, home=Path(home))
        async with node() as one, node() as other:
            pairs = [[one, other], [other, one]]
            yield [Claimer(pairs[n % 2], everybody, Random(n)) for n in range(claimers)]


@pytest.mark.parametrize(
    ("claimers", "count", "claim_s"),
    [(8, 240, 3.0), pytest.param(32, 5000, Leases().claim_s, marks=pytest.mark.slow)],
)
async def test_a_node_that_is_killed_among_a_crowd_costs_no_task(
    board: tuple[Board, str, str], claimers: int, count: int, claim_s: float
) -> None:
    """R3.1 to R3.4, R3.8, R6.3: its claimers go to the other node, its claims come back."""
    here, dsn, key = board
    agents = await crowd.hire(here)
    await crowd.fill(here, agents, tasks=count)
    everybody = Crowd(count)
    with trio.fail_after(600):
        async with open_crew(dsn, key, everybody, claimers=claimers, claim_s=claim_s) as crew:
            for number, claimer in enumerate(crew):
                await claimer.register(here.workspace_id, f"claimer {number}")
            began = time.perf_counter()
            assert await work_through(crew, everybody, here.database) == []
            took_s = time.perf_counter() - began
    given = {task["claim_token"] for task in everybody.claims}
    assert len(given) == len(everybody.claims)
    assert set(everybody.began.values()) == set(everybody.ended.values()) == {1}
    assert len(everybody.ended) == count
    requeued = await crowd.requeued(here.database)
    assert requeued >= len(everybody.forgotten) >= 1
    assert {claimer.moves for claimer in crew[::2]} == {1}
    assert await crowd.wrongs(here.database, agents, tasks=count) == []
    print(  # noqa: T201  `pytest -s` shows it.
        f"{claimers} claimers, {count} tasks, two nodes and then one: {took_s:.1f} s,"
        f" {count / took_s:.0f} lifecycles/s; {requeued} claims came back,"
        f" {everybody.too_late} had expired when their run was to start"
    )
