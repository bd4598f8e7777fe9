"""What follows a failure: whether there is another attempt, when, and with what."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from random import Random

import pytest

from understudy.core.failures import POLICIES, FailureReason
from understudy.core.leases import Leases
from understudy.core.lifecycle import Status
from understudy.store import issues, sweeps
from understudy.store.database import Database
from understudy.testing.story import Story

RETRYABLE = sorted(reason for reason, policy in POLICIES.items() if policy.is_retryable)
FINAL = sorted(set(POLICIES) - set(RETRYABLE))
AT_ONCE = sorted(r for r in RETRYABLE if POLICIES[r].delays_s[0] == 0.0)


class Loaded(Random):
    """Dice that fall as far as they can."""

    def random(self) -> float:
        return 1.0


@pytest.mark.parametrize("reason", RETRYABLE)
async def test_a_failure_that_may_pass_bears_one_more_attempt_with_all_the_first_one_had(
    story: Story, reason: FailureReason
) -> None:
    """R5.1, R5.2, R5.3: trigger, priority, place in the queue and context are the parent's."""
    issue = await story.board.issue("A thing", priority=3)
    await story.board.assign(issue)
    claim = await story.running(issue)
    await story.database.pool.execute(
        """update understudy.tasks set context = '{"a": 1}', hops = 2 where id = $1""", claim.id
    )
    failed = await story.fail(claim, reason, session_id="s1")
    child = await story.heir(failed)
    assert (child.attempt, child.parent_task_id, child.trigger) == (2, failed.id, "assign")
    for name in ("priority", "rank", "context", "hops", "issue_id", "agent_id", "max_attempts"):
        assert await story.column(name, child.id) == await story.column(name, failed.id)
    assert child.session_id == ("s1" if POLICIES[reason].resume else None)
    assert await story.column("is_fresh", child.id) is not POLICIES[reason].resume
    assert child.status is (Status.QUEUED if reason in AT_ONCE else Status.DEFERRED)
    assert await story.status(issue) == "in_progress"


@pytest.mark.parametrize("reason", FINAL)
async def test_a_failure_that_stays_bears_none_and_gives_the_issue_back(
    story: Story, reason: FailureReason
) -> None:
    """R5.2, R5.6"""
    issue = await story.assigned()
    failed = await story.fail(await story.running(issue), reason)
    assert failed.retry_task_id is None
    assert await story.status(issue) == "todo"
    assert await story.claim() == []


async def test_there_are_two_attempts_and_no_third(story: Story) -> None:
    """R5.3: `max_attempts` is 2 by default."""
    issue = await story.assigned()
    await story.fail(await story.running(issue), "timeout")
    second = await story.fail(await story.running(issue), "timeout")
    assert (second.attempt, second.retry_task_id) == (2, None)
    assert await story.status(issue) == "todo"


async def test_what_may_be_tried_once_is_tried_once(story: Story) -> None:
    """R5.3: `max_attempts` of 1 says so, whatever the reason."""
    claim = await story.running()
    await story.database.pool.execute("update understudy.tasks set max_attempts = 1")
    assert (await story.fail(claim, "provider_network")).retry_task_id is None


async def test_a_lost_network_to_the_provider_is_tried_three_times_more(story: Story) -> None:
    """R5.2: at once, after 5 s, after 30 s."""
    issue = await story.assigned()
    first = await story.fail(await story.running(issue), "provider_network")
    assert (await story.heir(first)).status is Status.QUEUED
    second = await story.heir(await story.fail(await story.running(issue), "provider_network"))
    assert second.fire_at is not None
    assert 5.0 <= (second.fire_at - story.now).total_seconds() <= 6.0
    assert await story.column("deferred_for", second.id) == "provider"
    await story.later(6)
    (promoted,) = await sweeps.promote(story.database)
    assert promoted.id == second.id
    third = await story.heir(await story.fail(await story.running(issue), "provider_network"))
    assert third.fire_at is not None
    assert 30.0 <= (third.fire_at - story.now).total_seconds() <= 36.0
    await story.later(36)
    await sweeps.promote(story.database)
    fourth = await story.fail(await story.running(issue), "provider_network")
    assert (fourth.attempt, fourth.retry_task_id) == (4, None)


