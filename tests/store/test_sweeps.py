"""Each sweep by its rule, at the database's own time; killed at any write, and two at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from typing import Any
from uuid import UUID, uuid4

import pytest

from understudy.core.failures import POLICIES, FailureReason
from understudy.core.leases import Leases
from understudy.core.records import Runtime, Task
from understudy.store import nodes, runtimes, sweeps, tasks
from understudy.store.connection import open_connection
from understudy.store.database import Database
from understudy.store.errors import DatabaseUnavailable
from understudy.store.pool import Pool
from understudy.store.tasks import Failure, Holder, Outcome
from understudy.testing.board import PROVIDER, Board, Claim
from understudy.testing.virtual import SET_TIME

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
LEASES = Leases()
STRICT = Leases(takeover_grace_s=0.0, alone_grace_s=0.0)
REPORT = {"session_id": None, "work_dir": None}
HOUR, DAY = 3600.0, 86400.0
ELSEWHERE = uuid4()


@dataclass
class Calendar:
    """The board at a number of seconds after its beginning; each moment has its own sessions."""

    dsn: str
    dice: Random = field(default_factory=lambda: Random(7))
    pools: list[Pool] = field(default_factory=list)
    board: Board | None = None

    def database(self, at_s: float) -> Database:
        dial = partial(open_connection, self.dsn, options={"understudy.fake_now": moment(at_s)})
        self.pools.append(Pool(dial, size=2))
        return Database(self.pools[-1], self.dice)

    def at(self, at_s: float) -> Board:
        assert self.board is not None
        return replace(self.board, database=self.database(at_s))


def moment(at_s: float) -> str:
    return (EPOCH + timedelta(seconds=at_s)).isoformat()


@pytest.fixture
async def calendar(dsn: str, database: Database) -> AsyncIterator[Calendar]:
    await database.pool.execute("truncate understudy.nodes")
    calendar = Calendar(dsn)
    calendar.board = await Board.set_up(calendar.database(0))
    yield calendar
    for pool in calendar.pools:
        await pool.aclose()


def held(claim: Claim) -> Holder:
    return Holder(claim.task.workspace_id, claim.task.id, claim.claim_token)


async def running(board: Board, title: str = "A thing", **fields: Any) -> Claim:
    """On the board's own runtime."""
    agent = await board.agent(title, **fields) if fields else None
    await board.assign(await board.issue(title), agent)
    (claim,) = await board.claim()
    assert (await tasks.start(board.database, held(claim))).outcome is Outcome.MOVED
    return claim


async def goes_silent(board: Board) -> None:
    """Its actor has not heard it for 45 s."""
    await runtimes.go_offline(
        board.database, [board.runtime_id], action="stale_sweep", silent_s=LEASES.offline_after_s
    )


async def row(board: Board, task_id: UUID) -> Task:
    found = await tasks.find(board.database, board.workspace_id, task_id)
    assert found is not None
    return found


async def issue_status(board: Board, task: Task) -> str:
    status: str = await board.database.pool.fetchval(
        "select status from understudy.issues where id = $1", task.issue_id
    )
    return status


async def kinds(board: Board) -> list[str]:
    rows = await board.database.pool.fetch("select kind from understudy.events order by id")
    return [each["kind"] for each in rows]


# Lose


async def lost_after_s(calendar: Calendar, leases: Leases, *moments: float) -> float | None:
    """The first of these moments at which the sweep finds something."""
    for moment in moments:
        if await sweeps.lose(calendar.database(moment), leases):
            return moment
    return None


async def test_what_only_the_same_machine_can_resume_is_lost_after_3_hours_offline(
    calendar: Calendar,
) -> None:
    """R4.2"""
    await running(calendar.at(10))
    await goes_silent(calendar.at(100))
    moments = (100 + 46, 100 + 3 * HOUR - 1, 100 + 3 * HOUR)
    assert await lost_after_s(calendar, LEASES, *moments) == moments[-1]


