"""Which task a claim gives out, and to whom: order, limits, ageing (R3.1 to R3.4, R3.11)."""

from __future__ import annotations

import math
from datetime import timedelta
from uuid import UUID

import pytest

from understudy.core.records import Issue
from understudy.server import PLANS
from understudy.store import claims, tasks
from understudy.testing.story import Story, held


async def assigned(story: Story, title: str, priority: int) -> Issue:
    issue = await story.board.issue(title, priority=priority)
    await story.board.assign(issue)
    return issue


async def titles(story: Story, slots: int) -> list[str]:
    found = await story.claim(slots=slots)
    return [claim.issue.title for claim in found if claim.issue]


async def test_priority_goes_before_age_and_age_before_id(story: Story) -> None:
    """R3.2: urgent 4, high 3, medium 2, low 1, none 0; within one, who waits longest."""
    wide = await story.board.agent("Wide", max_concurrent_tasks=99)
    for priority in (0, 2, 4, 1, 3, 2):
        issue = await story.board.issue(f"{priority} at {story.at_s:g}", priority=priority)
        await story.board.assign(issue, wide)
        await story.later(1)
    assert await titles(story, 9) == [
        "4 at 2", "3 at 4", "2 at 1", "2 at 5", "1 at 3", "0 at 0",
    ]  # fmt: skip


async def test_of_the_same_instant_the_smaller_id_is_first(story: Story) -> None:
    """R3.2"""
    for number in range(5):
        await story.assigned(f"Issue {number}")
    ids = [claim.id for claim in await story.claim(slots=5)]
    assert ids == sorted(ids)


@pytest.mark.parametrize("priority", [1, 2, 3, 4])
async def test_a_priority_is_worth_a_quarter_of_an_hour_of_waiting(
    story: Story, priority: int
) -> None:
    """R3.2: so nothing starves; what has waited longer than that goes first."""
    await assigned(story, "old", 0)
    await story.later(priority * 900 - 1)
    await assigned(story, "just before", priority)
    await story.later(2)
    await assigned(story, "just after", priority)
    assert await titles(story, 3) == ["just before", "old", "just after"]


async def test_something_of_low_priority_is_served_however_much_urgent_work_comes(
    story: Story,
) -> None:
    """R3.2: one urgent issue a minute, one machine that does one a minute."""
    await assigned(story, "patient", 0)
    served = []
    for minute in range(70):
        await assigned(story, f"urgent {minute}", 4)
        (claim,) = await story.claim()
        assert claim.issue is not None
        served.append(claim.issue.title)
        await story.fail(claim, "auth")
        await story.later(60)
    assert served.index("patient") == 60


async def test_a_retry_keeps_its_place_in_the_queue(story: Story) -> None:
    """R3.2, R5.3: it does not line up anew."""
    first = await story.assigned("First")
    claim = await story.running(first)
    await story.later(5)
    await story.assigned("Second")
    await story.later(5)
    await story.fail(claim, "timeout")
    assert await titles(story, 2) == ["First", "Second"]


async def test_a_requeued_task_keeps_its_place_too(story: Story) -> None:
    """R3.2, R3.8"""
    await story.assigned("First")
    await story.claimed()
    await story.later(30)
    await story.assigned("Second")
    await story.later(31)
    assert await titles(story, 2) == ["First", "Second"]


async def test_tasks_of_one_agent_on_one_issue_run_one_after_the_other(story: Story) -> None:
    """R3.3: other issues and other agents do not wait for them."""
    await story.board.agent("Zed")
    issue = await story.assigned("One")
    running = await story.running(issue)
    await story.rerun(issue, after=True)
    await story.says(issue, "@Zed have a look")
    await story.assigned("Two")
    others = await story.claim(slots=9)
    assert sorted((claim.agent.name, claim.issue_id != issue.id) for claim in others) == [
        ("Nia", True),
        ("Zed", False),
    ]
    await story.complete(running)
    (successor,) = await story.claim(slots=9)
    assert (successor.agent.name, successor.issue_id) == ("Nia", issue.id)


