"""`issue rerun`: what it cancels, what it starts, and behind what (R7.6)."""

from __future__ import annotations

from uuid import uuid4

import pytest
from msgspec.structs import replace

from understudy.core.lifecycle import Status
from understudy.store.tasks import Outcome
from understudy.testing.story import Story


@pytest.mark.parametrize("status", [Status.DEFERRED, Status.QUEUED, Status.DISPATCHED])
async def test_a_rerun_takes_the_place_of_what_has_not_started(
    story: Story, status: Status
) -> None:
    """R7.6: that is cancelled at once, and one new task waits."""
    issue = await story.assigned()
    if status is Status.DEFERRED:
        claim = await story.running(issue)
        await story.later(1)
        await story.fail(claim, "provider_overloaded")
    elif status is Status.DISPATCHED:
        await story.claimed()
    again = await story.rerun(issue)
    assert again.outcome == "enqueued"
    assert again.task is not None
    (gone,) = again.cancelled
    assert gone.outcome is Outcome.MOVED
    assert gone.task is not None
    assert gone.task.status is Status.CANCELLED
    assert (again.task.trigger, again.task.attempt) == ("rerun", 1)
    assert again.task.parent_task_id == gone.task.id
    assert [claim.id for claim in await story.claim(slots=5)] == [again.task.id]


async def test_a_rerun_waits_until_the_run_it_replaces_is_proven_over(story: Story) -> None:
    """R7.6, R7.1, R3.3"""
    issue = await story.assigned()
    claim = await story.running(issue)
    again = await story.rerun(issue)
    assert [each.outcome for each in again.cancelled] == [Outcome.REQUESTED]
    assert await story.claim() == []
    await story.stop(claim)
    assert again.task is not None
    assert (await story.claimed()).id == again.task.id
    assert await story.status(issue) == "in_progress"


async def test_a_rerun_leaves_other_agents_alone(story: Story) -> None:
    """R7.6: they work by mention."""
    zed = await story.board.agent("Zed")
    issue = await story.assigned()
    mine = await story.running(issue)
    await story.says(issue, "@Zed have a look")
    theirs = await story.running(issue)
    assert theirs.agent_id == zed.id
    again = await story.rerun(issue)
    assert [each.task.id for each in again.cancelled if each.task] == [mine.id]
    assert (await story.row(theirs.id)).cancel_requested_at is None


async def test_a_rerun_leaves_the_agents_other_issues_alone(story: Story) -> None:
    """R7.6"""
    other = await story.running(await story.assigned("Another"))
    issue = await story.assigned()
    await story.running(issue)
    await story.rerun(issue)
    assert (await story.row(other.id)).cancel_requested_at is None


async def test_after_queues_behind_what_runs(story: Story) -> None:
    """R7.6: nothing is cancelled."""
    issue = await story.assigned()
    claim = await story.running(issue)
    again = await story.rerun(issue, after=True)
    assert (again.outcome, again.cancelled) == ("enqueued", [])
    assert await story.claim() == []
    await story.complete(claim)
    assert again.task is not None
    assert (await story.claimed()).id == again.task.id


async def test_after_what_waits_already_there_is_nothing_to_queue(story: Story) -> None:
    """R7.6, R2.5: the task that waits is the answer."""
    issue = await story.assigned()
    again = await story.rerun(issue, after=True)
    assert (again.outcome, again.cancelled) == ("pending", [])
    assert again.task is not None
    assert (await story.claimed()).id == again.task.id


async def test_running_twice_again_leaves_one_that_waits(story: Story) -> None:
    """R7.6, R2.5"""
    issue = await story.assigned()
    await story.running(issue)
    first = await story.rerun(issue)
    second = await story.rerun(issue)
    assert [each.outcome for each in second.cancelled] in (
        [Outcome.REPLAYED, Outcome.MOVED],
        [Outcome.MOVED, Outcome.REPLAYED],
    )
    assert first.task is not None
    assert (await story.row(first.task.id)).status is Status.CANCELLED


async def test_a_task_that_is_named_is_run_again_by_its_own_agent(story: Story) -> None:
    """R7.6: `--task`, for those who work by mention."""
    zed = await story.board.agent("Zed")
    issue = await story.assigned()
    mine = await story.running(issue)
    await story.says(issue, "@Zed have a look")
    theirs = await story.running(issue)
    await story.fail(theirs, "auth")
    again = await story.rerun(issue, task_id=theirs.id)
    assert again.task is not None
    assert (again.task.agent_id, again.task.parent_task_id) == (zed.id, theirs.id)
    assert again.cancelled == []
    assert (await story.row(mine.id)).cancel_requested_at is None


async def test_nothing_is_run_again_that_is_not_there(story: Story) -> None:
    """R2.1: typed outcomes, and nothing changed."""
    elsewhere = await story.running(await story.assigned("Another"))
    issue = await story.assigned()
    nobodys = await story.board.issue("Nobody's")
    before = await story.everything()
    for wanted in (uuid4(), elsewhere.id):
        assert (await story.rerun(issue, task_id=wanted)).outcome == "task_not_found"
    assert (await story.rerun(nobodys)).outcome == "agent_not_found"
    assert (await story.rerun(replace(issue, id=uuid4()))).outcome == "issue_not_found"
    assert await story.everything() == before


async def test_a_rerun_answers_whoever_called_what_it_replaces(story: Story) -> None:
    """R7.6, R10.2: what was joined to the task that is cancelled, and what waited for the run."""
    issue = await story.assigned()
    joined = await story.says(issue, "@Nia be brief")
    first = await story.rerun(issue)
    assert first.task is not None
    assert await story.answers(joined) == [first.task.id]
    claim = await story.running(issue)
    waiting = await story.says(issue, "@Nia and in French")
    second = await story.rerun(issue)
    assert await story.answers(waiting) == [None]
    await story.stop(claim)
    assert second.task is not None
    assert await story.answers(waiting) == [second.task.id]
    assert (await story.claimed()).trigger_comment_content == "Ada: @Nia and in French"


async def test_the_priority_of_a_rerun_is_the_issues_own(story: Story) -> None:
    """R7.6, R3.2"""
    issue = await story.board.issue("A thing", priority=4)
    await story.board.assign(issue)
    again = await story.rerun(issue)
    assert again.task is not None
    assert again.task.priority == 4


async def test_who_runs_idle_work_again_tells_nobody_that_the_agent_is_idle(story: Story) -> None:
    """R2.4: an event says what changed."""
    issue = await story.assigned()
    await story.rerun(issue)
    kinds = [event["kind"] for event in (await story.everything())["events"]]
    assert "agent:status" not in kinds
