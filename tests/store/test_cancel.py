"""Cancellation: at once before the start, in two phases after it (R7.1)."""

from __future__ import annotations

from uuid import uuid4

import pytest
from msgspec.structs import replace

from understudy.core.leases import Leases
from understudy.core.lifecycle import Status
from understudy.store import issues, sweeps, tasks
from understudy.store.tasks import Outcome
from understudy.testing.story import Story, held

LEASES = Leases()


async def kinds(story: Story) -> list[str]:
    rows = await story.database.pool.fetch("select kind from understudy.events order by id")
    return [row["kind"] for row in rows]


@pytest.mark.parametrize("status", [Status.DEFERRED, Status.QUEUED, Status.DISPATCHED])
async def test_what_has_not_started_is_cancelled_at_once(story: Story, status: Status) -> None:
    """R7.1: no process of an agent runs before `start`."""
    issue = await story.assigned()
    task = (await tasks.of_issue(story.database, issue.id))[0]
    if status is Status.DISPATCHED:
        await story.claimed()
    elif status is Status.DEFERRED:
        task = await story.heir(await story.fail(await story.running(issue), "provider_overloaded"))
    assert (await story.row(task.id)).status is status
    done = await story.cancel(task.id)
    assert done.outcome is Outcome.MOVED
    assert done.task is not None
    assert (done.task.status, done.task.failure_reason) == (Status.CANCELLED, "cancelled")
    assert await story.column("cancel_requested_by", task.id) == story.board.user_id
    assert await story.status(issue) == "todo"
    assert await story.claim() == []


async def test_what_was_cancelled_before_its_start_does_not_start(story: Story) -> None:
    """R7.1, R3.5"""
    await story.assigned()
    claim = await story.claimed()
    await story.cancel(claim.id)
    assert (await tasks.start(story.database, held(claim))).outcome is Outcome.FENCED
    assert (await story.stop(claim)).outcome is Outcome.REPLAYED


async def test_a_run_is_cancelled_in_two_phases(story: Story) -> None:
    """R7.1: asked for, then confirmed; the slot is free only then."""
    narrow = await story.board.agent("Narrow", max_concurrent_tasks=1)
    issue = await story.assigned(agent=narrow)
    claim = await story.running(issue)
    await story.assigned("Another", narrow)
    done = await story.cancel(claim.id)
    assert done.outcome is Outcome.REQUESTED
    assert done.task is not None
    assert done.task.status is Status.RUNNING
    assert done.task.cancel_requested_at == story.now
    assert (await kinds(story))[-1] == "task:cancelling"
    assert await story.claim() == []
    assert (await story.stop(claim)).outcome is Outcome.MOVED
    row = await story.row(claim.id)
    assert (row.status, row.failure_reason, row.error) == (Status.CANCELLED, "cancelled", None)
    assert (await kinds(story))[-1] == "agent:status"
    assert await story.status(issue) == "todo"
    assert len(await story.claim()) == 1


async def test_what_nothing_ends_is_named_where_its_run_is_cancelled(story: Story) -> None:
    """R7.1: to say that nothing is left would be wrong."""
    claim = await story.running(await story.assigned())
    await story.cancel(claim.id)
    done = await tasks.confirm_stop(story.database, held(claim), ["node", "git"])
    assert done.task is not None
    assert (done.task.status, done.task.error) == (
        Status.CANCELLED,
        "not even SIGKILL has ended: node, git",
    )


async def test_nobody_confirms_what_nobody_asked_for(story: Story) -> None:
    """R7.1"""
    claim = await story.running()
    before = await story.everything()
    assert (await story.stop(claim)).outcome is Outcome.FENCED
    assert await story.everything() == before


@pytest.mark.parametrize("token", ["another", "missing"])
async def test_only_the_holder_confirms(story: Story, token: str) -> None:
    """R3.13"""
    claim = await story.running()
    await story.cancel(claim.id)
    other = replace(claim, claim_token=uuid4() if token == "another" else None)
    before = await story.everything()
    assert (await story.stop(other)).outcome is Outcome.FENCED
    assert await story.everything() == before


@pytest.mark.parametrize("is_over", [False, True])
async def test_cancelling_twice_changes_nothing(story: Story, is_over: bool) -> None:  # noqa: FBT001
    """R2.1"""
    claim = await story.running()
    await story.cancel(claim.id)
    if is_over:
        await story.stop(claim)
    await story.later(1)
    before = await story.everything()
    assert (await story.cancel(claim.id)).outcome is Outcome.REPLAYED
    if is_over:
        assert (await story.stop(claim)).outcome is Outcome.REPLAYED
    assert await story.everything() == before


async def test_what_has_ended_stays_as_it_ended(story: Story) -> None:
    """R2.1, R7.1: and nobody is told anything."""
    claim = await story.running()
    await story.complete(claim)
    before = await story.everything()
    done = await story.cancel(claim.id)
    assert done.outcome is Outcome.ENDED
    assert await story.everything() == before


async def test_another_workspace_cancels_nothing(story: Story) -> None:
    claim = await story.running()
    by = story.board.user_id
    done = await tasks.cancel(story.database, uuid4(), claim.id, by=by)
    assert done.outcome is Outcome.NOT_FOUND
    assert await tasks.cancel_issue(story.database, uuid4(), claim.issue_id or by, by=by) == []
    assert (await story.row(claim.id)).cancel_requested_at is None


async def test_a_run_that_completes_while_it_is_being_cancelled_is_completed(story: Story) -> None:
    """R7.1: it had finished; its result is not thrown away."""
    issue = await story.assigned()
    claim = await story.running(issue)
    await story.cancel(claim.id)
    done = await story.complete(claim)
    assert done.task is not None
    assert done.task.status is Status.COMPLETED
    assert await story.status(issue) == "in_review"
    assert (await story.stop(claim)).outcome is Outcome.REPLAYED


