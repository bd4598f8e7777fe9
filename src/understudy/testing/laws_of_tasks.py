"""What the history of each task must look like, whatever failed.

The event table is read as the log of commits. The tables are the rules' own, written down once
more: the program is not asked what it would have done.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Final
from uuid import UUID

from understudy.testing.evidence import CLOSE_S, TERMINAL, Evidence, Happened, seconds
from understudy.testing.laws import always, at_rest
from understudy.testing.replay import STATUS, Board

MOVES: Final = {
    ("", "enqueue", "queued"), ("", "defer", "deferred"), ("deferred", "promote", "queued"),
    ("queued", "claim", "dispatched"), ("dispatched", "requeue", "queued"),
    ("dispatched", "start", "running"), ("running", "complete", "completed"),
    ("failed", "complete_late", "completed"), ("dispatched", "fail", "failed"),
    ("running", "fail", "failed"), ("dispatched", "orphan", "failed"),
    ("running", "orphan", "failed"), ("dispatched", "lose", "failed"),
    ("running", "lose", "failed"), ("dispatched", "time_out", "failed"),
    ("running", "time_out", "failed"), ("queued", "expire", "failed"),
    ("deferred", "cancel", "cancelled"), ("queued", "cancel", "cancelled"),
    ("dispatched", "cancel", "cancelled"), ("running", "cancel", "cancelled"),
}  # fmt: skip
"""Section 2 of the rules: leaves, move, enters."""
END_S: Final = 1800.0
"""How long after the last fault everything is over. A queue is left after 600 s at the latest, a
run takes 800 s, and who was called meanwhile has his turn."""
LATE: Final = {"time_out", "lose", "orphan"}


def stories(evidence: Evidence) -> dict[UUID, list[Happened]]:
    """The moves of each task, in the order of their commits."""
    told = defaultdict[UUID, list[Happened]](list)
    for event in evidence.events:
        if event.kind in STATUS and event.task_id is not None:
            told[event.task_id].append(event)
    return told


@always
def moves_are_legal(evidence: Evidence) -> Iterator[str]:
    """R2.2: each task's history is a path through the table of moves, from its birth on."""
    for task_id, story in stories(evidence).items():
        before = ""
        for event in story:
            move, enters = event.body["move"], STATUS[event.kind]
            if (before, move, enters) not in MOVES:
                yield f"{task_id}: {move} from {before or 'nothing'} to {enters}"
            before = enters


@always
def every_move_has_its_event(evidence: Evidence) -> Iterator[str]:
    """R2.4: a row is where its last event says, and no event speaks of a task that is not there."""
    told = stories(evidence)
    for task_id, row in evidence.tasks.items():
        last = STATUS[told[task_id][-1].kind] if told.get(task_id) else "unheard of"
        if last != row["status"]:
            yield f"{task_id} is {row['status']}, its events say {last}"
    for task_id in told.keys() - evidence.tasks.keys():
        yield f"{task_id} has events and no row"


@always
def machines_come_and_go_on_record(evidence: Evidence) -> Iterator[str]:
    """R2.4: a machine is there, and since when, as its events say."""
    came, board = defaultdict[str, set[float]](set), Board()
    for event in evidence.events:
        before = {**board.online}
        board.apply(event)
        for runtime, is_online in board.online.items():
            if is_online and not before.get(runtime):
                came[runtime].add(event.at)
    for row in evidence.runtimes:
        runtime, is_online = str(row["id"]), row["status"] == "online"
        if board.online.get(runtime, False) != is_online:
            yield f"{row['daemon_id']} is {row['status']}, and its events say something else"
        elif is_online and not _is_near(came[runtime], seconds(row["online_since"])):
            since = seconds(row["online_since"])
            yield f"{row['daemon_id']} is there since {since:.3f}, and no event says so"


def _is_near(times: Iterable[float], at: float) -> bool:
    return any(abs(each - at) < CLOSE_S for each in times)


@always
def an_end_is_an_end(evidence: Evidence) -> Iterator[str]:
    """R2.2, R6.5: nothing follows a task's end, but for the late success of one given up."""
    for task_id, story in stories(evidence).items():
        for before, after in pairwise(story):
            is_late = before.body["move"] in LATE and after.body["move"] == "complete_late"
            if STATUS[before.kind] in TERMINAL and not is_late:
                yield f"{task_id}: {after.body['move']} after {before.body['move']}"


@always
def everything_ends(evidence: Evidence) -> Iterator[str]:
    """R9.6: 1,800 s after the last fault every task has ended."""
    due = evidence.machines.disturbed_at + END_S
    for row in evidence.tasks.values():
        if row["completed_at"] is None:
            yield f"{row['id']} is still {row['status']}"
        elif evidence.ended_at(row) > due + CLOSE_S:
            yield f"{row['id']} has ended {evidence.ended_at(row) - due:.0f} s too late"


@always
def a_failure_has_a_reason(evidence: Evidence) -> Iterator[str]:
    """R5.1, R10.4: who failed or was cancelled says why, and who succeeded has no reason."""
    for row in evidence.tasks.values():
        is_bad = row["status"] in {"failed", "cancelled"}
        if is_bad != (row["failure_reason"] is not None):
            yield f"{row['id']} is {row['status']} because of {row['failure_reason']}"
        elif row["status"] == "failed" and not row["error"]:
            yield f"{row['id']} failed ({row['failure_reason']}) without a word"


@at_rest
def a_late_success_supersedes(evidence: Evidence) -> Iterator[str]:
    """R6.5: who succeeded late has successors that were all called off before they began."""
    for task_id, row in evidence.tasks.items():
        if row["status"] != "completed" or row["move"] != "complete_late":
            continue
        for heir in evidence.heirs(task_id):
            if heir["status"] not in {"cancelled", "failed"} or heir["started_at"] is not None:
                yield f"{task_id} succeeded late, its heir {heir['id']} is {heir['status']}"


@at_rest
def only_the_superseded_are_superseded(evidence: Evidence) -> Iterator[str]:
    """R6.5: who was called off as superseded has a forerunner that succeeded after all."""
    for row in evidence.tasks.values():
        if row["failure_reason"] != "superseded":
            continue
        parent = evidence.tasks.get(row["parent_task_id"])
        while parent is not None and parent["status"] != "completed":
            parent = evidence.tasks.get(parent["parent_task_id"])
        if parent is None:
            yield f"{row['id']} is superseded by nobody"
