"""What a machine pays for being there: a daemon with nothing to do, and a keeper beside its agent.

python -m bench.idle --runtimes 10 --keepers 10
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from math import nan
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final
from uuid import UUID

import click
import httpx2
import trio

from bench import machine
from bench.installation import (
    durable_server,
    make_tenant,
    open_client,
    open_daemon,
    open_node,
    open_store,
)
from bench.stream import POLL_S, RUN_S, assign
from understudy.config import Home
from understudy.daemon.rundir import STATE
from understudy.store.embedded import EmbeddedServer

SETTLED_S: Final = 12.0
"""It has just started, and looks around; trio's threads end after 10 s without work."""


@dataclass(frozen=True)
class Memory:
    """In KiB. Rss: with what it shares; Pss: with its share of that; private: it alone."""

    rss: float
    pss: float
    private: float


@dataclass(frozen=True)
class Idle:
    runtimes: int
    idle_s: float
    cpu: float
    """Of one core, by the daemon."""
    daemon: Memory
    keepers: list[Memory]


async def measure(server: EmbeddedServer, *, runtimes: int, idle_s: float, keepers: int) -> Idle:
    """`idle_s`: at least a heartbeat, which comes every 15 s."""
    server.ensure_database("idle")
    dsn = server.dsn("idle")
    with TemporaryDirectory(prefix="understudy-bench-") as name:
        clis, home = Path(name, "clis"), Path(name, "daemon")
        program = ("bench.wide_daemon", str(clis), str(runtimes))
        async with open_store(dsn) as database:
            tenant = await make_tenant(database)
            async with (
                open_node(Path(name, "server"), dsn) as node,
                open_daemon(home, node, tenant, program=program) as daemon,
                open_client(node, tenant) as client,
            ):
                cpu = await _cpu(daemon, idle_s)
                memory = _memory(daemon)
                found = await _keepers(client, Home(home).daemon / "runs", keepers)
                offered = len((await client.get("/api/runtimes")).json())
    return Idle(offered, idle_s, cpu, memory, found)


def sentences(found: Idle) -> Iterable[str]:
    yield (
        f"A daemon with {found.runtimes} runtimes and nothing to do: {found.cpu:.3%} of a core"
        f" (over {found.idle_s:.0f} s)."
    )
    yield f"Its memory, MiB: {_sizes([found.daemon])}."
    yield f"A keeper's, MiB, the median of {len(found.keepers)}: {_sizes(found.keepers)}."


def _sizes(found: list[Memory]) -> str:
    rss = median(each.rss for each in found) / 1024
    pss = median(each.pss for each in found) / 1024
    private = median(each.private for each in found) / 1024
    return f"RSS {rss:.1f}, PSS {pss:.1f}, private {private:.1f}"


async def _cpu(pid: int, idle_s: float) -> float:
    await trio.sleep(SETTLED_S)
    before = _scheduled_s(pid)
    await trio.sleep(idle_s)
    after = _scheduled_s(pid)
    if not after:
        return nan
    return sum(at - before.get(thread, 0.0) for thread, at in after.items()) / idle_s


def _scheduled_s(pid: int) -> dict[str, float]:
    """What each thread has had of a core, by the nanosecond; none where the kernel does not say."""
    try:
        return {
            path.parent.name: int(path.read_text().split()[0]) / 1e9
            for path in (machine.PROC / str(pid)).glob("task/*/schedstat")
        }
    except OSError:
        return {}


async def _keepers(client: httpx2.AsyncClient, runs: Path, count: int) -> list[Memory]:
    """All at once, each with an agent of its own."""
    tasks = [await assign(client, f"Sleeper {n}", ["sleep", "600"]) for n in range(count)]
    states = [runs / str(task_id) / STATE for task_id in tasks]
    with trio.fail_after(RUN_S):
        found = [_memory(await _wait_keeper(state)) for state in states]
        await _cancel(client, tasks)
        for state in states:
            while state.exists():  # noqa: ASYNC110  A file; its run is reported when it is gone.
                await trio.sleep(POLL_S)
    return found


async def _cancel(client: httpx2.AsyncClient, tasks: list[UUID]) -> None:
    for task_id in tasks:
        (await client.post(f"/api/tasks/{task_id}/cancel")).raise_for_status()


async def _wait_keeper(state: Path) -> int:
    while (pid := _keeper(state)) is None:  # noqa: ASYNC110  A file.
        await trio.sleep(POLL_S)
    return pid


def _keeper(state: Path) -> int | None:
    """Once its agent is at work."""
    if not state.exists():
        return None
    told = json.loads(state.read_text())
    return None if told["agent_pid"] is None else int(told["keeper_pid"])


def _memory(pid: int) -> Memory:
    """nan where the kernel does not say (no /proc)."""
    try:
        lines = (machine.PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return Memory(nan, nan, nan)
    told = {
        name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines[1:])
    }
    return Memory(told["Rss"], told["Pss"], told["Private_Clean"] + told["Private_Dirty"])


@click.command()
@click.option("--runtimes", default=10, help="How many the daemon offers.", show_default=True)
@click.option("--seconds", default=60.0, help="How long it is left alone.", show_default=True)
@click.option("--keepers", default=10, help="How many agents run then.", show_default=True)
def main(*, runtimes: int, seconds: float, keepers: int) -> None:
    """Print what a daemon that has nothing to do costs, and each keeper once it has.

    A daemon has one runtime for each agent CLI it finds: as many stand-ins are put on its PATH.
    """
    with durable_server() as server:
        found = trio.run(
            partial(measure, server, runtimes=runtimes, idle_s=seconds, keepers=keepers)
        )
    click.echo("\n".join([*sentences(found), f"The load is {machine.load():.1f} now."]))


if __name__ == "__main__":
    main(prog_name="python -m bench.idle")
