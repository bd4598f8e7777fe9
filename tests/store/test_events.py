"""Events on a real server: one for every change, in the order of the commits (R2.4)."""

from __future__ import annotations

import pytest
import trio

from understudy.core.lifecycle import EVENT_KIND, Status
from understudy.store import events, tasks
from understudy.store.connection import open_connection
from understudy.store.database import Database
from understudy.store.tasks import Holder
from understudy.testing.board import Board

OTHERS = (
    "insert into understudy.events (workspace_id, kind, payload)"
    " values (gen_random_uuid(), $1, '{}')"
)


@pytest.fixture
async def board(database: Database) -> Board:
    return await Board.set_up(database)


async def test_every_status_has_its_event(database: Database) -> None:
    """R2.4: what core/lifecycle.py promises is what the trigger writes."""
    source = await database.pool.fetchval(
        "select prosrc from pg_proc where proname = 'record_task'"
    )
    for status in Status:
        kind = EVENT_KIND[status]
        assert kind == f"task:{status}" or f"'{kind}'" in source


async def test_a_change_that_is_rolled_back_leaves_no_event(
    database: Database, board: Board
) -> None:
    """R2.3, R2.4"""
    before = await events.last_id(database)
    with pytest.raises(ZeroDivisionError):
        async with database.pool.transaction() as connection:
            await connection.execute("update understudy.issues set status = 'done'")
            await connection.execute("update understudy.agents set max_concurrent_tasks = 1")
            raise ZeroDivisionError
    assert await events.last_id(database) == before


async def test_a_page_says_what_was_open_when_it_was_read(database: Database, dsn: str) -> None:
    held = await open_connection(dsn)
    start = await events.last_id(database)
    async with held.transaction():
        await held.execute(OTHERS, "held")
        await database.pool.execute(OTHERS, "free")
        page = await events.page_after(database, start, rows_max=100)
        assert [event.kind for event in page.events] == ["free"]
        assert page.oldest_open < page.next_new
    after = await events.page_after(database, start, rows_max=100)
    assert [event.kind for event in after.events] == ["held", "free"]
    assert after.oldest_open > page.oldest_open
    held.close()


async def test_two_events_of_one_task_are_in_the_order_of_their_commits(
    database: Database, board: Board
) -> None:
    """Whoever draws the id has the row's lock."""
    claims = [claim for n in range(6) for claim in await board.dispatched(f"Issue {n}")]

    async def play(holder: Holder) -> None:
        await tasks.start(database, holder)
        for step in range(5):
            await tasks.set_progress(database, holder, {"step": step})

    async with trio.open_nursery() as nursery:
        for claim in claims:
            holder = Holder(board.workspace_id, claim.task.id, claim.claim_token)
            nursery.start_soon(play, holder)
            nursery.start_soon(tasks.start, database, holder)
    for claim in claims:
        rows = await database.pool.fetch(
            "select kind, payload ->> 'step' as step from understudy.events"
            " where task_id = $1 order by id",
            claim.task.id,
        )
        assert [row["kind"] for row in rows][:3] == ["task:queued", "task:dispatch", "task:running"]
        assert [row["step"] for row in rows][3:] == list("01234")
