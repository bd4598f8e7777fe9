"""Which session and directory the next run of an agent on an issue is offered (R5.8 to R5.10)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from uuid import uuid4

import pytest

from understudy.core.failures import POLICIES
from understudy.core.records import Issue
from understudy.store import tasks
from understudy.store.tasks import Outcome
from understudy.testing.story import Story, held
from understudy.wire.daemon import ClaimedTask

UNSAFE = sorted(reason for reason, policy in POLICIES.items() if not policy.resume)
SAFE = sorted(set(POLICIES) - set(UNSAFE))


async def pin(story: Story, claim: ClaimedTask, session: str = "s1", work_dir: str = "/w") -> None:
    done = await tasks.pin_session(
        story.database, held(claim), session_id=session, work_dir=work_dir
    )
    assert done.outcome is Outcome.MOVED


async def ran(story: Story, reason: str | None = None) -> Issue:
    """An issue with a run that pinned its session and ended: completed, or failed for `reason`."""
    issue = await story.assigned()
    await story.database.pool.execute("update understudy.tasks set max_attempts = 1")
    claim = await story.running(issue)
    await pin(story, claim)
    if reason is None:
        done = await tasks.complete(
            story.database, held(claim), {"output": "x"}, session_id=None, work_dir=None
        )
        assert done.outcome is Outcome.MOVED
    else:
        await story.fail(claim, reason)
    await story.later(1)
    return issue


async def offered(story: Story, issue: Issue, **wanted: object) -> tuple[str | None, str | None]:
    await story.rerun(issue, **wanted)
    claim = await story.running(issue)
    return claim.prior_session_id, claim.prior_work_dir


async def test_the_session_is_stored_the_moment_it_is_known(story: Story) -> None:
    """R5.8: whoever fails it afterwards, and however little it says."""
    issue = await story.assigned()
    claim = await story.running(issue)
    await pin(story, claim)
    row = await story.row(claim.id)
    assert (row.session_id, row.work_dir) == ("s1", "/w")
    await story.later(1)
    (lost,) = await story.give_up()
    assert (await story.heir(lost)).session_id == "s1"
    again = await story.running(issue)
    assert (again.prior_session_id, again.prior_work_dir) == ("s1", "/w")


async def test_what_is_told_in_part_keeps_the_rest(story: Story) -> None:
    """R5.8"""
    claim = await story.running()
    await pin(story, claim)
    await tasks.pin_session(story.database, held(claim), session_id="s2", work_dir=None)
    row = await story.row(claim.id)
    assert (row.session_id, row.work_dir) == ("s2", "/w")


@pytest.mark.parametrize("reason", [None, *SAFE])
async def test_the_next_run_is_offered_what_the_last_one_left(
    story: Story, reason: str | None
) -> None:
    """R5.9: completed or failed."""
    assert await offered(story, await ran(story, reason)) == ("s1", "/w")


@pytest.mark.parametrize("reason", UNSAFE)
async def test_what_would_fail_again_is_not_continued(story: Story, reason: str) -> None:
    """R5.9: the directory is, the session is not."""
    assert await offered(story, await ran(story, reason)) == (None, "/w")


async def test_fresh_means_no_session(story: Story) -> None:
    """R7.6"""
    assert await offered(story, await ran(story), fresh=True) == (None, "/w")


async def test_a_retry_of_a_fresh_run_continues_that_run(story: Story) -> None:
    """R5.3, R7.6: the session it began anew, not the one it left; and none if it had none yet."""
    issue = await ran(story)
    await story.rerun(issue, fresh=True)
    await story.fail(await story.claimed(), "prepare_failed")
    await story.later(1)
    second = await story.running(issue)
    assert second.prior_session_id is None
    await story.database.pool.execute("update understudy.tasks set max_attempts = 5")
    await pin(story, second, "s2")
    await story.fail(second, "timeout")
    await story.later(1)
    assert (await story.running(issue)).prior_session_id == "s2"


async def test_a_session_is_offered_only_where_it_was_made(story: Story) -> None:
    """R5.9: it does not travel."""
    issue = await ran(story)
    await story.rerun(issue)
    other = await story.board.runtime("other-daemon")
    claim = await story.claimed(runtime_id=other.id)
    assert (claim.prior_session_id, claim.prior_work_dir) == (None, None)


async def test_the_newest_run_counts_even_if_it_was_elsewhere(story: Story) -> None:
    """R5.9: older ones know less."""
    issue = await ran(story)
    await story.rerun(issue)
    other = await story.board.runtime("other-daemon")
    claim = await story.running(issue, runtime_id=other.id)
    await story.complete(claim)
    await story.later(1)
    assert await offered(story, issue) == (None, None)


async def a_cancelled_run(story: Story, issue: Issue) -> None:
    await story.rerun(issue)
    claim = await story.running(issue)
    await pin(story, claim, "s2")
    await story.cancel(claim.id)
    await story.stop(claim)


async def a_run_that_never_started(story: Story, issue: Issue) -> None:
    await story.rerun(issue)
    await story.fail(await story.claimed(), "executable_missing")


async def another_agents_run(story: Story, issue: Issue) -> None:
    await story.board.agent("Zed")
    await story.says(issue, "@Zed have a look")
    await story.complete(await story.running(issue))


async def another_issues_run(story: Story, issue: Issue) -> None:
    await story.complete(await story.running())


@pytest.mark.parametrize(
    "between",
    [a_cancelled_run, a_run_that_never_started, another_agents_run, another_issues_run],
)
async def test_what_is_no_run_of_that_agent_and_issue_leaves_nothing(
    story: Story, between: Callable[[Story, Issue], Awaitable[None]]
) -> None:
    """R5.9: the newest completed or failed one counts."""
    issue = await ran(story)
    await between(story, issue)
    await story.later(1)
    assert await offered(story, issue) == ("s1", "/w")


@pytest.mark.parametrize("told_by", ["session", "fail"])
async def test_a_session_that_was_refused_once_is_never_offered_again(
    story: Story, told_by: str
) -> None:
    """R5.10: neither to the retry nor to any later run, on whichever row its id is written."""
    issue = await ran(story)
    await story.rerun(issue)
    claim = await story.running(issue)
    assert claim.prior_session_id == "s1"
    await pin(story, claim, "s1")
    if told_by == "session":
        await tasks.pin_session(
            story.database, held(claim), session_id="s2", work_dir=None, refused_session="s1"
        )
        assert await story.column("session_id", claim.id) == "s2"
        await story.fail(claim, "auth")
        expected: str | None = "s2"
    else:
        failed = await story.fail(claim, "timeout", session_id="s1", refused_session="s1")
        assert failed.session_id is None
        assert (await story.heir(failed)).session_id is None
        expected = None
    await story.later(1)
    assert (await offered(story, issue))[0] == expected
    rows = await story.database.pool.fetch("select session_id from understudy.refused_sessions")
    assert [row["session_id"] for row in rows] == ["s1"]


async def test_what_was_refused_is_retired_though_its_task_is_over(story: Story) -> None:
    """R5.10: its machine was cut off when its CLI refused, and the task cancelled meanwhile."""
    issue = await ran(story)
    await story.rerun(issue)
    claim = await story.running(issue)
    assert claim.prior_session_id == "s1"
    await pin(story, claim)
    await story.cancel(claim.id)
    await story.stop(claim)
    told = await tasks.pin_session(
        story.database, held(claim), session_id="s2", work_dir="/x", refused_session="s1"
    )
    assert told.outcome is Outcome.FENCED
    assert await story.column("session_id", claim.id) is None
    await story.later(1)
    assert await offered(story, issue) == (None, "/w")


async def test_who_does_not_hold_a_task_retires_no_session_of_it(story: Story) -> None:
    """R3.7, R5.10"""
    issue = await ran(story)
    claim = await story.running(await story.assigned("Another"))
    stranger = replace(held(claim), claim_token=uuid4())
    told = await tasks.pin_session(
        story.database, stranger, session_id=None, work_dir=None, refused_session="s1"
    )
    assert told.outcome is Outcome.FENCED
    assert (await offered(story, issue))[0] == "s1"


async def test_a_refused_id_that_comes_back_in_a_report_is_not_offered(story: Story) -> None:
    """R5.10"""
    issue = await ran(story)
    claim = await story.running(await story.assigned("Another"))
    await tasks.pin_session(
        story.database, held(claim), session_id=None, work_dir=None, refused_session="s1"
    )
    assert (await offered(story, issue))[0] is None
