"""Reports that come after the server gave a run up (R6.5), or come again (R6.6)."""

from __future__ import annotations

from uuid import uuid4

import pytest
from msgspec.structs import replace

from understudy.core.failures import FailureReason
from understudy.core.leases import Leases
from understudy.core.lifecycle import Status
from understudy.core.records import Issue, Task, Usage
from understudy.store import issues, sweeps, tasks
from understudy.store.tasks import Outcome
from understudy.testing.story import Story, held
from understudy.wire.daemon import ClaimedTask

LEASES = Leases()


async def given_up(
    story: Story, by: str = "orphan", *, in_a_storm: bool = False
) -> tuple[Issue, ClaimedTask, Task]:
    """An issue, the run of it that the server gave up, and the row."""
    issue = await story.assigned()
    claim = await story.running(issue)
    await story.later(4 * 3600.0)
    if in_a_storm:
        await storm(story)
    if by == "orphan":
        await story.give_up()
    else:
        await story.go_offline()
        await story.database.pool.execute(
            "update understudy.runtimes set offline_since = '2020-1-1'"
        )
        sweep = sweeps.lose if by == "lose" else sweeps.time_out
        await sweep(story.database, LEASES)
    failed = await story.row(claim.id)
    assert failed.move == by
    return issue, claim, failed


async def storm(story: Story) -> None:
    """As many retries as a minute may have (R5.7)."""
    crowd = await story.board.agent("Crowd", provider="other")
    for number in range(20):
        await story.assigned(f"Retry {number}", crowd)
    await story.database.pool.execute(
        "update understudy.tasks set attempt = 2 where agent_id = $1", crowd.id
    )


@pytest.mark.parametrize("by", ["orphan", "lose", "time_out"])
@pytest.mark.parametrize("heir_is", [Status.QUEUED, Status.DISPATCHED, Status.DEFERRED])
async def test_a_late_result_counts_while_its_successor_has_not_started(
    story: Story, by: str, heir_is: Status
) -> None:
    """R6.5: the row is completed, the successor superseded, the issue moves on."""
    issue, claim, failed = await given_up(story, by, in_a_storm=heir_is is Status.DEFERRED)
    if heir_is is Status.DISPATCHED:
        await story.claimed()
    assert (await story.heir(failed)).status is heir_is
    done = await story.complete(claim, "Done after all.")
    assert done.outcome is Outcome.MOVED
    assert done.task is not None
    assert (done.task.status, done.task.failure_reason) == (Status.COMPLETED, None)
    assert (done.task.move, done.task.session_id) == ("complete_late", "s1")
    heir = await story.heir(failed)
    assert (heir.status, heir.failure_reason) == (Status.CANCELLED, "superseded")
    assert heir.error == "the attempt before it had succeeded after all"
    assert await story.status(issue) == "in_review"
    said = await issues.comments(story.database, issue.id)
    assert [each.body for each in said] == ["Done after all."]
    assert await story.claim() == []


async def test_once_its_successor_has_started_a_late_result_is_for_the_reader_only(
    story: Story,
) -> None:
    """R6.5: it is kept on the old row and changes nothing else."""
    issue, claim, failed = await given_up(story)
    await story.running(issue)
    before = await story.everything()
    done = await story.complete(claim, "Too late.")
    assert done.outcome is Outcome.KEPT
    assert done.task is not None
    assert (done.task.status, done.task.result) == (Status.FAILED, {"output": "Too late."})
    after = await story.everything()
    for table in ("calls", "comments", "issues", "events", "agents"):
        assert after[table] == before[table]
    others = [row for row in after["tasks"] if row["id"] != str(claim.id)]
    assert others == [row for row in before["tasks"] if row["id"] != str(claim.id)]
    assert (await story.heir(failed)).status is Status.RUNNING
    assert (await story.complete(claim, "Again.")).outcome is Outcome.REPLAYED
    assert (await story.row(claim.id)).result == {"output": "Too late."}


async def test_a_started_successor_that_has_ended_counts_as_well(story: Story) -> None:
    """R6.5"""
    issue, claim, failed = await given_up(story)
    await story.complete(await story.running(issue), "By the second.")
    assert (await story.complete(claim, "By the first.")).outcome is Outcome.KEPT
    assert (await story.heir(failed)).status is Status.COMPLETED
    said = await issues.comments(story.database, issue.id)
    assert [each.body for each in said] == ["By the second."]


async def test_a_grandchild_is_a_successor_too(story: Story) -> None:
    """R6.5: the child never started; its own retry waits, and is superseded."""
    issue, claim, failed = await given_up(story)
    await story.database.pool.execute("update understudy.tasks set max_attempts = 5")
    child = await story.claimed()
    grandchild = await story.heir(await story.fail(child, "prepare_failed"))
    assert (await story.complete(claim)).outcome is Outcome.MOVED
    assert (await story.row(grandchild.id)).failure_reason == "superseded"
    assert (await story.heir(failed)).failure_reason == "prepare_failed"
    assert await story.status(issue) == "in_review"


async def test_a_grandchild_that_has_started_keeps_the_late_result_out(story: Story) -> None:
    """R6.5"""
    issue, claim, _ = await given_up(story)
    await story.database.pool.execute("update understudy.tasks set max_attempts = 5")
    await story.fail(await story.claimed(), "prepare_failed")
    await story.running(issue)
    assert (await story.complete(claim)).outcome is Outcome.KEPT


async def test_without_a_successor_a_late_result_takes_the_issue_from_todo_to_review(
    story: Story,
) -> None:
    """R6.5: it had been given back (R5.6)."""
    issue = await story.assigned()
    await story.database.pool.execute("update understudy.tasks set max_attempts = 1")
    claim = await story.running(issue)
    await story.give_up()
    assert await story.status(issue) == "todo"
    assert (await story.complete(claim)).outcome is Outcome.MOVED
    assert await story.status(issue) == "in_review"


