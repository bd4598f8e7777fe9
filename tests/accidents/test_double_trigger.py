"""Assign plus mention gave 12 runs where 5 were needed.

Each way to start an agent made a task of its own. Here one waits for each agent on an issue, and
whatever comes meanwhile is said to it (R2.5, R10.1, R10.2).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from random import Random

import trio

from understudy.store import issues, tasks
from understudy.store.connection import open_connection
from understudy.store.database import Database
from understudy.store.pool import Pool
from understudy.testing.plays import works
from understudy.testing.scenario import Scenario
from understudy.testing.story import Story


def test_double_trigger(enact: Callable[..., None]) -> None:
    """R2.5, R10.1, R10.2: five issues, assigned and mentioned twice before a machine is there."""

    async def story(world: Scenario) -> None:
        issues = [await world.assign(f"Issue {number}", works(30)) for number in range(5)]
        for issue in issues:
            await issue.comment("Please do this, @Nia.")
            await issue.assign("Nia")
            await issue.comment("I mean you, @Nia.")
        await world.machine("laptop")
        for issue in issues:
            await issue.until("completed")
        assert sum(issue.starts for issue in issues) == 5
        assert [await issue.outcome() for issue in issues] == [["completed"]] * 5

    enact(story)


async def test_five_issues_assigned_mentioned_and_assigned_again_are_five_runs(
    story: Story,
) -> None:
    """R10.1, R10.2, R2.5: in whichever order, however often."""
    for number in range(5):
        issue = await story.board.issue(f"Issue {number}")
        steps: list[Callable[[], Awaitable[object]]] = [
            partial(story.board.assign, issue),
            partial(story.says, issue, "@Nia please do this"),
            partial(story.says, issue, "@nia, I mean you"),
        ]
        Random(number).shuffle(steps)
        for step in [*steps, *steps]:
            await step()
    runs = 0
    while claims := await story.claim(slots=10):
        runs += len(claims)
        for claim in claims:
            await tasks.start(
                story.database, tasks.Holder(claim.workspace_id, claim.id, claim.claim_token)
            )
            await story.complete(claim)
    assert runs == 5


async def test_what_is_asked_all_at_once_is_one_run(story: Story, dsn: str) -> None:
    """R10.1, R10.2, R2.5: by people who do not know of each other; each comment is heard."""
    pool = Pool(partial(open_connection, dsn), size=8)
    crowd = story.board.on(Database(pool, Random(3)))
    for number in range(10):
        issue = await crowd.issue(f"Issue {number}")
        author = issues.Author(user_id=crowd.user_id)
        async with trio.open_nursery() as nursery:
            for each in range(4):
                nursery.start_soon(crowd.assign, issue)
                body = f"@Nia comment {each}"
                nursery.start_soon(issues.add_comment, crowd.database, issue, body, author)
        assert len(await tasks.of_issue(crowd.database, issue.id)) == 1
        (claim,) = await story.claim()
        told = claim.trigger_comment_content or ""
        assert sorted(told.split("\n\n")) == [f"Ada: @Nia comment {each}" for each in range(4)]
        await story.cancel(claim.id)
    await pool.aclose()