async def test_what_another_runtime_could_take_over_is_lost_after_45_s_offline(
    calendar: Calendar,
) -> None:
    """R4.2"""
    await running(calendar.at(10))
    await calendar.at(20).runtime("other-daemon")
    await goes_silent(calendar.at(100))
    assert await lost_after_s(calendar, LEASES, 144, 145) == 145


async def test_one_that_came_after_the_silence_takes_nothing_over_early(calendar: Calendar) -> None:
    """R4.11: the silent daemon was told that it has 3 h."""
    await running(calendar.at(10))
    await goes_silent(calendar.at(100))  # Last heard at 55.
    await calendar.at(60).runtime("other-daemon")
    moments = (200, 100 + 3 * HOUR)
    assert await lost_after_s(calendar, LEASES, *moments) == moments[-1]


async def test_one_that_came_at_another_node_just_before_the_silence_takes_nothing_over_early(
    calendar: Calendar,
) -> None:
    """R4.11: the silent daemon's node may not have known of that node yet, when it promised 3 h."""
    await running(calendar.at(10))
    await calendar.at(42).runtime("other-daemon")
    await goes_silent(calendar.at(100))  # Last heard at 55.
    moments = (200, 100 + 3 * HOUR)
    assert await lost_after_s(calendar, LEASES, *moments) == moments[-1]


async def test_what_is_bound_to_its_machine_waits_for_it_whoever_else_is_there(
    calendar: Calendar,
) -> None:
    """R4.2"""
    board = calendar.at(10)
    await running(board, "Bound", runtime_id=board.runtime_id)
    await board.runtime("other-daemon")
    await goes_silent(calendar.at(100))
    moments = (200, 100 + 3 * HOUR)
    assert await lost_after_s(calendar, LEASES, *moments) == moments[-1]


async def test_with_a_grace_of_0_it_is_lost_in_the_tick_that_marks_the_runtime_offline(
    calendar: Calendar,
) -> None:
    """R4.2 [seed]"""
    await running(calendar.at(10))
    await goes_silent(calendar.at(100))
    assert await lost_after_s(calendar, STRICT, 100) == 100


async def test_a_machine_that_is_heard_loses_nothing_whatever_is_wrong_with_its_cli(
    calendar: Calendar,
) -> None:
    """R4.2: offline for new work, not silent."""
    board = calendar.at(10)
    await running(board)
    await _register(board, node_id=ELSEWHERE, problem="claude is not installed")
    assert await lost_after_s(calendar, STRICT, 10 * HOUR) is None


async def test_a_lost_task_has_one_child_and_all_that_must_be_true_with_it(
    calendar: Calendar,
) -> None:
    """R5.3, R5.4, R5.5"""
    claim = await running(calendar.at(10))
    board = calendar.at(20)
    await tasks.pin_session(board.database, held(claim), session_id="S", work_dir="/w")
    await goes_silent(calendar.at(100))
    board = calendar.at(4 * HOUR)
    (lost,) = await sweeps.lose(board.database, LEASES)
    assert await sweeps.lose(board.database, LEASES) == []
    assert (lost.status, lost.failure_reason, lost.move) == ("failed", "runtime_offline", "lose")
    assert lost.error is not None
    assert "has been offline since 00:01 UTC" in lost.error
    assert lost.retry_task_id is not None
    child = await row(board, lost.retry_task_id)
    assert (child.status, child.attempt, child.parent_task_id) == ("queued", 2, lost.id)
    assert (child.session_id, child.work_dir) == ("S", "/w")
    assert await issue_status(board, lost) == "in_progress"
    assert (await kinds(board))[-3:] == ["task:failed", "task:queued", "agent:status"]
    await consistent(board)