async def test_a_late_result_does_not_touch_what_a_person_runs_again(story: Story) -> None:
    """R6.5, R7.6: a rerun is no successor of the same line."""
    issue, claim, _ = await given_up(story)
    again = await story.rerun(issue, task_id=claim.id)
    assert again.task is not None
    assert again.task.parent_task_id == claim.id
    assert (await story.complete(claim)).outcome is Outcome.MOVED
    assert (await story.row(again.task.id)).status is Status.QUEUED


@pytest.mark.parametrize("reason", ["timeout", "agent_error", "no_result"])
async def test_what_the_daemon_failed_itself_stays_failed(story: Story, reason: str) -> None:
    """R6.6: its second report is a replay. R6.5 is for what the server gave up."""
    claim = await story.running()
    await story.fail(claim, reason)
    before = await story.everything()
    done = await story.complete(claim)
    assert done.outcome is Outcome.REPLAYED
    assert done.task is not None
    assert done.task.status is Status.FAILED
    assert await story.everything() == before


@pytest.mark.parametrize("token", ["another", "missing"])
async def test_a_late_result_under_another_token_is_refused(story: Story, token: str) -> None:
    """R3.7, R3.13"""
    _, claim, _ = await given_up(story)
    other = replace(claim, claim_token=uuid4() if token == "another" else None)
    before = await story.everything()
    assert (await story.complete(other)).outcome is Outcome.FENCED
    assert await story.everything() == before


async def test_what_never_started_has_no_late_result(story: Story) -> None:
    """R6.5: nothing can have run."""
    await story.assigned()
    claim = await story.claimed()
    await story.give_up()
    assert (await story.complete(claim)).outcome is Outcome.REPLAYED
    assert (await story.row(claim.id)).status is Status.FAILED


async def test_a_late_result_that_is_sent_again_repeats_nothing(story: Story) -> None:
    """R6.6"""
    _, claim, _ = await given_up(story)
    await story.complete(claim)
    before = await story.everything()
    done = await story.complete(claim)
    assert done.outcome is Outcome.REPLAYED
    assert done.task is not None
    assert done.task.status is Status.COMPLETED
    assert await story.everything() == before


async def test_a_late_failure_changes_nothing(story: Story) -> None:
    """R6.6: it has failed already; nobody is retried twice."""
    _, claim, _ = await given_up(story)
    before = await story.everything()
    failure = tasks.Failure(FailureReason.AGENT_ERROR, "late")
    done = await tasks.fail(story.database, held(claim), failure, session_id=None, work_dir=None)
    assert done.outcome is Outcome.REPLAYED
    assert await story.everything() == before


async def test_a_run_that_was_given_up_may_speak_until_its_result_is_there(story: Story) -> None:
    """R6.5: a reader of the late result sees how it came about."""
    _, claim, _ = await given_up(story)
    assert (await story.tell(claim, "still here", seq=0)).outcome is Outcome.MOVED
    await story.complete(claim)
    assert (await story.tell(claim, "and on", seq=1)).outcome is Outcome.FENCED
    assert [m.content for m in await tasks.messages(story.database, claim.id)] == ["still here"]


async def test_a_run_that_was_given_up_may_name_its_session_until_its_result_is_there(
    story: Story,
) -> None:
    """R5.8, R6.5: refused, its daemon would take the claim for void and say no more (seed 721)."""
    _, claim, _ = await given_up(story)
    assert (await pin(story, claim)).outcome is Outcome.MOVED
    assert (await story.row(claim.id)).session_id == "revealed"
    await story.complete(claim)
    assert (await pin(story, claim)).outcome is Outcome.FENCED


async def pin(story: Story, claim: ClaimedTask) -> tasks.Moved:
    return await tasks.pin_session(
        story.database, held(claim), session_id="revealed", work_dir=None
    )


@pytest.mark.parametrize("reason", ["agent_error", "timeout"])
async def test_a_run_that_reported_its_own_end_has_said_all(story: Story, reason: str) -> None:
    """R6.6"""
    claim = await story.running()
    await story.fail(claim, reason)
    assert (await story.tell(claim, "and on")).outcome is Outcome.FENCED
    assert (await pin(story, claim)).outcome is Outcome.FENCED


async def test_what_a_run_cost_is_told_whatever_became_of_it(story: Story) -> None:
    """R6.7: cancelled runs cost money, too; the last count replaces the one before."""
    claim = await story.running()
    await story.cancel(claim.id)
    await story.stop(claim)
    for tokens in (3, 5):
        bill = [Usage(provider="p", model="m", input_tokens=tokens)]
        done = await tasks.report_usage(story.database, held(claim), bill)
        assert done.outcome is Outcome.MOVED
    (row,) = await tasks.usage(story.database, claim.id)
    assert row.input_tokens == 5


async def test_a_comment_that_only_the_successor_would_have_heard_is_answered_anew(
    story: Story,
) -> None:
    """R6.5, R10.2: what the first run was told it has answered; the rest is still open."""
    issue = await story.assigned()
    await story.later(1)
    told = await story.says(issue, "@Nia be brief")
    await story.later(1)
    claim = await story.running(issue)
    await story.later(1)
    await story.give_up()
    await story.later(1)
    open_still = await story.says(issue, "@Nia and in French")
    assert open_still.called[0].outcome == "joined"
    await story.complete(claim)
    assert await story.answers(told) == [claim.id]
    (answering,) = await story.answers(open_still)
    follow_up = await story.claimed()
    assert follow_up.id == answering
    assert follow_up.trigger_comment_content == "Ada: @Nia and in French"
