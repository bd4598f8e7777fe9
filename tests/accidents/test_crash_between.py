"""The server died between commit and side effects; the retry and the comment were never made.

What is done after the commit, by whoever has committed, is not done when he dies. Here it is in the
commit (R2.3); tests/store/test_atomicity.py interrupts every move.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

import pytest
import trio

from understudy.core.lifecycle import Status
from understudy.store import issues, tasks
from understudy.store.connection import open_connection
from understudy.store.database import Database
from understudy.store.embedded import EmbeddedServer
from understudy.store.errors import DatabaseUnavailable
from understudy.store.pool import Pool
from understudy.testing.plays import fails, works
from understudy.testing.postgres import kill_server
from understudy.testing.scenario import Scenario
from understudy.testing.story import Story, everything
from understudy.wire.daemon import ClaimedTask


def test_crash_between(enact: Callable[..., None]) -> None:
    """R2.3: it dies with the statement, before it can do anything else."""

    async def story(world: Scenario) -> None:
        await world.machine("laptop")
        fix = await world.assign("Fix the parser", works(10, says="Fixed."))
        world.once_done("complete_task", world.server.kill)
        await fix.until("completed")
        assert await fix.comments() == ["Fixed."]
        assert await fix.status() == "in_review"
        world.server.start()
        write = await world.assign("Write it down", fails("provider_network"), works(10))
        world.once_done("fail_task", world.server.kill)
        await world.until(lambda: not world.server.is_up)
        assert await write.outcome() == ["provider_network", "queued"]
        world.server.start()
        await write.until("completed")
        assert (fix.starts, write.starts) == (1, 2)

    enact(story)


async def after_the_crash(dsn: str, server: EmbeddedServer) -> Pool:
    """The server is killed and comes back; nobody has done anything since the commit."""
    kill_server(server)
    await trio.to_thread.run_sync(server.start)
    return Pool(partial(open_connection, dsn), size=1)


async def end(story: Story, claim: ClaimedTask, verb: str) -> None:
    if verb == "complete":
        await story.complete(claim, "Written.")
    else:
        await story.fail(claim, "timeout")


@pytest.mark.parametrize("verb", ["complete", "fail"])
async def test_what_follows_a_commit_is_in_the_commit(
    story: Story, dsn: str, server: EmbeddedServer, verb: str
) -> None:
    """R2.3: nothing is left to be done by a server that may die first."""
    issue = await story.assigned()
    claim = await story.running(issue)
    await story.database.pool.execute("set synchronous_commit = on")
    await end(story, claim, verb)
    pool = await after_the_crash(dsn, server)
    database = Database(pool, Random(1))
    rows = await tasks.of_issue(database, issue.id)
    said = await issues.comments(database, issue.id)
    found = await issues.get(database, issue.workspace_id, issue.id)
    await pool.aclose()
    assert found is not None
    if verb == "complete":
        assert [row.status for row in rows] == [Status.COMPLETED]
        assert [each.body for each in said] == ["Written."]
        assert found.status == "in_review"
    else:
        assert {row.status for row in rows} == {Status.FAILED, Status.QUEUED}
        assert found.status == "in_progress"


@pytest.mark.parametrize("verb", ["complete", "fail"])
async def test_a_server_that_dies_before_the_commit_has_done_nothing(
    story: Story, dsn: str, database: Database, verb: str
) -> None:
    """R2.3: the report is sent again and does the whole of it, once."""
    issue = await story.assigned()
    claim = await story.running(issue)
    before = await everything(database)
    blocker = await open_connection(dsn)
    async with blocker.transaction(), trio.open_nursery() as nursery:
        # Agents are the last thing it waits for: all else is written by then.
        await blocker.execute("select from understudy.agents for no key update")
        nursery.start_soon(kill_whoever_waits, database)
        with pytest.raises(DatabaseUnavailable):
            await end(story, claim, verb)
    blocker.close()
    assert await everything(database) == before
    await end(story, claim, verb)
    rows = await tasks.of_issue(database, issue.id)
    assert len(rows) == (1 if verb == "complete" else 2)
    assert len(await issues.comments(database, issue.id)) == (1 if verb == "complete" else 0)


async def kill_whoever_waits(database: Database) -> None:
    with trio.fail_after(30):
        while not await database.pool.fetchval(  # noqa: ASYNC110
            "select count(pg_terminate_backend(pid)) from pg_stat_activity"
            " where wait_event_type = 'Lock' and datname = current_database()"
        ):
            await trio.sleep(0.01)