async def test_the_second_loss_has_no_child_and_its_issue_returns_to_todo(
    calendar: Calendar,
) -> None:
    """R5.3, R5.6"""
    await running(calendar.at(10))
    await goes_silent(calendar.at(100))
    await sweeps.lose(calendar.database(101), STRICT)
    board = calendar.at(102)
    await runtimes.take_over(board.database, board.runtime_id, ELSEWHERE)
    (again,) = await board.claim()
    await tasks.start(board.database, held(again))
    await goes_silent(calendar.at(200))
    (lost,) = await sweeps.lose(calendar.database(201), STRICT)
    assert (lost.attempt, lost.retry_task_id) == (2, None)
    assert await issue_status(board, lost) == "todo"
    await consistent(board)


async def test_a_cancelled_run_whose_machine_is_lost_is_cancelled_as_unconfirmed(
    calendar: Calendar,
) -> None:
    """R7.1"""
    claim = await running(calendar.at(10))
    board = calendar.at(20)
    asked = await tasks.cancel(board.database, board.workspace_id, claim.task.id, by=board.user_id)
    assert asked.outcome is Outcome.REQUESTED
    await goes_silent(calendar.at(100))
    (lost,) = await sweeps.lose(calendar.database(100), STRICT)
    assert (lost.status, lost.retry_task_id) == ("cancelled", None)
    assert lost.error is not None
    assert "unconfirmed" in lost.error


# Time out


async def test_what_was_dispatched_300_s_ago_and_is_not_renewed_times_out(
    calendar: Calendar,
) -> None:
    """R4.10 [seed]"""
    (claim,) = await calendar.at(10).dispatched("A thing")
    assert await sweeps.time_out(calendar.database(309), LEASES) == []
    board = calendar.at(310)
    (late,) = await sweeps.time_out(board.database, LEASES)
    assert (late.id, late.failure_reason) == (claim.task.id, "timeout")
    assert late.retry_task_id is not None
    await consistent(board)


async def test_a_preparation_that_renews_its_claim_is_not_timed_out(calendar: Calendar) -> None:
    """R4.10: wall clocks apply only to owners that stopped proving life."""
    (claim,) = await calendar.at(10).dispatched("A thing", claim_s=400)
    assert await sweeps.time_out(calendar.database(400), LEASES) == []
    done = await tasks.renew(calendar.database(405), held(claim), by_s=45)
    assert done.outcome is Outcome.MOVED
    assert await sweeps.time_out(calendar.database(449), LEASES) == []
    assert len(await sweeps.time_out(calendar.database(450), LEASES)) == 1


async def test_a_run_of_9000_s_times_out_only_if_its_runtime_is_silent_too(
    calendar: Calendar,
) -> None:
    """R4.10 [seed]"""
    await running(calendar.at(10))
    assert await sweeps.time_out(calendar.database(9010), LEASES) == []
    await goes_silent(calendar.at(8900))
    assert await sweeps.time_out(calendar.database(9009), LEASES) == []
    (late,) = await sweeps.time_out(calendar.database(9010), LEASES)
    assert (late.failure_reason, late.move) == ("timeout", "time_out")


async def test_a_cancellation_that_nobody_confirms_within_300_s_is_over(calendar: Calendar) -> None:
    """R7.1"""
    claim = await running(calendar.at(10))
    board = calendar.at(20)
    await tasks.cancel(board.database, board.workspace_id, claim.task.id, by=board.user_id)
    assert await sweeps.time_out(calendar.database(319), LEASES) == []
    board = calendar.at(320)
    (late,) = await sweeps.time_out(board.database, LEASES)
    assert (late.status, late.failure_reason) == ("cancelled", "cancelled")
    assert late.error is not None
    assert "unconfirmed" in late.error
    assert await issue_status(board, late) == "todo"


# Expire


async def test_what_nobody_took_within_2_hours_expires_and_is_not_tried_again(
    calendar: Calendar,
) -> None:
    """Spec section 2, R5.2"""
    board = calendar.at(10)
    done = await board.assign(await board.issue("A thing"))
    assert await sweeps.expire(calendar.database(2 * HOUR + 9), LEASES) == []
    board = calendar.at(2 * HOUR + 10)
    (late,) = await sweeps.expire(board.database, LEASES)
    assert done.task is not None
    assert (late.id, late.failure_reason) == (done.task.id, "queued_expired")
    assert late.retry_task_id is None
    assert late.error == "no machine took it within 2 h"
    await consistent(board)