async def test_what_is_being_cancelled_counts_until_it_is_gone(story: Story) -> None:
    """R3.3, R7.1"""
    narrow = await story.board.agent("Narrow", max_concurrent_tasks=1)
    claim = await story.running(await story.assigned("One", narrow))
    await story.assigned("Two", narrow)
    await story.cancel(claim.id)
    assert await story.claim() == []
    await story.stop(claim)
    assert len(await story.claim()) == 1


async def test_a_batch_is_as_large_as_the_free_slots_and_no_larger(story: Story) -> None:
    """R3.11"""
    for number in range(4):
        await story.assigned(f"Issue {number}")
    assert [len(await story.claim(slots=slots)) for slots in (3, 0, 3)] == [3, 0, 1]


async def test_each_task_of_a_batch_has_a_token_and_a_minute_of_its_own(story: Story) -> None:
    """R3.4"""
    for number in range(3):
        await story.assigned(f"Issue {number}")
    found = await story.claim(slots=3)
    assert len({claim.claim_token for claim in found}) == 3
    for claim in found:
        assert claim.claim_expires_at is not None
        assert (claim.claim_expires_at - story.now).total_seconds() == 60
        assert await story.column("claim_token", claim.id) == claim.claim_token


@pytest.mark.parametrize("why", ["retired", "broken", "unknown", "another provider"])
async def test_a_runtime_that_cannot_run_it_gets_nothing(story: Story, why: str) -> None:
    """R3.1, R9.4"""
    await story.assigned()
    place = story.board.runtime_id
    change = {
        "retired": "retired_at = now(), status = 'offline', offline_since = now(),"
        " online_since = null",
        "broken": "problem = 'claude is not logged in'",
        "another provider": "provider = 'other'",
    }
    if why == "unknown":
        place = UUID(int=9)
    else:
        await story.database.pool.execute(f"update understudy.runtimes set {change[why]}")
    assert await story.claim(runtime_id=place) == []


async def test_a_runtime_gets_nothing_that_is_bound_to_another_though_it_gets_the_rest(
    story: Story,
) -> None:
    """R3.1"""
    bound = await story.board.agent("Bound", runtime_id=story.board.runtime_id)
    other = await story.board.runtime("other-daemon")
    await story.assigned("Bound", bound)
    free = await story.assigned("Free")
    found = await story.claim(runtime_id=other.id, slots=5)
    assert [claim.issue_id for claim in found] == [free.id]


async def test_an_archived_agent_runs_nothing(story: Story) -> None:
    """R3.1: nor does it while others have something to do."""
    await story.assigned()
    await story.database.pool.execute("update understudy.agents set archived_at = now()")
    assert await story.claim(slots=5) == []
    await story.assigned("Another", await story.board.agent("Zed"))
    assert [claim.agent.name for claim in await story.claim(slots=5)] == ["Zed"]


async def test_a_task_is_running_from_its_start_and_not_from_its_claim(story: Story) -> None:
    """R2.6: while it is prepared it is dispatched, and the issue is still to do."""
    issue = await story.assigned()
    claim = await story.claimed()
    assert (claim.status, await story.status(issue)) == ("dispatched", "todo")
    started = await tasks.start(story.database, held(claim))
    assert started.task is not None
    assert (started.task.status, started.task.started_at) == ("running", story.now)
    assert await story.status(issue) == "in_progress"


async def test_events_of_an_agent_end_with_what_is_true(story: Story) -> None:
    """R2.3, R2.4: working with the first run, idle with the last."""
    for number in range(2):
        await story.assigned(f"Issue {number}")
    await story.claim(slots=2)
    third_issue = await story.assigned("Third")
    third = await story.running(third_issue)
    await story.later(61)  # Two claims expire; one run goes on.
    await story.claim(slots=0)
    assert await told(story) == ["working"]
    await story.complete(third)
    assert await told(story) == ["working", "idle"]


async def told(story: Story) -> list[str]:
    rows = await story.database.pool.fetch(
        "select payload ->> 'status' as status from understudy.events"
        " where kind = 'agent:status' order by id"
    )
    return [row["status"] for row in rows]


