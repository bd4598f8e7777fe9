"""R10.4: why a task is where it is. The table below is also what people read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from understudy.actors.place import POLL_S as ACTORS_POLL_S
from understudy.core.explain import POLL_S, explain
from understudy.core.leases import Leases
from understudy.core.lifecycle import ACTIVE, IN_FLIGHT, TERMINAL, Move, Status
from understudy.core.records import Priority, Task
from understudy.core.situation import Constraint, Deferral, Explanation, Place, Situation

NOW = datetime(2026, 11, 21, 14, 5, tzinfo=UTC)
LEASES = Leases()
ISSUE, BEFORE = UUID(int=1), UUID(int=7)
C, S = Constraint, Status


def ago(*, s: float = 0, m: float = 0, h: float = 0) -> datetime:
    return NOW - timedelta(seconds=s, minutes=m, hours=h)


def later(*, s: float = 0, m: float = 0, h: float = 0) -> datetime:
    return ago(s=-s, m=-m, h=-h)


TASK = Task(
    id=UUID(int=2),
    agent_id=UUID(int=3),
    issue_id=ISSUE,
    workspace_id=UUID(int=4),
    provider="claude",
    status=S.QUEUED,
    move=Move.ENQUEUE,
    trigger="assign",
    priority=Priority.NONE,
    attempt=1,
    max_attempts=2,
    created_at=ago(m=3),
)
TIMES = {S.DISPATCHED: {"dispatched_at": ago(s=12)}, S.RUNNING: {"started_at": ago(m=3)}}


def a_task(status: Status, **fields: Any) -> Task:
    return replace(TASK, **{"status": status, **TIMES.get(status, {}), **fields})


MAC = Place(name="mac/claude", online_since=ago(h=5), free_slots=4, is_attached=True)
LINUX = Place(name="linux/claude", online_since=ago(h=5), free_slots=4, is_attached=True)
MINE = replace(MAC, is_mine=True)
GONE = Place(name="mac/claude", offline_since=ago(m=3), is_attached=False)
MINE_GONE = replace(GONE, is_mine=True, offline_since=ago(s=14), last_seen_at=ago(s=90))
SPENT = replace(MAC, quota_resets_at=later(m=58))
GONE_BEFORE = [replace(GONE, name=f"box-{n}/claude", offline_since=ago(h=n)) for n in (1, 2)]
BROKEN = replace(GONE, problem="`claude --version` exited with status 1;\n reinstall it")
FULL = replace(MAC, free_slots=0)


def situation(task: Task, *places: Place, **fields: Any) -> Situation:
    usual: dict[str, Any] = {"agent_name": "Nia", "agent_runs": 1, "agent_limit": 6}
    return Situation(task=task, places=list(places), **{"queued_at": ago(m=2)} | usual | fields)


def deferred(deferred_for: Deferral, fire_at: datetime, **fields: Any) -> Situation:
    task = a_task(S.DEFERRED, attempt=1 if deferred_for == "schedule" else 2, max_attempts=3)
    return situation(task, MAC, deferred_for=deferred_for, fire_at=fire_at, **fields)


def queued(*places: Place, **fields: Any) -> Situation:
    return situation(a_task(S.QUEUED), *places, **fields)


def dispatched(*places: Place, expires_at: datetime, **fields: Any) -> Situation:
    return situation(a_task(S.DISPATCHED, **fields), *places, claim_expires_at=expires_at)


def running(*places: Place, **fields: Any) -> Situation:
    return situation(a_task(S.RUNNING, **fields), *places)


@dataclass(frozen=True)
class Row:
    given: Situation
    constraint: Constraint
    sentence: str
    changes: str
    changes_at: datetime | None = None


EXPIRES = "; unclaimed, the task expires in 1 h 58 min"
EXPIRES_AT = later(m=118)
START = "`understudy daemon start` on its machine"

ROWS = {
    "back-off": Row(
        deferred("backoff", later(s=31)), C.BACKOFF,
        "deferred: the attempt before it failed, attempt 2 of 3 follows in 31 s",
        "by itself at 14:05 UTC, or at once with a rerun", later(s=31),
    ),
    "provider": Row(
        deferred("provider", later(s=5)), C.PROVIDER,
        "deferred: provider claude was overloaded or out of reach, attempt 2 of 3 follows in 5 s",
        "by itself at 14:05 UTC, or at once with a rerun", later(s=5),
    ),
    "parked until the quota resets": Row(
        deferred("quota", later(h=10, m=30)), C.QUOTA,
        "deferred: the quota of provider claude is used up"
        " and comes back at 2026-11-22 00:35 UTC, in 10 h 30 min",
        "by itself at 2026-11-22 00:35 UTC, or at once with a rerun", later(h=10, m=30),
    ),
    "storm": Row(
        deferred("storm", later(s=31)), C.STORM,
        "deferred: this workspace has too many retries, attempt 2 of 3 has its turn in 31 s",
        "by itself at 14:05 UTC, or at once with a rerun", later(s=31),
    ),
    "schedule, without an issue to rerun": Row(
        situation(a_task(S.DEFERRED, issue_id=None), deferred_for="schedule", fire_at=later(m=5)),
        C.SCHEDULE,
        "deferred: it is scheduled for 14:10 UTC, in 5 min",
        "by itself at 14:10 UTC", later(m=5),
    ),
    "due behind another": Row(
        deferred("backoff", ago(s=3), has_pending_on_issue=True), C.ISSUE_PENDING,
        "deferred: it is due, but another task of agent Nia on this issue is first",
        "when that one has started or ended",
    ),
    "due": Row(
        deferred("backoff", NOW), C.PROMOTING,
        "deferred: it is due, and is being queued",
        "by itself within 30 s",
    ),
    "deferred, archived": Row(
        deferred("backoff", later(s=31), is_archived=True), C.AGENT_ARCHIVED,
        "deferred: agent Nia is archived and takes no work",
        "when somebody cancels it",
    ),
    "queued, archived": Row(
        queued(MAC, is_archived=True), C.AGENT_ARCHIVED,
        "queued: agent Nia is archived and takes no work",
        "when somebody cancels it" + EXPIRES, EXPIRES_AT,
    ),
    "nobody offers it": Row(
        queued(), C.NO_RUNTIME,
        "queued: no machine offers provider claude",
        "when a daemon starts where its CLI is installed: `understudy daemon start`" + EXPIRES,
        EXPIRES_AT,
    ),
    "offline": Row(
        queued(GONE), C.RUNTIME_OFFLINE,
        "queued: runtime mac/claude is offline since 14:02 UTC",
        f"when it comes back: {START}{EXPIRES}", EXPIRES_AT,
    ),
    "all offline": Row(
        queued(GONE, *GONE_BEFORE), C.RUNTIME_OFFLINE,
        "queued: runtimes box-1/claude, box-2/claude and 1 more are offline,"
        " the last of them since 14:02 UTC",
        f"when one of them comes back: {START}{EXPIRES}", EXPIRES_AT,
    ),
    "offline, and time is up": Row(
        queued(GONE, queued_at=ago(h=2)), C.RUNTIME_OFFLINE,
        "queued: runtime mac/claude is offline since 14:02 UTC",
        f"when it comes back: {START}; unclaimed, the task expires now",
    ),
    "quota": Row(
        queued(SPENT), C.QUOTA,
        "queued: the quota of runtime mac/claude is used up and comes back at 15:03 UTC, in 58 min",
        "by itself in 58 min, or at once with a rerun" + EXPIRES, later(m=58),
    ),
    "quota, but not in time": Row(
        queued(replace(MAC, quota_resets_at=later(h=50))), C.QUOTA,
        "queued: the quota of runtime mac/claude is used up"
        " and comes back at 2026-11-23 16:05 UTC, in 2 d 2 h",
        "by itself in 2 d 2 h, or at once with a rerun" + EXPIRES, EXPIRES_AT,
    ),
    "out of order": Row(
        queued(BROKEN), C.RUNTIME_PROBLEM,
        "queued: runtime mac/claude is out of order:"
        " `claude --version` exited with status 1; reinstall it",
        "when that is repaired: its daemon looks again every few minutes" + EXPIRES, EXPIRES_AT,
    ),
    "its predecessor": Row(
        queued(MAC, running_on_issue=BEFORE), C.ISSUE_BUSY,
        "queued: it follows the run that agent Nia already has on this issue",
        f"when that run ends: `understudy why {BEFORE}`{EXPIRES}", EXPIRES_AT,
    ),
    "its predecessor is being cancelled": Row(
        queued(MAC, running_on_issue=BEFORE, is_cancelling_on_issue=True), C.ISSUE_BUSY,
        "queued: the run of agent Nia before it on this issue is being cancelled",
        f"when its machine confirms that the agent is gone: `understudy why {BEFORE}`{EXPIRES}",
        EXPIRES_AT,
    ),
    "the agent's limit": Row(
        queued(MAC, agent_runs=6), C.AGENT_LIMIT,
        "queued: agent Nia runs 6 of 6",
        "when one of its 6 runs ends, or its limit is raised" + EXPIRES, EXPIRES_AT,
    ),
    "a limit of one": Row(
        queued(MAC, agent_runs=1, agent_limit=1), C.AGENT_LIMIT,
        "queued: agent Nia runs 1 of 1",
        "when its run ends, or its limit is raised" + EXPIRES, EXPIRES_AT,
    ),
    "a limit that was lowered": Row(
        queued(MAC, agent_runs=6, agent_limit=4), C.AGENT_LIMIT,
        "queued: agent Nia runs 6 of 4",
        "when 3 of its 6 runs have ended, or its limit is raised" + EXPIRES, EXPIRES_AT,
    ),
    "no connection": Row(
        queued(replace(MAC, is_attached=False)), C.NOT_CONNECTED,
        "queued: runtime mac/claude is online, but not connected to be handed work",
        "when it connects or asks; after 45 s of silence it counts as offline" + EXPIRES,
        EXPIRES_AT,
    ),
    "no slot": Row(
        queued(FULL, replace(FULL, name="linux/claude")), C.NO_SLOT,
        "queued: runtimes linux/claude and mac/claude are without a free slot",
        "when a run ends there, or a daemon that drains is started again" + EXPIRES, EXPIRES_AT,
    ),
    "now": Row(
        queued(MAC, LINUX, GONE), C.HANDING_OVER,
        "queued: it is being handed to linux/claude or mac/claude",
        "by itself within 30 s",
    ),
    "now, by another node": Row(
        queued(replace(MAC, free_slots=None, is_attached=None)), C.HANDING_OVER,
        "queued: it is being handed to mac/claude",
        "by itself within 30 s",
    ),
    "preparing": Row(
        dispatched(MINE, expires_at=later(s=48)), C.PREPARING,
        "dispatched: mac/claude prepares the work directory, for 12 s now",
        "when the agent starts; its claim ends in 48 s unless it is renewed", later(s=48),
    ),
    "not renewed": Row(
        dispatched(MINE, dispatched_at=ago(s=75), expires_at=ago(s=15)), C.CLAIM_EXPIRED,
        "dispatched: the claim of runtime mac/claude ran out 15 s ago",
        "when that runtime next asks for work, and the task is queued again;"
        " else it fails in 4 min", later(s=225),
    ),
    "dispatched to a machine that fell silent": Row(
        dispatched(MINE_GONE, dispatched_at=ago(s=75), expires_at=ago(s=15)), C.ALONE_GRACE,
        "dispatched: runtime mac/claude is offline since 14:04 UTC,"
        " no other can take over, it is given up in 4 min",
        f"when it comes back: {START}; else it fails in 4 min and is tried again", later(s=225),
    ),
    "running": Row(
        running(MINE), C.WORKING,
        "running on mac/claude for 3 min",
        "when the agent ends, or somebody cancels it",
    ),
    "an understudy is there": Row(
        running(MINE_GONE, LINUX), C.TAKEOVER_GRACE,
        "running: runtime mac/claude is offline since 14:04 UTC, linux/claude takes over in 31 s",
        f"when it comes back: {START}; else it fails in 31 s and is tried again", later(s=31),
    ),
    "its last attempt": Row(
        running(MINE_GONE, LINUX, attempt=2), C.TAKEOVER_GRACE,
        "running: runtime mac/claude is offline since 14:04 UTC, it is given up in 31 s",
        f"when it comes back: {START}; else it fails in 31 s", later(s=31),
    ),
    "its grace is over": Row(
        running(replace(MINE_GONE, offline_since=ago(s=45)), LINUX), C.TAKEOVER_GRACE,
        "running: runtime mac/claude is offline since 14:04 UTC, linux/claude takes over now",
        f"when it comes back: {START}; else it fails now and is tried again",
    ),
    "an understudy that came back too late to be one": Row(
        running(MINE_GONE, replace(LINUX, online_since=ago(s=80))), C.ALONE_GRACE,
        "running: runtime mac/claude is offline since 14:04 UTC,"
        " no other can take over, it is given up in 2 h 27 min",
        f"when it comes back: {START}; else it fails in 2 h 27 min and is tried again",
        later(h=2, m=27),
    ),
    "pinned": Row(
        running(replace(MINE_GONE, is_pinned=True), LINUX, started_at=ago(s=20)), C.ALONE_GRACE,
        "running: runtime mac/claude is offline since 14:04 UTC,"
        " no other can take over, it is given up in 2 h 30 min",
        f"when it comes back: {START}; else it fails in 2 h 30 min and is tried again",
        later(h=2.5, s=-20),
    ),
    "its CLI broke": Row(
        running(replace(BROKEN, is_mine=True), started_at=ago(m=3)), C.ALONE_GRACE,
        "running: runtime mac/claude is offline since 14:02 UTC"
        " (`claude --version` exited with status 1; reinstall it),"
        " no other can take over, it is given up in 2 h 27 min",
        "when that is repaired; else it fails in 2 h 27 min and is tried again", later(h=2, m=27),
    ),
    "cancelling": Row(
        running(MINE, cancel_requested_at=ago(s=4)), C.STOPPING,
        "cancelling: mac/claude was told 4 s ago and has not confirmed the end",
        "when it confirms that the agent is gone;"
        " else it counts as cancelled, unconfirmed, in 5 min", later(s=296),
    ),
    "cancelling on a machine that is offline": Row(
        running(MINE_GONE, LINUX, cancel_requested_at=ago(s=4)), C.STOP_UNCONFIRMED,
        "cancelling: runtime mac/claude is offline since 14:04 UTC, and cannot confirm the end",
        f"when it comes back: {START}; else it counts as cancelled, unconfirmed, in 31 s",
        later(s=31),
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_what_people_read(row: Row) -> None:
    """R10.4"""
    assert explain(row.given, NOW, LEASES) == Explanation(
        constraint=row.constraint,
        sentence=row.sentence,
        changes=row.changes,
        changes_at=row.changes_at,
    )


def test_the_table_has_every_constraint() -> None:
    assert {row.constraint for row in ROWS.values()} == set(Constraint)


@pytest.mark.parametrize(
    ("worse", "constraint"),
    [
        (queued(GONE, SPENT, BROKEN), C.QUOTA),
        (queued(GONE, BROKEN), C.RUNTIME_OFFLINE),
        (queued(SPENT, replace(SPENT, quota_resets_at=later(m=5))), C.QUOTA),
        (queued(GONE, running_on_issue=BEFORE, agent_runs=6), C.RUNTIME_OFFLINE),
        (queued(MAC, running_on_issue=BEFORE, agent_runs=6), C.ISSUE_BUSY),
        (queued(FULL, agent_runs=6), C.AGENT_LIMIT),
        (queued(FULL, replace(LINUX, is_attached=False)), C.NOT_CONNECTED),
        (queued(is_archived=True), C.AGENT_ARCHIVED),
        (deferred("storm", later(s=3), has_pending_on_issue=True), C.STORM),
    ],
)
def test_of_several_constraints_the_binding_one_is_named(
    worse: Situation, constraint: Constraint
) -> None:
    """R10.4: what a task needs at once binds by what lasts longest, its places by the first fit."""
    assert explain(worse, NOW, LEASES).constraint is constraint


def test_the_first_quota_to_come_back_is_the_one_named() -> None:
    soon = replace(LINUX, quota_resets_at=later(m=5))
    assert "linux/claude" in explain(queued(SPENT, soon), NOW, LEASES).sentence


@pytest.mark.parametrize(
    "it",
    [
        replace(running(MINE_GONE, LINUX), is_archived=True),
        replace(running(MINE_GONE, LINUX), has_pending_on_issue=True),
        running(MINE_GONE, LINUX, issue_id=None),
        running(MINE_GONE, LINUX, attempt=2),
    ],
)
def test_nobody_takes_over_what_is_not_tried_again(it: Situation) -> None:
    """R5.3, R5.4"""
    told = explain(it, NOW, LEASES)
    assert "takes over" not in told.sentence
    assert "tried again" not in told.changes


def test_a_preparation_is_not_timed_out_while_its_claim_holds() -> None:
    """R4.10"""
    slow = dispatched(MINE_GONE, dispatched_at=ago(m=20), expires_at=later(s=20))
    assert explain(slow, NOW, LEASES).changes_at == later(s=20)


def test_without_grace_a_silent_runtime_loses_its_tasks_at_once() -> None:
    """R4.2: both graces 0 is the strict rule."""
    strict = Leases(takeover_grace_s=0, alone_grace_s=0)
    assert "it is given up now" in explain(running(MINE_GONE), NOW, strict).sentence


def test_the_short_grace_is_never_the_longer_one() -> None:
    odd = Leases(takeover_grace_s=60, alone_grace_s=20)
    assert explain(running(MINE_GONE, LINUX), NOW, odd).changes_at == later(s=6)


def test_a_hand_over_takes_no_longer_than_the_actors_poll() -> None:
    assert POLL_S == ACTORS_POLL_S


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_what_has_ended_is_not_explained(status: Status) -> None:
    with pytest.raises(AssertionError, match=f"a {status} task stays where it is"):
        explain(situation(a_task(status), MAC), NOW, LEASES)


moments = st.integers(-4 * 86_400_000, 4 * 86_400_000).map(
    lambda milliseconds: NOW + timedelta(milliseconds=milliseconds)
)
names = st.sampled_from(["mac/claude", "linux/claude", "box/claude", "über/claude"])
maybe = moments | st.none()


@st.composite
def some_place(draw: st.DrawFn) -> Place:
    """Of what the schema allows: a runtime is either online since a time or offline since one."""
    is_online, since = draw(st.booleans()), draw(moments)
    return Place(
        name=draw(names),
        offline_since=None if is_online else since,
        online_since=since if is_online else None,
        last_seen_at=since,
        problem=draw(st.none() | st.text(min_size=1, max_size=20)),
        quota_resets_at=draw(maybe),
        is_pinned=draw(st.booleans()),
        free_slots=draw(st.none() | st.integers(0, 2)),
        is_attached=draw(st.none() | st.booleans()),
    )


@st.composite
def some_situation(draw: st.DrawFn, statuses: Iterable[Status] = ACTIVE) -> Situation:
    status = draw(st.sampled_from(sorted(statuses)))
    is_in_flight = status in IN_FLIGHT
    places = draw(st.lists(some_place(), min_size=int(is_in_flight), max_size=4))
    if is_in_flight:
        places[0] = replace(places[0], is_mine=True)
    task = a_task(
        status,
        attempt=draw(st.integers(1, 3)),
        issue_id=draw(st.sampled_from([ISSUE, None])),
        dispatched_at=draw(moments) if is_in_flight else None,
        started_at=draw(moments) if status is S.RUNNING else None,
        cancel_requested_at=draw(maybe) if is_in_flight else None,
    )
    return Situation(
        task=task,
        queued_at=draw(moments),
        claim_expires_at=draw(moments) if status is S.DISPATCHED else None,
        fire_at=draw(moments) if status is S.DEFERRED else draw(maybe),
        deferred_for=draw(st.sampled_from(["backoff", "provider", "quota", "storm", "schedule"])),
        agent_name="Nia",
        agent_runs=draw(st.integers(0, 8)),
        agent_limit=draw(st.integers(1, 6)),
        is_archived=draw(st.booleans()) and draw(st.booleans()),
        running_on_issue=draw(st.sampled_from([None, BEFORE])),
        is_cancelling_on_issue=draw(st.booleans()),
        has_pending_on_issue=draw(st.booleans()),
        places=places,
    )


@given(some_situation())
@settings(max_examples=500)
def test_every_situation_has_an_explanation_that_names_what_would_change_it(
    it: Situation,
) -> None:
    """R10.4: a total function of the state; no "waiting" without a reason."""
    told = explain(it, NOW, LEASES)
    is_cancelling = it.task.cancel_requested_at is not None
    assert told.sentence.startswith("cancelling" if is_cancelling else it.task.status)
    assert told.changes
    assert told.changes_at is None or told.changes_at > NOW
    for said in (told.sentence, told.changes):
        assert "waiting" not in said
        assert "None" not in said
        assert len(said.splitlines()) == 1


@given(some_situation())
def test_the_order_of_the_places_changes_nothing(it: Situation) -> None:
    backwards = replace(it, places=it.places[::-1])
    assert explain(backwards, NOW, LEASES) == explain(it, NOW, LEASES)


def is_claimable(it: Situation) -> bool:
    """The guards of `understudy.claim_tasks`, and what keeps a place from asking."""
    return (
        not it.is_archived
        and it.agent_runs < it.agent_limit
        and it.running_on_issue is None
        and any(
            place.offline_since is None
            and place.problem is None
            and (place.quota_resets_at is None or place.quota_resets_at <= NOW)
            and place.is_attached is not False
            and place.free_slots != 0
            for place in it.places
        )
    )


@given(some_situation([S.QUEUED]))
def test_a_task_is_being_handed_over_exactly_when_it_can_be_claimed(it: Situation) -> None:
    is_handed_over = explain(it, NOW, LEASES).constraint is C.HANDING_OVER
    assert is_handed_over == is_claimable(it)


def lift(constraint: Constraint, it: Situation) -> Situation:
    match constraint:
        case C.AGENT_ARCHIVED:
            return replace(it, is_archived=False)
        case C.ISSUE_BUSY:
            return replace(it, running_on_issue=None)
        case C.AGENT_LIMIT:
            return replace(it, agent_limit=it.agent_runs + 1)
        case _:
            return replace(it, places=[MAC])


@given(some_situation([S.QUEUED]))
def test_what_is_named_is_in_the_way_and_in_the_way_alone_once_the_rest_is_lifted(
    it: Situation,
) -> None:
    """R10.4"""
    constraint = explain(it, NOW, LEASES).constraint
    assume(constraint is not C.HANDING_OVER)
    others = {C.AGENT_ARCHIVED, C.ISSUE_BUSY, C.AGENT_LIMIT} - {constraint}
    if len(others) == 2:
        others |= {C.NO_RUNTIME}
    for other in sorted(others):
        it = lift(other, it)
    assert explain(it, NOW, LEASES).constraint is constraint
    assert explain(lift(constraint, it), NOW, LEASES).constraint is C.HANDING_OVER