async def test_the_2_hours_begin_anew_when_a_task_comes_back_into_the_queue(
    calendar: Calendar,
) -> None:
    """Spec section 2: queued for more than 2 h, not made 2 h ago."""
    await calendar.at(10).dispatched("A thing")
    assert await calendar.at(HOUR).claim(slots=0) == []  # Its claim has run out: requeued.
    assert await sweeps.expire(calendar.database(2 * HOUR + 10), LEASES) == []
    assert len(await sweeps.expire(calendar.database(3 * HOUR), LEASES)) == 1


# Promote


async def deferred(board: Board, title: str = "A thing") -> Task:
    """The retry of a run that met an overloaded provider; due in 30 s or more."""
    claim = await running(board, title)
    failure = Failure(FailureReason.PROVIDER_OVERLOADED, "529")
    failed = await tasks.fail(board.database, held(claim), failure, **REPORT)
    assert failed.task is not None
    assert failed.task.retry_task_id is not None
    return await row(board, failed.task.retry_task_id)


async def test_a_deferred_task_is_promoted_when_it_is_due_and_not_before(
    calendar: Calendar,
) -> None:
    """Spec section 2"""
    board = calendar.at(10)
    waiting = await deferred(board)
    assert waiting.fire_at is not None
    due_s = (waiting.fire_at - EPOCH).total_seconds()
    assert 40 <= due_s <= 46
    assert await sweeps.next_due_in(board.database) == pytest.approx(due_s - 10)
    assert await sweeps.promote(calendar.database(due_s - 0.1)) == []
    board = calendar.at(due_s)
    (promoted,) = await sweeps.promote(board.database)
    assert (promoted.id, promoted.status, promoted.move) == (waiting.id, "queued", "promote")
    assert await sweeps.next_due_in(board.database) is None
    await consistent(board)


async def test_a_deferred_task_waits_for_one_that_is_pending(calendar: Calendar) -> None:
    """R2.5"""
    board = calendar.at(10)
    waiting = await deferred(board)
    assert waiting.issue_id is not None
    again = await _rerun_behind(board, waiting.issue_id)
    assert await sweeps.promote(calendar.database(100)) == []
    board = calendar.at(101)
    (claim,) = await board.claim()
    assert claim.task.id == again
    assert await sweeps.promote(board.database) == []
    await tasks.start(board.database, held(claim))
    (promoted,) = await sweeps.promote(board.database)
    assert promoted.id == waiting.id


async def _rerun_behind(board: Board, issue_id: UUID) -> UUID:
    new = uuid4()
    outcome = await board.database.pool.fetchval(
        "select outcome from understudy.rerun_issue($1, $2, $3, $4, null, false, true) limit 1",
        board.workspace_id,
        issue_id,
        new,
        board.user_id,
    )
    assert outcome == "enqueued"
    return new


# Nodes


async def _register(
    board: Board, *, node_id: UUID, daemon_id: str = "first-daemon", problem: str | None = None
) -> Runtime:
    machine = runtimes.Machine(board.workspace_id, daemon_id, "laptop", None, node_id)
    status = "offline" if problem else "online"
    offer = runtimes.Offer(PROVIDER, "scripted", "laptop", "1", status, problem)
    return (await runtimes.register(board.database, machine, [offer])).runtimes[0]


async def holds_lease(calendar: Calendar, node_id: UUID, *, since_s: float, to_s: float) -> bool:
    """As a node does, renewing every 10 s; whether it had peers at last."""
    has_peers, at_s, database = False, since_s, calendar.database(since_s)
    while at_s <= to_s:
        await database.pool.fetchval(SET_TIME, moment(at_s))
        has_peers = await nodes.renew(database, node_id, "http://node", lease_s=LEASES.node_lease_s)
        at_s += LEASES.node_renew_s
    return has_peers


