"""Who may be judged when, and how soon: from what nodes heard of machines (R4), and were asked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Final
from uuid import UUID

from understudy.testing.evidence import CLOSE_S, Evidence, Happened, Registering, Row, seconds
from understudy.testing.laws import always, at_rest
from understudy.testing.laws_of_retries import wait_s
from understudy.testing.replay import Board, Standing, commits

SILENCE_S: Final = 45.0
TAKEOVER_S: Final = 45.0
DISPATCHED_S: Final = 300.0
INSTANT_S: Final = 0.5
"""Who is heard while he is judged comes too late."""
JUDGED: Final = {"lose", "time_out"}
REGISTERS_S: Final = 200.0
"""A registration takes no longer, but where its node was killed, and nobody can say."""
LATE_S: Final = 300.0
"""A sweep, and what keeps nodes from it: absence, no database, their own 45 s (R4.4)."""
TOLD_S: Final = 10.0
"""Within it a keeper is told; what was promised last its daemon may have died of telling."""
MARGIN_S: Final = 11.0
"""Within it an agent is to be gone; a second for clocks."""
POLL_S: Final = 30.0
ANSWER_S: Final = 20.0
"""An answer takes no longer, or its connection is given up."""
KNOWN_S: Final = 15.0
"""Who came later is not given what a machine had when it was last heard."""
IDLE_S: Final = 5.0
"""Pushes take milliseconds; a lost one costs a poll, of 10 s at least."""


def _failures(evidence: Evidence, *moves: str) -> Iterator[tuple[Row, Happened]]:
    for event in evidence.events:
        if event.kind == "task:failed" and event.body["move"] in moves:
            yield evidence.tasks[UUID(event.body["task_id"])], event


def _silent_s(evidence: Evidence, machine: str, at: float) -> float:
    """Since the last sign of life whose answer came there: one that was long on its way, and is
    answered to nobody, may be older than a registration elsewhere."""
    answers = [told_at for told_at, _ in evidence.machines.promises.get(machine, [])]
    heard = [
        since
        for answered_at, since in evidence.machines.heard.get(machine, [])
        if answered_at <= at - INSTANT_S
        and any(answered_at <= told_at <= answered_at + ANSWER_S for told_at in answers)
    ]
    return at - max(heard, default=0.0)


def _has_left(evidence: Evidence, lost: Happened) -> bool:
    runtime_id = lost.body["runtime_id"]
    said = [
        each.body["action"]
        for each in evidence.events
        if each.kind == "daemon:register"
        and each.at <= lost.at
        and runtime_id in each.body.get("runtime_ids", ())
    ]
    return said[-1:] == ["deregister"]


@always
def only_the_silent_are_offline(evidence: Evidence) -> Iterator[str]:
    """R4.1, R4.4: no machine is taken for offline within 45 s of a sign of life."""
    for event in evidence.events:
        if event.kind == "daemon:register" and event.body["action"] == "stale_sweep":
            for runtime_id in event.body["runtime_ids"]:
                machine = evidence.machine_of[UUID(runtime_id)]
                silent_s = _silent_s(evidence, machine, event.at)
                if silent_s < SILENCE_S - CLOSE_S:
                    yield f"{machine} is offline after {silent_s:.1f} s of silence"


@always
def the_lost_were_silent(evidence: Evidence) -> Iterator[str]:
    """R4.2: no run is lost before its machine was silent for 45 s and its grace.

    One that said goodbye need not be silent first.
    """
    for row, event in _failures(evidence, "lose"):
        is_bound = evidence.agents[row["agent_id"]]["runtime_id"] is not None
        grace_s = evidence.leases.alone_grace_s if is_bound else TAKEOVER_S
        silent_s = _silent_s(evidence, machine := evidence.place(event), event.at)
        least_s = grace_s + (0.0 if _has_left(evidence, event) else SILENCE_S)
        if silent_s < least_s - CLOSE_S:
            yield f"{row['id']} is lost after {silent_s:.1f} s of silence of {machine}"


@always
def clocks_judge_only_the_silent(evidence: Evidence) -> Iterator[str]:
    """R4.10: no run times out early, nor while its machine is heard."""
    for row, event in _failures(evidence, "time_out"):
        silent_s = _silent_s(evidence, evidence.place(event), event.at)
        since_s = event.at - seconds(row["started_at"] or row["dispatched_at"])
        least_s = evidence.leases.running_max_s if row["started_at"] else DISPATCHED_S
        if since_s < least_s - CLOSE_S or (row["started_at"] and silent_s < SILENCE_S):
            yield f"{row['id']} times out after {since_s:.1f} s, heard {silent_s:.1f} s ago"


@always
def a_living_machine_gives_back_what_it_does_not_start(evidence: Evidence) -> Iterator[str]:
    """R3.8: no claim of a machine that is heard all the time waits for the clock of R4.10."""
    claimed_at: dict[UUID | None, float] = {}
    for event in evidence.moves():
        since = claimed_at.pop(event.task_id, None)
        if event.kind == "task:dispatch":
            claimed_at[event.task_id] = event.at
        elif event.body["move"] == "time_out" and since is not None:
            machine = evidence.place(event)
            if evidence.silence_s(machine, since, event.at) < SILENCE_S:
                yield f"{event.task_id} is with {machine}, which is heard, and never starts"


@always
def queues_are_patient(evidence: Evidence) -> Iterator[str]:
    """Section 2: no task expires that was queued for less than it may be."""
    since: dict[UUID | None, float] = {}
    for event in evidence.moves():
        if event.body["move"] == "expire":
            waited_s = event.at - since[event.task_id]
            if waited_s < evidence.leases.queued_max_s - CLOSE_S:
                yield f"{event.task_id} expires after {waited_s:.1f} s"
        since[event.task_id] = event.at


@always
def what_a_machine_names_is_not_orphaned(evidence: Evidence) -> Iterator[str]:
    """R6.2: recovery gives up what the registration that it serves did not name, nothing else."""
    for row, event in _failures(evidence, "orphan"):
        machine = evidence.place(event)
        if all(_has_named(each, row) for each in _in_progress(evidence, machine, event.at)):
            yield f"{row['id']} is orphaned, and {machine} had named it"


def _in_progress(evidence: Evidence, machine: str, at: float) -> Iterator[Registering]:
    for each in evidence.machines.registering.get(machine, []):
        until = min(each.ended_at, each.came_at + REGISTERS_S)
        if each.came_at - CLOSE_S <= at <= until + CLOSE_S:
            yield each


def _has_named(registering: Registering, row: Row) -> bool:
    return (row["id"], row["claim_token"]) in registering.named


@always
def what_a_machine_has_begun_it_names(evidence: Evidence) -> Iterator[str]:
    """R6.2, R6.4: no run that was begun is orphaned, but by a machine that has lost its disk.

    Or by one that is two: a copy knows nothing of what was begun since.
    """
    for row, event in _failures(evidence, "orphan"):
        machine = evidence.place(event)
        wiped = evidence.machines.wiped.get(machine, [])
        since = seconds(row["dispatched_at"])
        if evidence.is_two(machine):
            continue
        if row["started_at"] and not any(since <= at <= event.at for at in wiped):
            yield f"{row['id']} was begun, and {machine} knows it no longer"


@always
def promises_are_kept(evidence: Evidence) -> Iterator[str]:
    """R4.11: no run is given up while its machine may trust that it is not."""
    for row, event in _failures(evidence, *JUDGED):
        machine = evidence.place(event)
        promises = [p for p in evidence.machines.promises.get(machine, []) if p[0] <= event.at]
        if row["started_at"] and promises and event.at < (until := max(promises)[1]) - CLOSE_S:
            yield f"{row['id']} is given up; {machine} was promised it until {until:.1f}"


@always
def promises_are_covered(evidence: Evidence) -> Iterator[str]:
    """R4.11: no machine trusts for longer than 90 s from the sign of life that was answered.

    Unless it is alone: then nobody could be given its work.
    """
    online = _online(evidence)
    for machine, promises in evidence.machines.promises.items():
        for at, until in promises:
            since = at - evidence.silent_s(machine, at)
            is_long = until > max(at, since + SILENCE_S + TAKEOVER_S) + INSTANT_S
            if is_long and _is_another_there(evidence, online, machine, since, at):
                yield f"{machine} trusts until {until:.1f}, the others wait from {since:.1f} on"


def _online(evidence: Evidence) -> dict[str, list[tuple[float, bool]]]:
    """When each machine came and went, by the record."""
    changes = defaultdict[str, list[tuple[float, bool]]](list)
    for events, board in commits(evidence.events):
        for runtime, is_online in board.online.items():
            told = changes[_name(evidence, runtime)]
            if not told or told[-1][1] != is_online:
                told.append((events[0].at, is_online))
    return changes


def _is_another_there(
    evidence: Evidence,
    online: dict[str, list[tuple[float, bool]]],
    machine: str,
    since: float,
    told_at: float,
) -> bool:
    """It is online, was before the machine was heard, and was heard itself then."""
    return any(
        _was_there(changes, since, told_at)
        and evidence.silent_s(other, since) < SILENCE_S - INSTANT_S
        for other, changes in online.items()
        if other != machine and _work_together(evidence, machine, other)
    )


def _work_together(evidence: Evidence, one: str, other: str) -> bool:
    workspaces = evidence.machines.workspaces
    return workspaces.get(one) == workspaces.get(other)


def _was_there(changes: list[tuple[float, bool]], since: float, told_at: float) -> bool:
    before = [is_online for at, is_online in changes if at <= since - KNOWN_S]
    lately = [is_online for at, is_online in changes if since - KNOWN_S < at <= told_at]
    return before[-1:] == [True] and all(lately)


@always
def who_is_trusted_works_on(evidence: Evidence) -> Iterator[str]:
    """R4.11: no machine stops a run for want of trust before what it was promised is over."""
    for task_id, run in evidence.machines.runs.items():
        row = evidence.tasks[task_id]
        if row["failure_reason"] != "runtime_offline" or row["move"] != "fail":
            continue
        if run.has_refused:  # It left. Who was to begin afresh was not let.
            continue
        promises = evidence.machines.promises.get(run.machine, [])
        told = [(at, until) for at, until in promises if at <= run.ended_at]
        known = sum(at <= run.ended_at - TOLD_S for at, _ in told)
        until = min((until for _, until in told[max(0, known - 2) :]), default=0.0)
        if known > 1 and run.ended_at < until - MARGIN_S:
            yield f"{task_id} is stopped at {run.ended_at:.1f}, trusted until {until:.1f}"


@always
def no_claim_outlives_its_time(evidence: Evidence) -> Iterator[str]:
    """R3.8, R4.10: what is claimed starts, is given back or fails within 300 s and a sweep."""
    since: dict[UUID | None, float] = {}
    for event in evidence.moves():
        begun = since.pop(event.task_id, event.at)
        if event.at - begun > DISPATCHED_S + LATE_S:
            yield f"{event.task_id} was dispatched for {event.at - begun:.0f} s"
        if event.kind == "task:dispatch":
            since[event.task_id] = event.at


@always
def no_queue_outlives_its_time(evidence: Evidence) -> Iterator[str]:
    """Section 2: what is queued is claimed, called off or expired in time."""
    since: dict[UUID | None, float] = {}
    for event in evidence.moves():
        begun = since.pop(event.task_id, event.at)
        if event.at - begun > evidence.leases.queued_max_s + LATE_S:
            yield f"{event.task_id} was queued for {event.at - begun:.0f} s"
        if event.kind == "task:queued":
            since[event.task_id] = event.at


@at_rest
def no_machine_idles_while_work_waits(evidence: Evidence) -> Iterator[str]:
    """R3.9, R3.10: once all is calm, what can be claimed is pushed to who can run it, at once."""
    waits_since: dict[UUID, float] = {}
    for events, board in commits(evidence.events):
        now = events[0].at
        claimable = _claimable(evidence, board, now) if now >= evidence.machines.calm_at else set()
        for task_id in waits_since.keys() - claimable:
            if (waited_s := now - waits_since.pop(task_id)) > IDLE_S:
                yield f"{task_id} could be claimed for {waited_s:.0f} s, and was not"
        for task_id in claimable:
            waits_since.setdefault(task_id, now)


def _claimable(evidence: Evidence, board: Board, now: float) -> set[UUID]:
    free = _free(evidence, board, now)
    return {
        task_id
        for task_id, it in board.tasks.items()
        if it.status == "queued" and _is_claimable(evidence, board, it, free)
    }


def _free(evidence: Evidence, board: Board, now: float) -> set[str]:
    """The machines that are there, with room, and quota to spend; not those that ask for work."""
    return {
        runtime
        for runtime, is_online in board.online.items()
        if is_online
        and board.at_work_on(runtime) < evidence.machines.slots.get(_name(evidence, runtime), 0)
        and not _is_spent(evidence, runtime, now)
        and evidence.silent_s(_name(evidence, runtime), now) < SILENCE_S
        and evidence.takes_work(_name(evidence, runtime), now)
        and _name(evidence, runtime) not in evidence.machines.polling
    }


def _is_spent(evidence: Evidence, runtime: str, now: float) -> bool:
    """Its quota; nobody but a poll finds that it is back."""
    return any(
        event.body["runtime_id"] == runtime
        and event.body["failure_reason"] == "quota_exhausted"
        and event.at <= now <= event.at + wait_s(evidence, row, "quota_exhausted") + POLL_S
        for row, event in _failures(evidence, "fail")
    )


def _name(evidence: Evidence, runtime: str) -> str:
    return evidence.machine_of[UUID(runtime)]


def _is_claimable(evidence: Evidence, board: Board, it: Standing, free: set[str]) -> bool:
    has_room = board.runs_of(it.agent) < evidence.limits[UUID(it.agent)]
    is_first = not board.on(it.issue, it.agent)
    agent = UUID(it.agent)
    places = {each for each in free if not evidence.are_apart(UUID(each), agent)}
    return has_room and is_first and (it.runtime in free if it.runtime else bool(places))
