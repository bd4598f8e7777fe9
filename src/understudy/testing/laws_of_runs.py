"""What must be true between agents' processes and the rows that stand for them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

from understudy.testing.evidence import CLOSE_S, Evidence, Happened, Row, Run, seconds
from understudy.testing.laws import always, at_rest
from understudy.testing.laws_of_tasks import stories
from understudy.testing.replay import STATUS

SILENCE_S: Final = 45.0
UNCONFIRMED_S: Final = 300.0
LEFT: Final = {"no_result", "agent_error"}
"""So fails who leaves."""
SOON_S: Final = 75.0
"""A heartbeat, the 6 s of R7.2, and a node that reads the events through a slow statement."""
STOPPED_S: Final = 15.0
"""The 4 s of a keeper, and what a full disk or a dead keeper adds to them."""
HEARD_OUT_S: Final = 200.0
"""A word that is not answered is said again after 120 s, one that is refused after 64 s."""
LOST: Final = {"lose", "time_out", "orphan"}
ATTENTIVE_S: Final = 20.0
"""Who is heard as often has had his answers."""


def _ends(evidence: Evidence) -> Iterator[tuple[Run, Row]]:
    """Runs whose agents came to an end by themselves that their machine can know of, and whose
    machine alone can speak of them."""
    for task_id, run in evidence.machines.runs.items():
        row = evidence.tasks[task_id]
        was_cancelled = row["status"] == "cancelled" and row["cancel_requested_by"] is not None
        is_known = not run.is_forgotten and not evidence.is_disowned(run)
        if run.has_finished and is_known and not was_cancelled:
            yield run, row


def said(row: Row) -> str | None:
    result: dict[str, Any] = row["result"] or {}
    return result.get("output")


@at_rest
def reports_are_taken(evidence: Evidence) -> Iterator[str]:
    """R6.3, R6.4: whatever an agent came to is reported until it is answered."""
    for run, row in _ends(evidence):
        if not run.is_acknowledged:
            yield f"{row['id']} came to its end on {run.machine}; its report was never taken"


@at_rest
def results_are_kept(evidence: Evidence) -> Iterator[str]:
    """R6.5, R6.6: what an agent said in the end stands in its row, word for word."""
    for run, row in _ends(evidence):
        if run.reason is None and row["status"] != "cancelled" and said(row) != run.output:
            state = f"{row['status']}, {row['failure_reason']}"
            yield f"{row['id']} said {run.output!r}, the row ({state}) {said(row)!r}"


@at_rest
def successes_stay_successes(evidence: Evidence) -> Iterator[str]:
    """R6.3, R6.5: a success counts, unless another attempt had taken its place."""
    for run, row in _ends(evidence):
        has_heir = any(each["started_at"] for each in evidence.heirs(row["id"]))
        if run.reason is None and row["status"] != "completed" and not has_heir:
            yield f"{row['id']} has succeeded, is {row['status']}, and nobody took its place"


@at_rest
def failures_stay_failures(evidence: Evidence) -> Iterator[str]:
    """R5.11: who failed is failed, for the reason that it gave, unless it was given up before."""
    for run, row in _ends(evidence):
        if run.reason is None:
            continue
        by_itself = row["status"] == "failed" and row["move"] == "fail"
        if row["status"] != "failed" or (by_itself and row["failure_reason"] != run.reason):
            state = f"{row['status']}, {row['failure_reason']}"
            yield f"{row['id']} ended with {run.reason}, its row says {state}"


@at_rest
def who_was_ended_did_not_leave(evidence: Evidence) -> Iterator[str]:
    """R5.11: nobody says that an agent left by itself that was killed, or lost its keeper."""
    for task_id, run in evidence.machines.runs.items():
        row = evidence.tasks[task_id]
        if row["failure_reason"] in LEFT and row["move"] == "fail" and not run.has_finished:
            yield f"{task_id} was ended, and is said to have failed of {row['failure_reason']}"


@at_rest
def successes_are_not_invented(evidence: Evidence) -> Iterator[str]:
    """R5.11: what is completed was brought to a good end by an agent."""
    for task_id, row in evidence.tasks.items():
        run = evidence.machines.runs.get(task_id)
        if row["status"] == "completed" and (run is None or not run.has_finished or run.reason):
            yield f"{task_id} is completed, and nobody has brought it to a good end"


@at_rest
def nothing_is_done_twice(evidence: Evidence) -> Iterator[str]:
    """R6.5: once one attempt is completed, no later one was begun in its place."""
    for task_id, row in evidence.tasks.items():
        for heir in evidence.heirs(task_id):
            if row["status"] == "completed" and heir["id"] in evidence.machines.runs:
                yield f"{task_id} is completed, and {heir['id']} was begun in its place"


@at_rest
def no_agent_works_to_this_day(evidence: Evidence) -> Iterator[str]:
    """R7.2: each agent's process has ended."""
    for task_id, newest in evidence.machines.runs.items():
        for run in newest.line():
            if run.ended_at == math.inf:
                yield f"{task_id} is at work on {run.machine} to this day"


