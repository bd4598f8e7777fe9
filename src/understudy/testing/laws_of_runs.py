"""What must be true between agents' processes and the rows that stand for them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import combinations
from typing import Any, Final
from uuid import UUID

from understudy.store.connection import Record
from understudy.testing.evidence import Evidence, Run, seconds

CLOSE_S: Final = 0.001
SILENCE_S: Final = 45.0
UNCONFIRMED_S: Final = 300.0


def broken(evidence: Evidence) -> Iterator[str]:
    yield from _two_at_once(evidence)
    for task_id, run in evidence.machines.runs.items():
        row = evidence.tasks[task_id]
        yield from _ends_lost(evidence, run, row)
        yield from _not_stopped(evidence, run, row)
        yield from _transcript_torn(evidence, run, row)
    yield from _comments_doubled(evidence)
    yield from _successes_invented(evidence)
    yield from _bills_wrong(evidence)


def _bills_wrong(evidence: Evidence) -> Iterator[str]:
    """R6.7: what agents have spent is billed, once; of a machine that lost its memory, no more."""
    for task_id, row in evidence.tasks.items():
        billed, run = evidence.usage.get(task_id, 0), evidence.machines.runs.get(task_id)
        spent = run.tokens if run is not None else 0
        if billed > spent or (billed != spent and row["status"] == "completed"):
            yield f"{task_id} is billed {billed} tokens of {spent}"


def _two_at_once(evidence: Evidence) -> Iterator[str]:
    """R2.3, R4.11: one agent works on one issue once at any instant."""
    places = defaultdict[tuple[UUID | None, UUID], list[Run]](list)
    for run in evidence.machines.runs.values():
        places[run.task.issue_id, run.task.agent_id].append(run)
    for runs in places.values():
        for one, other in combinations(runs, 2):
            if any(
                max(a, c) < min(b, d) - CLOSE_S for a, b in one.minded() for c, d in other.minded()
            ):
                yield (
                    f"{one.task.id} on {one.machine} {one.spans} and"
                    f" {other.task.id} on {other.machine} {other.spans} at the same time"
                )


def _ends_lost(evidence: Evidence, run: Run, row: Record) -> Iterator[str]:
    """R2.4, R6.4 to R6.6: what an agent has done is known, and its row says so."""
    name, status = row["id"], row["status"]
    if run.ended_at == float("inf"):
        yield f"{name} is at work on {run.machine} to this day"
    if not run.has_finished or run.is_forgotten:
        return
    if status == "cancelled" and row["cancel_requested_by"] is not None:
        return
    if not run.is_acknowledged:
        yield f"{name} was brought to its end by {run.machine}; its report was never taken"
    if run.reason is not None or status == "cancelled":
        if status != "failed":
            yield f"{name} ended {run.reason or 'well'} and is {status}"
        return
    said = _said(row)
    if said != run.output:
        yield f"{name} said {run.output!r}, the row ({status}, {row['failure_reason']}) {said!r}"
    began = [each for each in evidence.heirs(name) if each["id"] in evidence.machines.runs]
    if status == "failed" and not any(each["started_at"] for each in evidence.heirs(name)):
        yield f"{name} has succeeded, is failed, and nobody took its place"
    if status == "completed" and began:
        yield f"{name} is completed, and {began[0]['id']} was begun in its place"


def _said(row: Record) -> str | None:
    result: dict[str, Any] = row["result"] or {}
    return result.get("output")


def _not_stopped(evidence: Evidence, run: Run, row: Record) -> Iterator[str]:
    """R7.1: cancelled means that the process is gone, or the row says that nobody knows."""
    if row["status"] != "cancelled" or run.ended_at <= (at := evidence.ended_at(row)) + CLOSE_S:
        return
    if row["error"] is None:
        yield f"{row['id']} is cancelled, and {run.machine} still works on it"
        return
    asked_at = seconds(row["cancel_requested_at"])
    was_there = evidence.silence_s(run.machine, asked_at, at) < SILENCE_S
    if was_there and at - asked_at < UNCONFIRMED_S:
        yield f"{row['id']} is cancelled, unconfirmed: {run.machine} was there and had not said so"
    elif was_there and run.loose_at == math.inf:
        yield f"{row['id']} is cancelled, unconfirmed: {run.machine} was there and never told"


def _transcript_torn(evidence: Evidence, run: Run, row: Record) -> Iterator[str]:
    """R6.9"""
    stored = evidence.messages.get(row["id"], [])
    if stored != list(range(len(stored))) or len(stored) > run.messages:
        yield f"{row['id']} has the messages {stored} of {run.messages}"
    elif row["status"] == "completed" and len(stored) != run.messages:
        yield f"{row['id']} has {len(stored)} messages of {run.messages}"


def _comments_doubled(evidence: Evidence) -> Iterator[str]:
    """R10.3: each success says its text once; who did not succeed says nothing."""
    comments = Counter(each["task_id"] for each in evidence.comments)
    for task_id, row in evidence.tasks.items():
        if comments[task_id] != (row["status"] == "completed"):
            yield f"{task_id} is {row['status']} and commented {comments[task_id]} times"
    for each in evidence.comments:
        if each["task_id"] and each["body"] != _said(evidence.tasks[each["task_id"]]):
            yield f"{each['task_id']} commented {each['body']!r}"


def _successes_invented(evidence: Evidence) -> Iterator[str]:
    for task_id, row in evidence.tasks.items():
        run = evidence.machines.runs.get(task_id)
        if row["status"] == "completed" and (run is None or not run.has_finished or run.reason):
            yield f"{task_id} is completed, and nobody has brought it to a good end"
