"""87,000 tasks queued for laptops that were closed.

A schedule that makes a task at each stroke of the clock, whether anybody can do it or not, makes
work for days. Here one task waits, however often the clock strikes, and it does not wait for ever
(R2.5; expire).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from understudy.core.leases import Leases
from understudy.store import sweeps
from understudy.store.database import Database
from understudy.testing.board import Board
from understudy.testing.plays import works
from understudy.testing.scenario import Rules, Scenario

DAYS: Final = 30
HOUR_S: Final = 3600.0
SCHEDULED: Final = (
    "select understudy.enqueue_task(gen_random_uuid(), i, a, 'schedule')"
    " from understudy.issues i, understudy.agents a where i.id = $1"
)


def test_cron_into_offline(enact: Callable[..., None]) -> None:
    """R2.5, R10.1: five hours of a closed laptop, and four strokes an hour."""

    async def story(world: Scenario) -> None:
        laptop = await world.machine("laptop")
        laptop.sleep(5 * HOUR_S + 120)
        await world.pass_(60)
        tidy = await world.assign("Tidy up", works(60))
        for _ in range(4 * 5):
            await world.database.pool.execute(SCHEDULED, tidy.issue_id)
            assert (await tidy.outcome()).count("queued") == 1
            await world.pass_(HOUR_S / 4)
        assert set(await tidy.outcome()) == {"queued_expired", "queued"}
        assert len(await tidy.tasks()) == 3
        await tidy.until("completed")
        assert tidy.starts == 1

    enact(story, rules=Rules(Leases(sweep_every_s=300.0, node_lease_s=150.0, node_renew_s=60.0)))


async def test_a_schedule_for_a_closed_laptop_piles_up_nothing(database: Database) -> None:
    """R2.5, spec section 2 (expire): one task waits, however often the clock strikes; it ends after
    2 h, says why, and is not tried again."""
    board = await Board.set_up(database)
    issue = await board.issue("Every quarter of an hour")
    for quarter in range(DAYS * 96):
        if quarter % 96 == 0:  # The expiry is tried once a day here; it comes every 30 s.
            assert await sweeps.expire(database, replace(Leases(), queued_max_s=0.0)) or not quarter
        await database.pool.execute(
            "select understudy.enqueue_task(md5($1::text)::uuid, i, a, 'schedule')"
            " from understudy.issues i, understudy.agents a where i.id = $2 and a.id = $3",
            str(quarter),
            issue.id,
            board.nia.id,
        )
    rows = await database.pool.fetch(
        "select status, failure_reason, count(*)::int as n from understudy.tasks group by 1, 2"
    )
    found = {(row["status"], row["failure_reason"]): row["n"] for row in rows}
    assert found == {("queued", None): 1, ("failed", "queued_expired"): DAYS - 1}


async def test_what_has_piled_up_expires_in_bounded_steps(database: Database) -> None:
    """R4.1: no sweep is one transaction of 87,000 rows."""
    board = await Board.set_up(database)
    await database.pool.execute(
        "insert into understudy.issues (id, workspace_id, number, title)"
        " select md5(n::text)::uuid, $1, n, 'Issue ' || n from generate_series(1, 450) n",
        board.workspace_id,
    )
    await database.pool.execute(
        "select count(*) from understudy.issues i, understudy.agents a,"
        " lateral understudy.enqueue_task(md5('t' || i.id)::uuid, i, a, 'schedule')",
    )
    leases = replace(Leases(), queued_max_s=0.0)
    steps = [len(await sweeps.expire(database, leases)) for _ in range(6)]
    assert steps == [100, 100, 100, 100, 50, 0]