@always
def agents_begin_what_has_started(evidence: Evidence) -> Iterator[str]:
    """R2.6, R3.5: no agent begins before its task has started on that machine."""
    told = stories(evidence)
    for task_id, newest in evidence.machines.runs.items():
        for run in newest.line():
            if not any(_starts(evidence, each, run) for each in told[task_id]):
                yield f"{task_id} was begun by {run.machine} at {run.began_at:.3f}, unasked"


def _starts(evidence: Evidence, event: Happened, run: Run) -> bool:
    if event.kind != "task:running" or event.at > run.began_at + CLOSE_S:
        return False
    return evidence.is_known_as(run.machine, evidence.place(event))


@always
def cancelled_means_gone(evidence: Evidence) -> Iterator[str]:
    """R7.1: when a task is cancelled its process is gone, or its row says that nobody knows.

    A copy says of what the other one works at that it is not there.
    """
    for run, row in _outlived(evidence):
        if row["error"] is None and not evidence.is_two(run.machine):
            yield f"{row['id']} is cancelled, and {run.machine} still works on it"


@always
def what_was_called_off_is_cancelled(evidence: Evidence) -> Iterator[str]:
    """R7.1: what was to be stopped does not fail, whatever ends it, and is not tried again."""
    for task_id, row in evidence.tasks.items():
        if row["cancel_requested_at"] is not None and row["status"] == "failed":
            yield f"{task_id} was to be cancelled, and has failed: {row['failure_reason']}"


@always
def who_is_called_off_stops_soon(evidence: Evidence) -> Iterator[str]:
    """R7.1, R7.2: a machine that is heard hears in turn whom to stop, and stops him."""
    for task_id, run in evidence.machines.runs.items():
        asked = evidence.tasks[task_id]["cancel_requested_at"]
        if asked is None or run.ended_at <= (until := seconds(asked) + SOON_S):
            continue
        if evidence.silence_s(run.machine, seconds(asked), until) < ATTENTIVE_S:
            yield f"{task_id} was called off at {until - SOON_S:.1f}, {run.machine} works on it"


@always
def who_has_lost_its_task_stops(evidence: Evidence) -> Iterator[str]:
    """R3.7: whose task has ended without it is told so when it next speaks, and is stopped."""
    told = stories(evidence)
    for task_id, run in evidence.machines.runs.items():
        lost_at = next((e.at for e in told[task_id] if e.body["move"] in LOST), math.inf)
        for at in run.spoke_at:
            until = at + HEARD_OUT_S
            is_late = lost_at + CLOSE_S < at and run.ended_at > until
            if is_late and evidence.silence_s(run.machine, at, until) < ATTENTIVE_S:
                yield f"{task_id} was lost at {lost_at:.1f}, spoke at {at:.1f}, and works on"


@always
def who_is_told_that_he_has_lost_stops(evidence: Evidence) -> Iterator[str]:
    """R3.7: a daemon that hears that a task is not its own ends the agent, if it lives to."""
    for fenced in evidence.machines.fenced:
        if (newest := evidence.machines.runs.get(fenced.task_id)) is None:
            continue
        for run in newest.line():
            goes_on_s = run.worked_s(fenced.at, fenced.until)
            is_that = run.machine == fenced.machine and run.began_at < fenced.at
            if is_that and goes_on_s > STOPPED_S:
                yield f"{fenced.task_id} was fenced at {fenced.at:.1f}, worked {goes_on_s:.1f} s on"