async def test_a_dead_node_s_runtimes_are_judged_45_s_after_its_lease_and_not_before(
    calendar: Calendar,
) -> None:
    """R4.4"""
    dead, mine = uuid4(), uuid4()
    await holds_lease(calendar, dead, since_s=0, to_s=100)  # To 130.
    await _register(calendar.at(5), node_id=dead)
    await holds_lease(calendar, mine, since_s=0, to_s=170)
    assert await sweeps.judge(calendar.database(174), mine, LEASES) == []
    (gone,) = await sweeps.judge(calendar.database(175), mine, LEASES)
    assert (gone.status, gone.node_id) == ("offline", None)
    board = calendar.at(176)
    event = await board.database.pool.fetchrow("select * from understudy.events order by id desc")
    assert event is not None
    assert event["kind"] == "daemon:register"
    assert event["payload"] == {"action": "stale_sweep", "runtime_ids": [str(gone.id)]}


async def test_who_registered_at_another_node_is_not_judged_for_the_dead_one(
    calendar: Calendar,
) -> None:
    """R4.4"""
    dead, mine = uuid4(), uuid4()
    await holds_lease(calendar, dead, since_s=0, to_s=100)
    await _register(calendar.at(5), node_id=dead)
    left = await _register(calendar.at(5), node_id=dead, daemon_id="second-daemon")
    await holds_lease(calendar, mine, since_s=0, to_s=170)
    await _register(calendar.at(140), node_id=mine)
    assert [each.id for each in await sweeps.judge(calendar.database(175), mine, LEASES)] == [
        left.id
    ]


async def test_who_registers_at_a_node_that_has_no_lease_again_yet_is_not_judged_at_once(
    calendar: Calendar,
) -> None:
    """R4.1, R4.4: its node has the database again, and has not come to renew its lease."""
    back, mine = uuid4(), uuid4()
    await holds_lease(calendar, back, since_s=0, to_s=100)  # To 130.
    await holds_lease(calendar, mine, since_s=0, to_s=210)
    await _register(calendar.at(200), node_id=back)
    assert await sweeps.judge(calendar.database(205), mine, LEASES) == []
    await holds_lease(calendar, mine, since_s=210, to_s=240)
    assert len(await sweeps.judge(calendar.database(245), mine, LEASES)) == 1


async def test_a_node_that_has_just_started_judges_nobody_for_45_s(calendar: Calendar) -> None:
    """R4.4"""
    mine = uuid4()
    await _register(calendar.at(0), node_id=uuid4())
    await holds_lease(calendar, mine, since_s=1000, to_s=1040)
    assert await sweeps.judge(calendar.database(1044), mine, LEASES) == []
    assert len(await sweeps.judge(calendar.database(1045), mine, LEASES)) == 1


async def test_a_gap_in_its_lease_makes_a_node_wait_again(calendar: Calendar) -> None:
    """R4.4: while it was cut off, who wanted to come back could not."""
    mine = uuid4()
    await _register(calendar.at(0), node_id=uuid4())
    await holds_lease(calendar, mine, since_s=0, to_s=100)  # To 130.
    assert await sweeps.judge(calendar.database(131), mine, LEASES) == []
    await holds_lease(calendar, mine, since_s=1000, to_s=1040)
    assert await sweeps.judge(calendar.database(1044), mine, LEASES) == []
    assert len(await sweeps.judge(calendar.database(1045), mine, LEASES)) == 1


async def test_a_node_that_left_is_missed_from_that_moment(calendar: Calendar) -> None:
    dead, mine = uuid4(), uuid4()
    await holds_lease(calendar, dead, since_s=0, to_s=100)
    await _register(calendar.at(5), node_id=dead)
    assert await holds_lease(calendar, mine, since_s=0, to_s=100)
    await nodes.leave(calendar.database(101), dead)
    assert await holds_lease(calendar, mine, since_s=110, to_s=140)  # Its machine may come here.
    assert await sweeps.judge(calendar.database(145.9), mine, LEASES) == []
    assert len(await sweeps.judge(calendar.database(146), mine, LEASES)) == 1
    assert not await holds_lease(calendar, mine, since_s=150, to_s=150)