async def left_for(story: Story, slots: int = 1, runtime_id: UUID | None = None) -> set[str]:
    """By the name of the machine; "anybody": each of the place."""
    where = runtime_id or story.board.runtime_id
    done = await claims.claim(story.database, where, slots=slots, fence="full", claim_s=60)
    rows = await story.database.pool.fetch("select id, daemon_id from understudy.runtimes")
    names: dict[UUID | None, str] = {row["id"]: row["daemon_id"] for row in rows}
    return {(names | {None: "anybody"})[each] for each in done.left_for}


async def test_a_claim_tells_for_whom_something_is_left(story: Story) -> None:
    """R3.10: so that others look only if there is something to be found."""
    other = await story.board.runtime("other-daemon")
    bound = await story.board.agent("Bound", runtime_id=other.id)
    assert await left_for(story) == set()
    for number in range(2):
        await story.assigned(f"Issue {number}")
    assert await left_for(story) == {"anybody"}
    await story.assigned("Bound", bound)
    assert await left_for(story, slots=0) == {"anybody", "other-daemon"}
    assert await left_for(story) == {"other-daemon"}
    assert await left_for(story, runtime_id=other.id) == set()


async def test_what_cannot_be_claimed_is_not_left_for_anybody(story: Story) -> None:
    """R3.3, R3.1: the agent has no room, is at it already, or is no more."""
    narrow = await story.board.agent("Narrow", max_concurrent_tasks=1)
    for number in range(2):
        await story.assigned(f"Issue {number}", narrow)
    assert await left_for(story, slots=2) == set()
    issue = await story.assigned("One")
    await story.running(issue)
    await story.rerun(issue, after=True)
    assert await left_for(story) == set()
    await story.assigned("Another", await story.board.agent("Zed"))
    await story.database.pool.execute("update understudy.agents set archived_at = now()")
    assert await left_for(story) == set()


async def test_a_claim_in_another_place_tells_nothing_of_this_one(story: Story) -> None:
    """R3.1"""
    await story.assigned()
    await story.database.pool.execute("update understudy.runtimes set provider = 'other'")
    assert await left_for(story) == set()
    assert await left_for(story, runtime_id=UUID(int=9)) == {"anybody"}


@pytest.mark.parametrize(
    ("change", "barred_s"),
    [
        ("problem = null", -math.inf),
        ("problem = 'claude is not logged in'", math.inf),
        ("quota_resets_at = understudy.now() + interval '90 s'", 90.0),
        ("quota_resets_at = understudy.now() - interval '90 s'", -90.0),
    ],
)
async def test_a_claim_tells_for_how_long_its_runtime_gets_nothing(
    story: Story, change: str, barred_s: float
) -> None:
    """R5.2, R9.4: what it leaves is for others."""
    await story.assigned()
    await story.database.pool.execute(f"update understudy.runtimes set {change}")
    where = story.board.runtime_id
    done = await claims.claim(story.database, where, slots=1, fence="full", claim_s=60)
    assert done.barred_s == barred_s
    assert done.left_for == (frozenset() if barred_s < 0 else {None})


LOOKED_AT = """
    select sum(pg_stat_get_xact_tuples_returned(i.indexrelid))::int
    from pg_index i where i.indrelid = 'understudy.tasks'::regclass
"""


async def test_a_claim_looks_at_a_few_tasks_of_each_agent_however_many_wait(story: Story) -> None:
    """R3.10: also when it tells for whom something is left."""
    agents_max, each = 20, 10
    for number in range(agents_max):
        agent = await story.board.agent(f"Agent {number}")
        for _ in range(each):
            await story.board.assign(await story.board.issue("Wait"), agent)
    where, token = story.board.runtime_id, story.database.new_id()
    lease = timedelta(seconds=60)
    async with story.database.pool.transaction() as connection:
        for setting, value in PLANS.items():
            await connection.execute(f"set local {setting} = {value}")
        before = await connection.fetchval(LOOKED_AT)
        (row,) = await connection.fetch(claims.CLAIM, where, [token], "full", lease, claims.UNSAFE)
        assert row["left_for"] == [None]
        assert await connection.fetchval(LOOKED_AT) - before < 10 * agents_max
