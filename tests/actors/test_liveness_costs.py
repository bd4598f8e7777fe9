"""What it costs the database that machines are there and have nothing to do (R4.3)."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest
import trio

from understudy.actors.courier import Courier
from understudy.actors.link import Link
from understudy.actors.node import NodeLease
from understudy.actors.sweepers import Sweepers, all_sweeps
from understudy.config import Home, ServerConfig
from understudy.core.tree import Branch
from understudy.testing.stage import Perform, Stage

MINUTES = 2
WRITERS = "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
"""The next transaction id: only who writes draws one."""


@pytest.mark.parametrize("machines", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_idle_machines_cost_the_database_less_than_a_write_a_second_however_many_they_are(
    perform: Perform, machines: int
) -> None:
    """R4.3: the node's own lease, and nothing for them."""

    async def play(stage: Stage) -> None:
        links = [await attached(stage, number) for number in range(machines)]
        async with trio.open_nursery() as nursery:
            await start_node(stage, nursery)
            await beat(stage, links, minutes=1)
            before = await stage.database.pool.fetchval(WRITERS)
            await beat(stage, links, minutes=MINUTES)
            written = await stage.database.pool.fetchval(WRITERS) - before
            nursery.cancel_scope.cancel()
        assert written <= MINUTES * 60
        online = "select count(*) from understudy.runtimes where status = 'online'"
        assert await stage.database.pool.fetchval(online) >= machines

    perform(play)


async def beat(stage: Stage, links: list[tuple[UUID, Link]], *, minutes: int) -> None:
    for _ in range(minutes * 4):
        for runtime_id, _ in links:
            assert stage.cast.heard(runtime_id)
        await trio.sleep(15)


async def attached(stage: Stage, number: int) -> tuple[UUID, Link]:
    row = await stage.board.runtime(f"daemon {number}")
    link = Link()
    link.grant(20)
    await stage.cast.attend(row)
    await stage.cast.attach(row.id, link)
    return row.id, link


async def start_node(stage: Stage, nursery: trio.Nursery) -> None:
    """All that runs on a node by itself."""
    config = ServerConfig(Home(Path("/nonexistent")))
    lease = NodeLease(stage.database, config, stage.cast.node_id, lambda _: None)
    listed = all_sweeps(stage.database, stage.cast.node_id, config.leases, lease.may_judge)
    sweepers = Sweepers(listed, lambda: stage.cast.committed(None))
    await nursery.start(lease.run)
    await nursery.start(sweepers.run, Branch("sweepers"))
    await nursery.start(Courier(stage.cast, sweepers).run)
