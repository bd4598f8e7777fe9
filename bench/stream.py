"""What it costs to stream an agent's output: through spool, link, server and database.

The agent is `cat` of a file, so its share is what `cat` of that file into another one takes.

    python -m bench.stream --mb 100
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final
from uuid import UUID

import click
import httpx2
import trio

from bench import machine
from bench.cost import MILLI
from bench.installation import (
    Unready,
    durable_server,
    make_tenant,
    open_client,
    open_daemon,
    open_node,
    open_store,
    postmaster_pid,
)
from understudy.core.lifecycle import TERMINAL
from understudy.store.connection import Record
from understudy.store.database import Database
from understudy.store.embedded import EmbeddedServer

MB: Final = 1_000_000
LINE: Final = 1000
CATS: Final = 5
RUN_S: Final = 300.0
POLL_S: Final = 0.05

TIMES: Final = """
select status, error, extract(epoch from completed_at - started_at)::float8 as took_s
from understudy.tasks where id = $1
"""
STORED: Final = """
select sum(octet_length(content))::float8 as bytes from understudy.task_messages where task_id = $1
"""


@dataclass(frozen=True)
class Stream:
    """`took_s`: from the server's leave to start to the report it has taken."""

    mb: int
    took_s: float
    cat_s: float
    cpu_s: dict[str, float]

    @property
    def mb_per_s(self) -> float:
        return self.mb / self.took_s


async def measure(server: EmbeddedServer, *, mb: int) -> Stream:
    server.ensure_database("stream")
    dsn = server.dsn("stream")
    with TemporaryDirectory(prefix="understudy-bench-") as name:
        printed = _write(Path(name, "printed"), mb)
        cat_s = median(_cat(printed, Path(name, "copy")) for _ in range(CATS))
        async with open_store(dsn) as database:
            tenant = await make_tenant(database)
            async with (
                open_node(Path(name, "server"), dsn) as node,
                open_daemon(Path(name, "daemon"), node, tenant) as daemon,
                open_client(node, tenant) as client,
            ):
                pids = {"server": node.pid, "daemon": daemon}
                before = _spent(pids, server)
                took_s = await _stream(database, client, printed)
                spent = {name: at - before[name] for name, at in _spent(pids, server).items()}
    return Stream(mb, took_s, cat_s, spent)


def sentences(found: Stream) -> Iterable[str]:
    yield f"{found.mb} MB of an agent's output, in lines of {LINE} bytes, into the database."
    yield (
        f"{found.mb_per_s:.1f} MB/s; `cat` into a file {found.mb / found.cat_s:.0f} MB/s:"
        f" x{found.took_s / found.cat_s:.0f} of its time."
    )
    shares = ", ".join(
        f"{name} {spent / found.mb * MILLI:.1f}" for name, spent in found.cpu_s.items()
    )
    yield f"CPU, ms per MB: {shares}; {sum(found.cpu_s.values()) / found.took_s:.1f} cores busy."


async def _stream(database: Database, client: httpx2.AsyncClient, printed: Path) -> float:
    """Seconds. Raises `Unready` where not each byte has arrived."""
    task_id = await assign(client, "Cat", ["cat", str(printed)])
    row = await _ended(database, task_id)
    stored = await database.pool.fetchrow(STORED, task_id)
    size = (await trio.Path(printed).stat()).st_size
    if row["status"] != "completed" or stored is None or stored["bytes"] != size - size // LINE:
        raise Unready(f"{size} bytes were printed, stored are {stored}; the run: {row}")
    took_s: float = row["took_s"]
    return took_s


async def _ended(database: Database, task_id: UUID) -> Record:
    with trio.fail_after(RUN_S):
        while True:
            row = await database.pool.fetchrow(TIMES, task_id)
            if row is not None and row["status"] in TERMINAL:
                return row
            await trio.sleep(POLL_S)


async def assign(client: httpx2.AsyncClient, name: str, program: list[str]) -> UUID:
    agent = {"name": name, "provider": "command", "custom_args": program}
    (await client.post("/api/agents", json=agent)).raise_for_status()
    made = await client.post("/api/issues", json={"title": "Print", "agent": name})
    return UUID(made.raise_for_status().json()["task"]["id"])


def _spent(pids: dict[str, int], server: EmbeddedServer) -> dict[str, float]:
    spent = {name: machine.cpu_s(pid) for name, pid in pids.items()}
    return {**spent, "PostgreSQL": machine.family_cpu_s(postmaster_pid(server))}


def _write(path: Path, mb: int) -> Path:
    dice = Random(7)  # noqa: S311
    lines = [dice.randbytes(LINE).hex()[: LINE - 1] + "\n" for _ in range(1000)]
    with path.open("w") as file:
        for _ in range(mb * MB // LINE // len(lines)):
            file.writelines(lines)
    return path


def _cat(source: Path, target: Path) -> float:
    began = time.perf_counter()
    with target.open("wb") as file:
        subprocess.run(["cat", str(source)], stdout=file, check=True)
    took_s = time.perf_counter() - began
    target.unlink()
    return took_s


@click.command()
@click.option("--mb", default=10, help="How much the agent prints.", show_default=True)
def main(*, mb: int) -> None:
    """Print what streaming costs on this machine."""
    with durable_server() as server:
        found = trio.run(partial(measure, server, mb=mb))
    click.echo("\n".join([*sentences(found), f"The load is {machine.load():.1f} now."]))


if __name__ == "__main__":
    main(prog_name="python -m bench.stream")