async def test_whom_a_dead_node_heard_to_its_end_may_be_replaced_by_who_was_there_by_then(
    calendar: Calendar,
) -> None:
    """R4.2: registered long ago, heard until the node died, and another came in between."""
    dead, mine = uuid4(), uuid4()
    board = calendar.at(0)
    await _register(board, node_id=dead)
    await running(board)
    await holds_lease(calendar, dead, since_s=0, to_s=1000)
    await holds_lease(calendar, mine, since_s=0, to_s=1100)
    await _register(calendar.at(500), node_id=mine, daemon_id="second-daemon")
    assert len(await sweeps.judge(calendar.database(1100), mine, LEASES)) == 1
    assert await lost_after_s(calendar, LEASES, 1144, 1145) == 1145


async def test_the_machines_of_a_node_are_told_what_was_to_be_stopped_meanwhile(
    calendar: Calendar,
) -> None:
    """R7.1"""
    board = calendar.at(0)
    await _register(board, node_id=ELSEWHERE)
    claim = await running(board)
    assert await nodes.stops_due(board.database, ELSEWHERE) == []
    await tasks.cancel(board.database, board.workspace_id, claim.task.id, by=board.user_id)
    assert await nodes.stops_due(board.database, uuid4()) == []
    assert await nodes.stops_due(board.database, ELSEWHERE) == [(claim.task.id, board.runtime_id)]


# Retire and prune


async def test_a_runtime_offline_for_7_days_is_removed_and_its_history_stays(
    calendar: Calendar,
) -> None:
    """R4.9"""
    board = calendar.at(10)
    claim = await running(board)
    await tasks.complete(board.database, held(claim), {"output": "x"}, **REPORT)
    await goes_silent(calendar.at(100))
    assert await sweeps.retire(calendar.database(100 + 7 * DAY - 1), LEASES) == []
    board = calendar.at(100 + 7 * DAY)
    (gone,) = await sweeps.retire(board.database, LEASES)
    assert await runtimes.find(board.database, gone.id) is None
    assert (await row(board, claim.task.id)).runtime_id == gone.id
    again = await _register(calendar.at(8 * DAY), node_id=ELSEWHERE)
    assert (again.id, again.status) == (gone.id, "online")


@pytest.mark.parametrize("reason", ["bound", "at work", "queued for it", "heard"])
async def test_a_runtime_that_somebody_needs_is_not_removed(
    calendar: Calendar, reason: str
) -> None:
    """R4.9"""
    board = calendar.at(10)
    if reason == "bound":
        await board.agent("Bound", runtime_id=board.runtime_id)
    elif reason == "at work":
        await running(board)
    elif reason == "queued for it":
        await board.assign(await board.issue("A thing"))
        await board.database.pool.execute(
            "update understudy.tasks set runtime_id = $1", board.runtime_id
        )
    await goes_silent(calendar.at(100))
    if reason == "heard":
        await _register(calendar.at(200), node_id=ELSEWHERE, problem="claude is not installed")
    assert await sweeps.retire(calendar.database(30 * DAY), LEASES) == []


async def test_history_is_forgotten_after_90_days_and_not_before(calendar: Calendar) -> None:
    board = calendar.at(10)
    rows = [{"seq": n, "type": "text", "content": "x"} for n in range(5)]
    old = await running(board, "Old")
    await _say(board, old, rows)
    await tasks.complete(board.database, held(old), {"output": "x"}, **REPORT)
    board = calendar.at(10 * DAY)
    young = await running(board, "Young")
    await _say(board, young, rows)
    await tasks.complete(board.database, held(young), {"output": "x"}, **REPORT)
    assert await sweeps.prune(calendar.database(90 * DAY), LEASES) == 0
    database = calendar.database(95 * DAY)
    assert await sweeps.prune(database, LEASES) > 0
    assert await sweeps.prune(database, LEASES) == 0
    assert await tasks.messages(database, old.task.id) == []
    assert len(await tasks.messages(database, young.task.id)) == 5
    oldest = await database.pool.fetchval("select min(created_at) from understudy.events")
    assert oldest == EPOCH + timedelta(days=10)
    assert (await row(board, old.task.id)).status == "completed"