@always
def a_rerun_replaces_what_runs(evidence: Evidence) -> Iterator[str]:
    """R7.6: who runs an issue again, and not behind what its agent has there, has that stopped."""
    told = stories(evidence)
    for task_id in evidence.machines.replacing:
        row, at = evidence.tasks[task_id], told[task_id][0].at
        for other_id, other in evidence.tasks.items():
            is_older = told[other_id][0].at < at < evidence.ended_at(other) - CLOSE_S
            if is_older and _same_turn(row, other) and not _was_called_off(other, at):
                yield f"{task_id} was asked for in place of {other_id}, which goes on"


def _same_turn(one: Row, other: Row) -> bool:
    return (one["agent_id"], one["issue_id"]) == (other["agent_id"], other["issue_id"])


def _was_called_off(row: Row, at: float) -> bool:
    """By then; a late success has another end than it had."""
    asked = row["cancel_requested_at"]
    is_late = row["move"] == "complete_late"
    return is_late or (asked is not None and seconds(asked) <= at + CLOSE_S)


@always
def unconfirmed_means_unheard(evidence: Evidence) -> Iterator[str]:
    """R7.1: who was there all the time has 300 s to confirm that its process is gone."""
    for run, row in _outlived(evidence):
        if row["error"] is None or row["cancel_requested_at"] is None:
            continue
        if evidence.is_two(run.machine):  # It is the other one that is heard.
            continue
        at, asked_at = evidence.ended_at(row), seconds(row["cancel_requested_at"])
        was_there = evidence.silence_s(run.machine, asked_at, at) < SILENCE_S
        if was_there and at - asked_at < UNCONFIRMED_S:
            yield f"{row['id']} is cancelled, unconfirmed, and {run.machine} was there"


def _outlived(evidence: Evidence) -> Iterator[tuple[Run, Row]]:
    """Cancelled tasks with an agent that was still at work."""
    for task_id, run in evidence.machines.runs.items():
        row = evidence.tasks[task_id]
        if row["status"] == "cancelled" and run.ended_at > evidence.ended_at(row) + CLOSE_S:
            yield run, row


@always
def transcripts_have_no_gap(evidence: Evidence) -> Iterator[str]:
    """R6.9: messages are numbered without a gap, and no more than the agent has said. Half a line
    is one, too, where the rest of it went with the power.
    """
    for task_id, stored in evidence.messages.items():
        run = evidence.machines.runs.get(task_id)
        spoken = sum(each.messages + each.is_forgotten for each in run.line()) if run else 0
        if stored != list(range(len(stored))) or len(stored) > spoken:
            yield f"{task_id} has the messages {stored} of {spoken}"


@at_rest
def transcripts_are_whole(evidence: Evidence) -> Iterator[str]:
    """R6.9: of a completed run all that its agent said is stored."""
    for task_id, run in evidence.machines.runs.items():
        stored, spoken = len(evidence.messages.get(task_id, [])), sum(_spoken(run))
        if evidence.tasks[task_id]["status"] == "completed" and stored != spoken:
            yield f"{task_id} has {stored} messages of {spoken}"


def _spoken(run: Run) -> Iterator[int]:
    return (each.messages for each in run.line())


@at_rest
def bills_add_up(evidence: Evidence) -> Iterator[str]:
    """R6.7: what an agent has spent is billed once; for a completed run all of it, ever no more.

    A copy bills what it knows, and that may be less.
    """
    for task_id, row in evidence.tasks.items():
        billed, run = evidence.usage.get(task_id, 0), evidence.machines.runs.get(task_id)
        spent = sum(each.tokens for each in run.line()) if run is not None else 0
        is_whole = row["status"] == "completed" and not (run and evidence.is_two(run.machine))
        if billed > spent or (billed != spent and is_whole):
            yield f"{task_id} is billed {billed} tokens of {spent}"


@always
def nothing_undelivered_is_dropped(evidence: Evidence) -> Iterator[str]:
    """R6.4, R8.6: no machine drops a run from its disk while the server counts on it.

    What is only dispatched may be there under a newer claim, and is not begun under the older. What
    a machine drops, its copy may have.
    """
    told = stories(evidence)
    for (machine, task_id), at in evidence.machines.let_go.items():
        before = [each for each in told.get(task_id, []) if each.at <= at + CLOSE_S]
        if not before or STATUS[before[-1].kind] != "running":
            continue
        if evidence.place(before[-1]) == machine and not evidence.is_two(machine):
            yield f"{task_id} is {before[-1].body['status']}, and {machine} drops it at {at:.3f}"