@pytest.mark.parametrize(
    ("reason", "retry_after_s", "least_s", "most_s"),
    [
        ("provider_overloaded", None, 30.0, 36.0),
        ("provider_overloaded", 7.0, 7.0, 8.4),
        ("provider_overloaded", 900.0, 900.0, 960.0),
        ("quota_exhausted", None, 3600.0, 3660.0),
        ("quota_exhausted", 18_000.0, 18_000.0, 18_060.0),
        ("quota_exhausted", 1e9, 8 * 86_400.0, 8 * 86_400.0 + 60.0),
    ],
)
async def test_a_retry_waits_as_long_as_the_provider_says_and_never_less(
    story: Story, reason: str, retry_after_s: float | None, least_s: float, most_s: float
) -> None:
    """R5.2: jitter is on top, a fifth and at most a minute."""
    waits = []
    for dice in (Random(3), Loaded()):
        await story.database.pool.execute("update understudy.runtimes set quota_resets_at = null")
        claim = await story.running()
        told = replace(story, board=story.board.on(Database(story.database.pool, dice)))
        child = await story.heir(await told.fail(claim, reason, retry_after_s=retry_after_s))
        assert child.fire_at is not None
        waits.append((child.fire_at - story.now).total_seconds())
        waits_for = "quota" if reason == "quota_exhausted" else "provider"
        assert await story.column("deferred_for", child.id) == waits_for
    assert least_s <= waits[0] < waits[1]
    assert waits[1] == pytest.approx(most_s)


async def test_each_wait_for_an_overloaded_provider_is_twice_the_one_before(story: Story) -> None:
    """R5.2"""
    issue = await story.assigned()
    await story.database.pool.execute("update understudy.tasks set max_attempts = 4")
    waits = []
    for _ in range(3):
        child = await story.heir(
            await story.fail(await story.running(issue), "provider_overloaded")
        )
        assert child.fire_at is not None
        waits.append((child.fire_at - story.now).total_seconds())
        await story.later(waits[-1])
        assert len(await sweeps.promote(story.database)) == 1
    assert all(n * 30 <= wait <= n * 36 for n, wait in zip((1, 2, 4), waits, strict=True))


async def test_a_retry_is_not_queued_a_second_before_its_time(story: Story) -> None:
    """R2.1: the guard of promote."""
    child = await story.heir(await story.fail(await story.running(), "provider_overloaded"))
    assert child.fire_at is not None
    await story.later((child.fire_at - story.now - timedelta(seconds=1)).total_seconds())
    assert await sweeps.promote(story.database) == []
    await story.later(1)
    assert len(await sweeps.promote(story.database)) == 1


async def test_a_task_of_a_schedule_without_an_issue_is_not_retried(story: Story) -> None:
    """R5.3: it comes again by itself."""
    claim = await story.running()
    await story.database.pool.execute("update understudy.tasks set issue_id = null")
    assert (await story.fail(claim, "timeout")).retry_task_id is None


async def test_a_retry_of_an_agent_that_was_archived_meanwhile_is_not_born(story: Story) -> None:
    """R2.1: the guard of enqueue."""
    issue = await story.assigned()
    claim = await story.running(issue)
    await story.database.pool.execute("update understudy.agents set archived_at = now()")
    assert (await story.fail(claim, "timeout")).retry_task_id is None
    assert await story.status(issue) == "todo"


async def test_a_rerun_that_waits_already_wins_over_the_retry(story: Story) -> None:
    """R5.4: no child is made; the failure itself commits."""
    issue = await story.assigned()
    claim = await story.running(issue)
    again = await story.rerun(issue, after=True)
    failed = await story.fail(claim, "timeout")
    assert (failed.status, failed.retry_task_id) == (Status.FAILED, None)
    assert again.task is not None
    assert (await story.claimed()).id == again.task.id
    assert await story.status(issue) == "in_progress"


@pytest.mark.parametrize("path", ["report", "recovery", "lose", "time_out"])
async def test_whoever_fails_a_task_bears_its_retry_in_the_same_way(
    story: Story, path: str
) -> None:
    """R5.4, R5.5: the child, the event that says so, the agent's and the issue's status."""
    issue = await story.assigned()
    claim = await story.running(issue)
    leases = Leases()
    if path == "report":
        await story.fail(claim, "timeout")
    elif path == "recovery":
        await story.give_up()
    else:
        await story.go_offline()
        await story.later(4 * 3600.0)
        sweep = sweeps.lose if path == "lose" else sweeps.time_out
        assert len(await sweep(story.database, leases)) == 1
    failed = await story.row(claim.id)
    child = await story.heir(failed)
    assert (child.status, child.attempt) == (Status.QUEUED, 2)
    events = await story.database.pool.fetch(
        "select kind, payload from understudy.events where task_id = $1"
        " or kind = 'agent:status' order by id",
        claim.id,
    )
    assert [
        row["payload"].get("retry_pending") for row in events if row["kind"] == "task:failed"
    ] == [True]
    assert events[-1]["payload"]["status"] == "idle"
    assert await story.status(issue) == "in_progress"


async def test_an_issue_stays_in_progress_while_another_agent_is_at_it(story: Story) -> None:
    """R5.6: it goes back to todo with the last one only."""
    other = await story.board.agent("Zed")
    issue = await story.assigned()
    mine = await story.running(issue)
    await story.says(issue, "@Zed have a look")
    theirs = await story.running(issue)
    assert theirs.agent_id == other.id
    await story.fail(mine, "auth")
    assert await story.status(issue) == "in_progress"
    await story.fail(theirs, "auth")
    assert await story.status(issue) == "todo"