async def _say(board: Board, claim: Claim, rows: list[dict[str, Any]]) -> None:
    await board.database.pool.execute(
        "select understudy.append_messages($1, $2, $3, $4)",
        board.workspace_id,
        claim.task.id,
        claim.claim_token,
        rows,
    )


async def test_what_a_run_said_at_length_is_forgotten_in_turns_before_its_events(
    calendar: Calendar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "EVENTS_MAX", 50)
    board = calendar.at(10)
    old = await running(board)
    await _say(board, old, [{"seq": n, "type": "text", "content": "x"} for n in range(700)])
    await tasks.complete(board.database, held(old), {"output": "x"}, **REPORT)
    database = calendar.database(95 * DAY)
    events = "select count(*) from understudy.events"
    before = await database.pool.fetchval(events)
    assert await sweeps.prune(database, LEASES) >= 500
    assert len(await tasks.messages(database, old.task.id)) == 200
    assert await database.pool.fetchval(events) == before
    await sweeps.prune(database, LEASES)
    assert await database.pool.fetchval(events) == 0


# All of them

Sweep = Callable[[Database], Awaitable[Any]]
ALL: dict[str, Sweep] = {
    "lose": lambda database: sweeps.lose(database, LEASES),
    "time_out": lambda database: sweeps.time_out(database, LEASES),
    "expire": lambda database: sweeps.expire(database, LEASES),
    "promote": sweeps.promote,
    "judge": lambda database: sweeps.judge(database, ELSEWHERE, LEASES),
    "retire": lambda database: sweeps.retire(database, LEASES),
    "prune": lambda database: sweeps.prune(database, LEASES),
}
EACH = pytest.mark.parametrize("name", ALL)


async def something_to_sweep(calendar: Calendar, name: str, count: int) -> Database:
    """`count` rows for this sweep; at the time of the database that is returned they are due."""
    board = calendar.at(10)
    for number in range(count):
        match name:
            case "lose":
                await running(board, f"Lost {number}")
            case "time_out":
                await board.dispatched(f"Late {number}")
            case "expire":
                await board.assign(await board.issue(f"Waiting {number}"))
            case "promote":
                await deferred(board, f"Deferred {number}")
            case "judge" | "retire":
                await _register(board, node_id=uuid4(), daemon_id=f"daemon {number}")
            case _:
                await board.issue(f"Old {number}")
    if name in {"lose", "retire"}:
        place = [] if name == "retire" else [board.runtime_id]
        rows = await runtimes.of_workspace(board.database, board.workspace_id)
        ids = place or [each.id for each in rows if each.id != board.runtime_id]
        await runtimes.go_offline(board.database, ids, action="stale_sweep")
    if name == "judge":
        await runtimes.take_over(board.database, board.runtime_id, ELSEWHERE)
        await holds_lease(calendar, ELSEWHERE, since_s=0, to_s=100)
    at_s = {"time_out": 1000.0, "promote": 1000.0, "judge": 105.0, "retire": 8 * DAY}
    return calendar.database(at_s.get(name, 100 * DAY if name == "prune" else 4 * HOUR))


def moved(answer: list[Any] | int) -> int:
    return answer if isinstance(answer, int) else len(answer)


