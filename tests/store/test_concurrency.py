"""Two at once on a real server, where they meet; test_crowd.py has many."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from random import Random
from uuid import uuid4

import pytest
import trio

from understudy.core.failures import FailureReason
from understudy.store import issues, tasks
from understudy.store.connection import open_connection
from understudy.store.database import Database
from understudy.store.pool import Pool
from understudy.store.tasks import Failure, Holder
from understudy.testing.board import Board, Claim

CONNECTIONS = 8
REPORT = {"session_id": None, "work_dir": None}


@pytest.fixture
async def crowd(dsn: str, database: Database) -> AsyncIterator[Board]:
    """A board with a connection for everybody."""
    pool = Pool(partial(open_connection, dsn), size=CONNECTIONS)
    yield await Board.set_up(Database(pool, Random(1)))
    await pool.aclose()


def held(claim: Claim) -> Holder:
    return Holder(claim.task.workspace_id, claim.task.id, claim.claim_token)


async def test_the_last_two_of_an_issue_that_end_together_move_it_on(crowd: Board) -> None:
    """R2.3, R5.6: each sees the other still at work, unless they take turns."""
    database = crowd.database
    other = await crowd.agent("Zed", max_concurrent_tasks=1000)
    for number in range(25):
        issue = await crowd.issue(f"Issue {number}")
        await crowd.assign(issue)
        await crowd.assign(issue, other)
        claims = await crowd.claim(slots=2)
        for claim in claims:
            await tasks.start(database, held(claim))
        first, second = claims
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                partial(tasks.complete, database, held(first), {"output": "x"}, **REPORT)
            )
            failure = Failure(FailureReason.AUTH, "x")
            nursery.start_soon(partial(tasks.fail, database, held(second), failure, **REPORT))
        found = await issues.find(database, crowd.workspace_id, issue.key)
        assert found is not None
        assert found.status in {"todo", "in_review"}


async def test_assigning_and_starting_at_once_do_not_deadlock(crowd: Board) -> None:
    """Both need the issue and the task; whoever waits, waits in one order."""
    database = crowd.database
    other = await crowd.agent("Zed", max_concurrent_tasks=1000)
    for number in range(25):
        issue = await crowd.issue(f"Issue {number}")
        await crowd.assign(issue)
        (claim,) = await crowd.claim()
        await crowd.assign(issue, other)
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(crowd.assign, issue)
                nursery.start_soon(crowd.assign, issue, other)
            nursery.start_soon(tasks.start, database, held(claim))
        for each in [claim, *await crowd.claim(slots=10)]:
            reason = FailureReason.AUTH
            await tasks.fail(database, held(each), Failure(reason, "x"), **REPORT)


async def test_a_claim_waits_for_another_of_the_same_agent(crowd: Board, dsn: str) -> None:
    """R3.2, R3.3: else an urgent task that comes in between would be one too many."""
    narrow = await crowd.agent("Narrow", max_concurrent_tasks=1)
    await crowd.assign(await crowd.issue("Old"), narrow)
    other = await crowd.runtime("other-daemon")
    taken: list[Claim] = []

    async def claim() -> None:
        taken.extend(await crowd.claim(runtime_id=other.id))

    first = await open_connection(dsn)
    async with trio.open_nursery() as nursery, first.transaction():
        rows = await first.fetch(
            "select id from understudy.claim_tasks($1, $2, 'full', interval '60 s')",
            crowd.runtime_id,
            [uuid4()],
        )
        assert len(rows) == 1
        await crowd.assign(await crowd.issue("Urgent", priority=4), narrow)
        nursery.start_soon(claim)
        with trio.fail_after(30):
            while not taken and not await is_somebody_waiting(crowd.database):  # noqa: ASYNC110
                await trio.sleep(0.01)
    first.close()
    assert taken == []


async def is_somebody_waiting(database: Database) -> bool:
    found: bool = await database.pool.fetchval(
        "select exists (select from pg_stat_activity"
        " where wait_event_type = 'Lock' and datname = current_database())"
    )
    return found