async def test_what_a_person_has_moved_on_is_not_given_back(story: Story) -> None:
    """R5.6 is for `in_progress`; R7.5"""
    issue = await story.assigned()
    claim = await story.running(issue)
    await issues.set_status(story.database, issue.workspace_id, issue.id, "done")
    await story.fail(claim, "auth")
    assert await story.status(issue) == "done"


async def test_a_spent_account_is_left_alone_until_it_has_quota_again(story: Story) -> None:
    """R5.2: its runtime gets nothing, others get what is queued."""
    await story.fail(await story.running(), "quota_exhausted", retry_after_s=600.0)
    await story.assigned("Another")
    assert await story.claim() == []
    other = await story.board.runtime("other-daemon")
    assert len(await story.claim(runtime_id=other.id)) == 1
    await story.assigned("A third")
    await story.later(599)
    assert await story.claim() == []
    await story.later(1)
    assert len(await story.claim()) == 1


async def test_a_shorter_wait_does_not_end_a_longer_one(story: Story) -> None:
    """R5.2"""
    for _ in range(2):
        await story.assigned()
    first, second = await story.claim(slots=2)
    await story.fail(first, "quota_exhausted", retry_after_s=600.0)
    await story.fail(second, "quota_exhausted", retry_after_s=60.0)
    await story.assigned("Another")
    await story.later(300)
    assert await story.claim() == []


async def test_who_runs_it_again_knows_that_there_is_quota_again(story: Story) -> None:
    """R5.2, R7.6"""
    issue = await story.assigned()
    await story.fail(await story.running(issue), "quota_exhausted", retry_after_s=600.0)
    again = await story.rerun(issue)
    assert again.task is not None
    assert (await story.claimed()).id == again.task.id


async def test_the_21st_retry_of_a_minute_stands_in_line(story: Story) -> None:
    """R5.7: three seconds apart, and it says why; when the storm is over, retries are immediate."""
    agent = await story.board.agent("Broad", max_concurrent_tasks=100)
    for number in range(25):
        await story.assigned(f"Issue {number}", agent)
    claims = [claim for _ in range(25) for claim in await story.claim()]
    children = [await story.heir(await story.fail(claim, "timeout")) for claim in claims]
    assert [child.status for child in children] == [Status.QUEUED] * 20 + [Status.DEFERRED] * 5
    held_back = [child.fire_at for child in children[20:]]
    assert held_back == [story.now + timedelta(seconds=3 * n) for n in range(1, 6)]
    reasons = {await story.column("deferred_for", child.id) for child in children[20:]}
    assert reasons == {"storm"}
    await story.later(15)
    assert len(await sweeps.promote(story.database)) == 5
    await story.later(46)
    late = await story.assigned("Later", agent)
    await story.database.pool.execute(
        "update understudy.tasks set rank = '2020-1-1' where issue_id = $1", late.id
    )
    child = await story.heir(await story.fail(await story.claimed(), "timeout"))
    assert child.status is Status.QUEUED


async def test_who_waits_longer_anyway_does_not_stand_in_the_line(story: Story) -> None:
    """R5.7"""
    await story.database.pool.execute("update understudy.agents set max_concurrent_tasks = 100")
    for number in range(21):
        await story.assigned(f"Issue {number}")
    claims = [claim for _ in range(21) for claim in await story.claim()]
    for claim in claims[:20]:
        await story.fail(claim, "timeout")
    child = await story.heir(await story.fail(claims[20], "provider_overloaded"))
    assert await story.column("deferred_for", child.id) == "provider"


async def test_a_storm_in_one_workspace_delays_no_other(story: Story) -> None:
    """R5.7"""
    await story.database.pool.execute("update understudy.agents set max_concurrent_tasks = 100")
    for number in range(21):
        await story.assigned(f"Issue {number}")
    claims = [claim for _ in range(21) for claim in await story.claim()]
    for claim in claims[:20]:
        await story.fail(claim, "timeout")
    elsewhere = await story.database.pool.fetchval(
        "insert into understudy.workspaces (id, slug, name)"
        " values ($1, 'other', 'Other') returning id",
        story.database.new_id(),
    )
    await story.database.pool.execute(
        "update understudy.tasks set workspace_id = $1 where id <> $2", elsewhere, claims[20].id
    )
    child = await story.heir(await story.fail(claims[20], "timeout"))
    assert child.status is Status.QUEUED


async def test_attempts_only_grow(story: Story) -> None:
    """R5.7: those of a line of retries, and the number is kept when it is told another reason."""
    issue = await story.assigned()
    await story.database.pool.execute("update understudy.tasks set max_attempts = 5")
    reasons = ("timeout", "runtime_shutdown", "keeper_lost", "prepare_failed")
    attempts = [(await story.fail(await story.running(issue), each)).attempt for each in reasons]
    assert attempts == [1, 2, 3, 4]