@EACH
async def test_a_sweep_takes_a_bounded_number_of_rows_and_the_rest_the_next_time(
    calendar: Calendar, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(sweeps, "BATCH_MAX", 3)
    monkeypatch.setattr(sweeps, "EVENTS_MAX", 3)
    database = await something_to_sweep(calendar, name, 5)
    counts = [moved(await ALL[name](database)) for _ in range(4)]
    assert counts == [3, 3 if name == "prune" else 2, 0, 0]


@EACH
async def test_while_one_node_sweeps_another_does_not(
    calendar: Calendar, dsn: str, name: str
) -> None:
    """Leader election for each transaction, by an advisory lock."""
    database = await something_to_sweep(calendar, name, 2)
    lock = {"judge": "offline"}.get(name, name)
    other = await open_connection(dsn)
    async with other.transaction():
        assert await other.fetchval("select understudy.leads($1)", lock)
        assert not await ALL[name](database)
    assert await ALL[name](database)
    other.close()


TABLES = ("tasks", "issues", "runtimes", "events", "calls", "task_messages", "comments", "nodes")
WRITES_COUNTED = """
    create or replace function public.die_at_a_write() returns trigger language plpgsql as $$
    declare
      n int := coalesce(nullif(current_setting('test.writes', true), ''), '0')::int + 1;
    begin
      perform set_config('test.writes', n::text, false);
      if n::text = current_setting('test.die_at', true) then
        perform pg_terminate_backend(pg_backend_pid());
        perform pg_sleep(60);
      end if;
      return null;
    end $$;
""" + "".join(
    f"""
    create or replace trigger zz_die after insert or update or delete on understudy.{table}
      for each row execute function public.die_at_a_write();
    """
    for table in TABLES
)
WRITES_FREE = "".join(f"drop trigger zz_die on understudy.{table};" for table in TABLES)


@pytest.fixture
async def deadly(database: Database) -> AsyncIterator[None]:
    async with database.pool.connection() as connection:
        await connection.run_script(WRITES_COUNTED)
        yield
        await connection.run_script(WRITES_FREE)


async def everything(database: Database) -> list[object]:
    return [
        await database.pool.fetch(f"select to_jsonb(t) as row from understudy.{table} t order by 1")
        for table in TABLES
    ]


@EACH
async def test_a_sweep_killed_at_any_write_leaves_nothing_half_done(
    calendar: Calendar, database: Database, deadly: None, name: str
) -> None:
    """R2.3"""
    due = await something_to_sweep(calendar, name, 3)
    before = await everything(database)
    deaths = 0
    while await _dies_at_write(calendar, due, name, deaths + 1):
        deaths += 1
        assert await everything(database) == before
    assert deaths >= 3
    assert await everything(database) != before
    await consistent(calendar.at(0))


async def _dies_at_write(calendar: Calendar, due: Database, name: str, write: int) -> bool:
    """Whether the sweep got as far as to be killed; else it has done its work."""
    now = await due.pool.fetchval("select understudy.now()::text")
    options = {"understudy.fake_now": now, "test.die_at": str(write)}
    calendar.pools.append(Pool(partial(open_connection, calendar.dsn, options=options), size=1))
    try:
        assert await ALL[name](Database(calendar.pools[-1], calendar.dice))
    except DatabaseUnavailable:
        return True
    return False


async def consistent(board: Board) -> None:
    """What must be true of all rows together, after any transaction."""
    rows = {
        row["id"]: row for row in await board.database.pool.fetch("select * from understudy.tasks")
    }
    for each in rows.values():
        if each["retry_task_id"] is not None:
            assert rows[each["retry_task_id"]]["parent_task_id"] == each["id"]
        policy = POLICIES[FailureReason(each["failure_reason"])] if each["failure_reason"] else None
        if each["status"] == "failed" and policy is not None:
            attempts = policy.attempts_max or each["max_attempts"]
            is_due = policy.is_retryable and each["attempt"] < attempts
            assert (each["retry_task_id"] is not None) == is_due
        told = await board.database.pool.fetchval(
            "select payload ->> 'status' from understudy.events where task_id = $1"
            " and payload ? 'move' order by id desc limit 1",
            each["id"],
        )
        assert told in {each["status"], None}  # None: it is forgotten.
    stuck = await board.database.pool.fetch(
        "select from understudy.issues i where i.status = 'in_progress' and not exists ("
        "select from understudy.tasks t where t.issue_id = i.id and t.completed_at is null)"
    )
    assert stuck == []