async def test_a_run_that_fails_while_it_is_being_cancelled_is_cancelled(story: Story) -> None:
    """R7.1: and not tried again."""
    claim = await story.running()
    await story.cancel(claim.id)
    row = await story.fail(claim, "timeout", session_id="s9")
    assert (row.status, row.failure_reason, row.error) == (Status.CANCELLED, "cancelled", None)
    assert (row.session_id, row.retry_task_id) == ("s9", None)
    assert await story.claim() == []


@pytest.mark.parametrize("by", ["orphan", "lose", "time_out", "unconfirmed"])
async def test_a_machine_that_is_gone_first_leaves_it_cancelled_and_unconfirmed(
    story: Story, by: str
) -> None:
    """R7.1: the row says that nobody has seen the process end."""
    claim = await story.running()
    await story.cancel(claim.id)
    if by == "orphan":
        await story.give_up()
    elif by == "unconfirmed":
        await story.later(LEASES.cancel_unconfirmed_s - 1)
        assert await sweeps.time_out(story.database, LEASES) == []
        await story.later(1)
        await sweeps.time_out(story.database, LEASES)
    else:
        await story.go_offline()
        await story.later(4 * 3600.0)
        await (sweeps.lose if by == "lose" else sweeps.time_out)(story.database, LEASES)
    row = await story.row(claim.id)
    assert (row.status, row.failure_reason) == (Status.CANCELLED, "cancelled")
    assert (row.error or "").startswith("cancelled, unconfirmed: ")
    assert row.retry_task_id is None


@pytest.mark.parametrize("status", ["done", "in_review", "cancelled"])
async def test_moving_an_issue_stops_nothing(story: Story, status: str) -> None:
    """R7.5: only explicit cancel and deletion do."""
    issue = await story.assigned()
    claim = await story.running(issue)
    await issues.set_status(story.database, issue.workspace_id, issue.id, status)
    row = await story.row(claim.id)
    assert (row.status, row.cancel_requested_at) == (Status.RUNNING, None)
    await story.complete(claim)
    assert await story.status(issue) == status


async def test_giving_an_issue_to_another_stops_nothing(story: Story) -> None:
    """R7.5"""
    issue = await story.assigned()
    claim = await story.running(issue)
    other = await story.board.agent("Zed")
    assert (await story.board.assign(issue, other)).outcome == "enqueued"
    row = await story.row(claim.id)
    assert (row.status, row.cancel_requested_at) == (Status.RUNNING, None)


async def test_cancelling_an_issue_cancels_all_that_is_active_on_it(story: Story) -> None:
    """R7.1, R7.5: whoever works on it; other issues go on."""
    issue = await story.assigned()
    await story.board.agent("Zed")
    mine = await story.running(issue)
    other = await story.assigned("Another", await story.board.agent("Yan"))
    elsewhere = await story.running(other)
    await story.says(issue, "@Zed have a look")
    by = story.board.user_id
    done = await tasks.cancel_issue(story.database, issue.workspace_id, issue.id, by=by)
    assert sorted(each.outcome for each in done) == ["moved", "requested"]
    assert await story.status(issue) == "cancelled"
    assert (await story.row(elsewhere.id)).cancel_requested_at is None
    await story.stop(mine)
    assert await story.status(issue) == "cancelled"
    assert await story.status(other) == "in_progress"


async def test_who_cancels_a_run_stops_what_waited_for_it(story: Story) -> None:
    """R7.1, R10.2: but not what is said after that."""
    issue = await story.assigned()
    claim = await story.running(issue)
    await story.later(1)
    before = await story.says(issue, "@Nia and in French")
    await story.later(1)
    await story.cancel(claim.id)
    await story.later(1)
    after = await story.says(issue, "@Nia begin anew, in Dutch")
    assert await story.answers(before) == await story.answers(after) == [None]
    await story.stop(claim)
    assert await story.answers(before) == [claim.id]
    follow_up = await story.claimed()
    assert await story.answers(after) == [follow_up.id]
    assert follow_up.trigger_comment_content == "Ada: @Nia begin anew, in Dutch"


async def test_a_result_in_spite_of_a_cancelled_issue_starts_nothing(story: Story) -> None:
    """R7.1, R10.2: what was said before the cancellation stays unanswered."""
    issue = await story.assigned()
    claim = await story.running(issue)
    await story.says(issue, "@Nia and in French")
    await story.later(1)
    by = story.board.user_id
    await tasks.cancel_issue(story.database, issue.workspace_id, issue.id, by=by)
    await story.complete(claim)
    assert await story.claim() == []


async def test_cancelling_what_waits_behind_a_run_leaves_that_run_its_calls(story: Story) -> None:
    """R10.2: they waited for the run, not for the task that is cancelled."""
    issue = await story.assigned()
    claim = await story.running(issue)
    said = await story.says(issue, "@Nia and in French")
    behind = await story.rerun(issue, after=True)
    assert behind.task is not None
    await story.cancel(behind.task.id)
    assert await story.answers(said) == [None]
    await story.complete(claim)
    assert await story.answers(said) == [(await story.claimed()).id]


async def test_what_waited_for_a_task_that_never_started_is_cancelled_with_it(
    story: Story,
) -> None:
    """R7.1, R10.2"""
    issue = await story.assigned()
    claim = await story.claimed()
    said = await story.says(issue, "@Nia and in French")
    assert await story.answers(said) == [None]
    await story.cancel(claim.id)
    assert await story.answers(said) == [claim.id]
    assert await story.claim() == []
