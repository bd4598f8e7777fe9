"""Lifecycles per second: over the websocket, and the same SQL driven by pgbench.

A lifecycle is claim, start, one message, complete: four transactions, each durable before it is
answered. The tasks wait in the queue beforehand. Over the websocket a claim is pushed and brings
up to twenty tasks at once; pgbench claims one by one, as a driver without a server would.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, final

import trio

from bench.backlog import Queue
from bench.cost import Bill, Run, typical
from bench.crew import open_crew
from bench.installation import Node, Tenant, make_tenant, open_node, open_store, postmaster_pid
from understudy.server import PLANS
from understudy.store.binaries import find_binaries
from understudy.store.embedded import EmbeddedServer

CREWS: Final = (1, 8, 32, 128)
CLIENTS: Final = (1, 4, 8)
SCRIPT: Final = Path(__file__).with_name("lifecycle.sql")
WARM_UP_S: Final = 0.5
FIRST_S: Final = 30.0
RATE_MAX: Final = 2500
"""Lifecycles a second that the queue is filled for."""
MICRO: Final = 1_000_000
OPTIONS: Final = " ".join(f"-c {name}={value}" for name, value in PLANS.items())
"""As the server's own sessions have them: a queue that grows is not planned well without."""


@dataclass(frozen=True)
class Lifecycles:
    """By the number of runs at once, and by pgbench's clients."""

    websocket: dict[int, Run]
    pgbench: dict[int, Run]
    why_no_pgbench: str | None


async def measure(server: EmbeddedServer, *, rounds: int, run_s: int) -> Lifecycles:
    program = find_pgbench()
    websocket: dict[int, list[Run]] = {size: [] for size in CREWS}
    pgbench: dict[int, list[Run]] = {clients: [] for clients in CLIENTS if program}
    async with AsyncExitStack() as stack:
        ours = await OurServer.open(server, stack)
        sql = await PlainSql.open(server, stack)
        for _ in range(rounds):
            for size, runs in websocket.items():
                runs.append(await ours.run(size, run_s))
            for clients, runs in pgbench.items():
                assert program is not None
                runs.append(await sql.run(program, clients, run_s))
    return Lifecycles(
        websocket={size: typical(runs) for size, runs in websocket.items()},
        pgbench={clients: typical(runs) for clients, runs in pgbench.items()},
        why_no_pgbench=None if program else "pgbench is neither beside postgres nor on PATH",
    )


def find_pgbench() -> Path | None:
    beside = find_binaries().directory / "pgbench"
    if beside.exists():
        return beside
    on_path = shutil.which("pgbench")
    return Path(on_path) if on_path else None


@final
@dataclass(frozen=True)
class OurServer:
    """`understudy serve` as a process, with a fake daemon in this one."""

    node: Node
    tenant: Tenant
    queue: Queue
    postmaster: int

    @classmethod
    async def open(cls, server: EmbeddedServer, stack: AsyncExitStack) -> OurServer:
        server.ensure_database("lifecycles")
        dsn = server.dsn("lifecycles")
        database = await stack.enter_async_context(open_store(dsn))
        tenant = await make_tenant(database)
        home = stack.enter_context(TemporaryDirectory(prefix="understudy-bench-"))
        node = await stack.enter_async_context(open_node(Path(home), dsn))
        queue = await Queue.open(database, tenant.workspace.id)
        return cls(node, tenant, queue, postmaster_pid(server))

    async def run(self, size: int, run_s: int) -> Run:
        await self.queue.fill(RATE_MAX * (run_s + 1))
        async with open_crew(self.node, self.tenant, size=size) as crew:
            with trio.fail_after(FIRST_S):
                await crew.has_begun.wait()
            await trio.sleep(WARM_UP_S)
            bill = Bill(self.postmaster, self.node.pid)
            crew.took_s.clear()
            await trio.sleep(run_s)
            return bill.settle(crew.took_s)


@final
@dataclass(frozen=True)
class PlainSql:
    """PostgreSQL alone, in a database of its own to which no server of ours listens."""

    dsn: str
    queue: Queue
    postmaster: int

    @classmethod
    async def open(cls, server: EmbeddedServer, stack: AsyncExitStack) -> PlainSql:
        server.ensure_database("pgbench")
        dsn = server.dsn("pgbench")
        database = await stack.enter_async_context(open_store(dsn))
        tenant = await make_tenant(database)
        queue = await Queue.open(database, tenant.workspace.id)
        return cls(dsn, queue, postmaster_pid(server))

    async def run(self, program: Path, clients: int, run_s: int) -> Run:
        await self.queue.fill(RATE_MAX * (run_s + 1))
        runtime_id = await self.queue.runtime()
        with TemporaryDirectory(prefix="understudy-bench-") as logs:
            command = [str(program), "--no-vacuum", "--protocol=prepared", f"--file={SCRIPT}"]
            command += [f"--client={clients}", f"--time={run_s}"]
            command += [f"--define=workspace={self.queue.agent.workspace_id}"]
            command += [f"--define=runtime={runtime_id}", "--log", f"--log-prefix={logs}/log"]
            bill = Bill(self.postmaster, None)
            await trio.run_process(
                [*command, self.dsn],
                stdout=subprocess.DEVNULL,
                capture_stderr=True,
                env={**os.environ, "PGOPTIONS": OPTIONS},
            )
            return bill.settle(_took_s(Path(logs)))


def _took_s(logs: Path) -> list[float]:
    """pgbench's log: client, transaction, microseconds, ..."""
    lines = [line for log in logs.iterdir() for line in log.read_text().splitlines()]
    return [int(line.split()[2]) / MICRO for line in lines]
