"""What a daemon's process leaves behind when another one takes its place."""

from __future__ import annotations

import pytest

from understudy.core.lifecycle import Status
from understudy.store import sweeps
from understudy.testing.story import Story


async def test_recovery_fails_what_the_new_process_does_not_name_and_nothing_else(
    story: Story,
) -> None:
    """R6.1, R6.2: another runtime's work is not its business."""
    for _ in range(4):
        await story.assigned()
    kept, orphan, claimed = (
        [await story.running(await story.assigned()) for _ in range(2)],
        *(await story.claim(slots=2)),
    )
    del claimed
    other = await story.board.runtime("other-daemon")
    foreign = await story.claimed(runtime_id=other.id)
    await story.later(1)
    lost = await story.give_up(*(claim.id for claim in kept))
    assert orphan.id in {task.id for task in lost}
    assert len(lost) == 2
    assert {(task.status, task.failure_reason, task.move) for task in lost} == {
        (Status.FAILED, "runtime_recovery", "orphan")
    }
    for claim in (*kept, foreign):
        assert (await story.row(claim.id)).status in {Status.RUNNING, Status.DISPATCHED}
    assert all([(await story.heir(task)).status is Status.QUEUED for task in lost])


async def test_a_push_that_is_under_way_to_the_same_process_is_spared(story: Story) -> None:
    """R6.2: it registers again over a new connection, and has not yet read what was pushed."""
    where = story.board.workspace_id, story.board.runtime_id
    await story.assigned()
    claim = await story.claimed()
    await story.later(sweeps.SPARED_S - 1)
    assert await sweeps.recover(story.database, *where, kept=[], same_process=True) == []
    assert len(await sweeps.recover(story.database, *where, kept=[], same_process=False)) == 1
    assert (await story.row(claim.id)).status is Status.FAILED


async def test_a_registration_carried_out_late_knows_nothing_of_what_came_after_it(
    story: Story,
) -> None:
    """R6.2: the machine has registered again meanwhile, and works."""
    where = story.board.workspace_id, story.board.runtime_id
    registered_at = story.now
    await story.later(5)
    claim = await story.running()
    await story.later(sweeps.SPARED_S + 10)
    for same_process in (True, False):
        given_up = await sweeps.recover(
            story.database, *where, kept=[], same_process=same_process, at=registered_at
        )
        assert given_up == []
    assert (await story.row(claim.id)).status is Status.RUNNING


async def test_what_the_same_process_has_had_for_long_and_does_not_name_is_lost(
    story: Story,
) -> None:
    """R6.1"""
    where = story.board.workspace_id, story.board.runtime_id
    await story.running()
    await story.later(sweeps.SPARED_S)
    assert len(await sweeps.recover(story.database, *where, kept=[], same_process=True)) == 1


@pytest.mark.parametrize("starts", [True, False])
async def test_what_brings_its_host_down_twice_is_quarantined(story: Story, starts: bool) -> None:  # noqa: FBT001
    """R6.10: however many attempts it has; and only what was running can have done it."""
    issue = await story.assigned()
    await story.database.pool.execute("update understudy.tasks set max_attempts = 9")
    lost = []
    for _ in range(2):
        if starts:
            await story.running(issue)
        else:
            await story.claimed()
        await story.later(1)
        lost += await story.give_up()
    assert lost[0].failure_reason == "runtime_recovery"
    assert lost[1].failure_reason == ("poison" if starts else "runtime_recovery")
    assert (lost[1].retry_task_id is None) is starts
    assert await story.status(issue) == "todo"


async def test_other_failures_in_between_do_not_hide_a_host_crash(story: Story) -> None:
    """R6.10: counted apart from errors, along the whole line of attempts."""
    issue = await story.assigned()
    await story.database.pool.execute("update understudy.tasks set max_attempts = 9")
    await story.running(issue)
    await story.give_up()
    await story.fail(await story.running(issue), "timeout")
    await story.running(issue)
    (lost,) = await story.give_up()
    assert lost.failure_reason == "poison"


async def test_a_rerun_by_a_person_begins_to_count_anew(story: Story) -> None:
    """R6.10"""
    issue = await story.assigned()
    for _ in range(2):
        await story.running(issue)
        await story.give_up()
    await story.rerun(issue)
    await story.running(issue)
    (lost,) = await story.give_up()
    assert lost.failure_reason == "runtime_recovery"
    assert lost.retry_task_id is not None


async def test_recovery_done_twice_finds_nothing_the_second_time(story: Story) -> None:
    """R2.1, R6.1"""
    await story.running()
    await story.give_up()
    before = await story.everything()
    assert await story.give_up() == []
    assert await story.everything() == before
