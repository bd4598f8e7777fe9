"""160 runs burned against an exhausted quota.

A run that fails for want of quota is tried again, and each of the others finds out by itself. Here
the first that find out park themselves and their machine until the quota is back (R5.2).
"""

from __future__ import annotations

from collections.abc import Callable

from understudy.store import sweeps, tasks
from understudy.testing.plays import fails, works
from understudy.testing.scenario import Scenario
from understudy.testing.story import Story, held


def test_quota_refire(enact: Callable[..., None]) -> None:
    """R5.2: twelve issues, of which an agent works at three at a time."""

    async def story(world: Scenario) -> None:
        await world.agent("Nia", max_concurrent_tasks=3)
        await world.machine("laptop")
        exhausted = fails("quota_exhausted", after_s=5, retry_after_s=600)
        issues = [await world.assign("Issue 0", exhausted, works(5))]
        issues += [await world.assign(f"Issue {n}", exhausted, works(5)) for n in range(1, 3)]
        issues += [await world.assign(f"Issue {n}", works(5)) for n in range(3, 12)]
        await world.pass_(600)
        assert sum(issue.starts for issue in issues) == 3
        assert "quota" in await issues[-1].why()
        for issue in issues:
            await issue.until("completed")
        assert sum(issue.starts for issue in issues) == 3 + 12

    enact(story)


async def runs_until(story: Story, end_s: float) -> int:
    """How many runs a machine begins that asks every minute, each of them for nothing."""
    runs = 0
    while story.at_s < end_s:
        await sweeps.promote(story.database)
        for claim in await story.claim(slots=20):
            assert (await tasks.start(story.database, held(claim))).task
            await story.fail(claim, "quota_exhausted", retry_after_s=end_s - story.at_s)
            runs += 1
        await story.later(60)
    return runs


async def test_an_exhausted_quota_is_tried_by_one_handful_and_again_after_its_reset(
    story: Story,
) -> None:
    """R5.2: 160 issues wait for five hours; what was in flight found it out, nothing more."""
    for number in range(160):
        await story.assigned(f"Issue {number}")
    reset_s = 5 * 3600.0
    assert await runs_until(story, reset_s) == story.board.nia.max_concurrent_tasks
    await story.later(60)
    await sweeps.promote(story.database)
    statuses = await story.database.pool.fetch(
        "select status, count(*) as n from understudy.tasks group by 1"
    )
    assert {row["status"]: row["n"] for row in statuses} == {"failed": 6, "queued": 160}
    assert len(await story.claim(slots=20)) == story.board.nia.max_concurrent_tasks


async def test_a_task_whose_quota_never_comes_back_ends(story: Story) -> None:
    """R5.2, R5.3: five attempts in all."""
    issue = await story.assigned()
    for _ in range(5):
        await story.fail(await story.running(issue), "quota_exhausted", retry_after_s=600.0)
        await story.later(700)
        await sweeps.promote(story.database)
    assert await story.claim() == []
    assert await story.status(issue) == "todo"
