"""From an assignment to the agent's process: how long a person waits for something to happen.

A server and a daemon as processes of their own, on a machine that does nothing else, and one
assignment after the other. The agent is `date +%s.%N`: what it prints is when it was started, so
every time below is read from the same clock, the system's.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final
from uuid import UUID

import httpx2
import trio

from bench.cost import MILLI, percentile_99
from bench.installation import Unready, make_tenant, open_client, open_daemon, open_node, open_store
from understudy.core.lifecycle import TERMINAL, Status
from understudy.store.connection import Record
from understudy.store.database import Database
from understudy.store.embedded import EmbeddedServer

AGENT: Final = {"name": "Date", "provider": "command", "custom_args": ["date", "+%s.%N"]}
WARM_UP: Final = 3
QUIET_S: Final = 0.1
UNTOUCHED_S: Final = 0.3
"""After an assignment nobody asks for anything while the agent is being started."""
POLL_S: Final = 0.02
RUN_S: Final = 30.0

TIMES: Final = """
select status, error, result ->> 'output' as output,
       extract(epoch from created_at)::float8 as created_at,
       extract(epoch from dispatched_at)::float8 as claimed_at,
       extract(epoch from started_at)::float8 as started_at,
       extract(epoch from completed_at)::float8 as completed_at
from understudy.tasks where id = $1
"""


@dataclass(frozen=True)
class Start:
    """Milliseconds since just before the request was sent."""

    enqueued: float
    claimed: float
    answered: float
    accepted: float
    """The daemon has prepared the directory, and the server has taken its `start`."""
    process: float
    completed: float
    """The server has taken the report of a program that ended at once."""


STEPS: Final = tuple(field.name for field in fields(Start))


@dataclass(frozen=True)
class Quantiles:
    p50: float
    p99: float
    worst: float


@dataclass(frozen=True)
class Starts:
    runs: int
    steps: dict[str, Quantiles]


async def measure(server: EmbeddedServer, *, plain: int, in_repository: int) -> dict[str, Starts]:
    server.ensure_database("starts")
    with TemporaryDirectory(prefix="understudy-bench-") as name:
        repository = _make_repository(Path(name, "project")) if in_repository else None
        async with _installation(server.dsn("starts"), Path(name)) as (database, client):
            found = {"no repository": await _starts(database, client, plain, None)}
            if repository is not None:
                found["git worktree"] = await _starts(database, client, in_repository, repository)
            return found


@asynccontextmanager
async def _installation(dsn: str, home: Path) -> AsyncIterator[tuple[Database, httpx2.AsyncClient]]:
    async with open_store(dsn) as database:
        tenant = await make_tenant(database)
        async with (
            open_node(home / "server", dsn) as node,
            open_daemon(home / "daemon", node, tenant),
            open_client(node, tenant) as client,
        ):
            (await client.post("/api/agents", json=AGENT)).raise_for_status()
            yield database, client


async def _starts(
    database: Database, client: httpx2.AsyncClient, runs: int, repository: Path | None
) -> Starts:
    starts = [await _start(database, client, repository) for _ in range(WARM_UP + runs)][WARM_UP:]
    return Starts(runs, {step: _quantiles([getattr(s, step) for s in starts]) for step in STEPS})


async def _start(database: Database, client: httpx2.AsyncClient, repository: Path | None) -> Start:
    place = {"repository": str(repository)} if repository else {}
    made = await client.post("/api/issues", json={"title": "What time is it?", **place})
    path = f"/api/issues/{made.raise_for_status().json()['issue']['key']}/assign"
    await trio.sleep(QUIET_S)
    asked_at = _now()
    answer = await client.post(path, json={"agent": "Date"})
    answered_at = _now()
    await trio.sleep(UNTOUCHED_S)
    row = await _ended(database, UUID(answer.raise_for_status().json()["task"]["id"]))

    def ms(at: float) -> float:
        return (at - asked_at) * MILLI

    return Start(
        enqueued=ms(row["created_at"]),
        claimed=ms(row["claimed_at"]),
        answered=ms(answered_at),
        accepted=ms(row["started_at"]),
        process=ms(float(row["output"])),
        completed=ms(row["completed_at"]),
    )


async def _ended(database: Database, task_id: UUID) -> Record:
    row: Record | None = None
    with trio.move_on_after(RUN_S):
        while row is None or row["status"] not in TERMINAL:
            await trio.sleep(POLL_S)
            row = await database.pool.fetchrow(TIMES, task_id)
    if row is None or row["status"] != Status.COMPLETED:
        raise Unready(f"the task did not complete within {RUN_S:.0f} s: {row}")
    return row


def _quantiles(values: list[float]) -> Quantiles:
    return Quantiles(median(values), percentile_99(values), max(values))


def _now() -> float:
    return time.clock_gettime(time.CLOCK_REALTIME)


def _make_repository(path: Path) -> Path:
    """One commit, a hundred files."""
    path.mkdir()
    for number in range(100):
        (path / f"file-{number}.txt").write_text(f"{number}\n" * 100)
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    for arguments in (
        ["init", "--quiet", "--initial-branch=main"],
        ["add", "."],
        [*identity, "commit", "--quiet", "--message=Begin"],
    ):
        subprocess.run(["git", *arguments], cwd=path, check=True)
    return path
