"""Recovery created recovery work without end.

Each restart gave up what the one before had begun, and began it once more. Here attempts are
counted in the row, and end; what brings its machine down twice is not tried again (R5.7, R6.10).
"""

from __future__ import annotations

from collections.abc import Callable

from understudy.store import sweeps, tasks
from understudy.testing.plays import works
from understudy.testing.scenario import Scenario
from understudy.testing.story import Story, held


def test_recovery_storm(enact: Callable[..., None]) -> None:
    """R5.3, R6.1, R6.10: a machine that comes back every minute and remembers nothing."""

    async def story(world: Scenario) -> None:
        laptop = await world.machine("laptop")
        issues = [await world.assign(f"Issue {number}", works(3600)) for number in range(3)]
        for _ in range(6):
            await world.pass_(60)
            laptop.lose_disk()
            laptop.start_daemon()
        for issue in issues:
            await issue.until("failed")
            assert await issue.outcome() == ["runtime_recovery", "poison"]
            assert issue.starts == 2

    enact(story)


async def take_all(story: Story) -> int:
    claims = await story.claim(slots=100)
    for claim in claims:
        await tasks.start(story.database, held(claim))
    return len(claims)


async def test_a_daemon_that_dies_again_and_again_does_each_task_twice_and_no_more(
    story: Story,
) -> None:
    """R5.7, R6.1, R6.10: attempts are durable; what is recovered twice is not recovered again."""
    await story.database.pool.execute("update understudy.agents set max_concurrent_tasks = 100")
    for number in range(30):
        await story.assigned(f"Issue {number}")
    runs = 0
    for _ in range(40):
        await sweeps.promote(story.database)
        runs += await take_all(story)
        await story.later(10)
        await story.give_up()
    assert runs == 60
    rows = await story.database.pool.fetch(
        "select failure_reason as r, attempt from understudy.tasks"
    )
    assert len(rows) == 60
    assert {(row["r"], row["attempt"]) for row in rows} == {("runtime_recovery", 1), ("poison", 2)}


async def test_the_retries_of_a_recovery_come_in_a_thin_stream(story: Story) -> None:
    """R5.7: 20 at once, then one every three seconds, whatever breaks at a time."""
    await story.database.pool.execute("update understudy.agents set max_concurrent_tasks = 100")
    for number in range(50):
        await story.assigned(f"Issue {number}")
    await take_all(story)
    await story.later(10)
    assert len(await story.give_up()) == 50
    assert await take_all(story) == 20
    taken = 0
    for _ in range(30):
        await story.later(3)
        await sweeps.promote(story.database)
        assert await take_all(story) == 1
        taken += 1
    assert taken == 30
