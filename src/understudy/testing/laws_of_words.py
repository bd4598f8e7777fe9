"""What people and their screens are told: comments, statuses, events, answers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Final

from understudy.testing.evidence import Evidence
from understudy.testing.laws import always, at_rest
from understudy.testing.laws_of_runs import said
from understudy.testing.replay import commits

ACTIVE: Final = {"deferred", "queued", "dispatched", "running"}


@at_rest
def a_success_is_said_once(evidence: Evidence) -> Iterator[str]:
    """R10.3: each completed run says its final text in one comment, and no other run says any."""
    comments = Counter(each["task_id"] for each in evidence.comments)
    for task_id, row in evidence.tasks.items():
        due = row["status"] == "completed" and bool(said(row))
        if comments[task_id] != due:
            yield f"{task_id} is {row['status']} and commented {comments[task_id]} times"
    for each in evidence.comments:
        if each["task_id"] and each["body"] != said(evidence.tasks[each["task_id"]]):
            yield f"{each['task_id']} commented {each['body']!r}"


@always
def each_comment_is_told_once_and_in_order(evidence: Evidence) -> Iterator[str]:
    """R2.4, R11.4: the comments of an issue have one event each, in the order of their times."""
    told, written = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for event in evidence.events:
        if event.kind == "comment:created":
            told[event.body["issue_id"]].append(event.body["comment_id"])
    for comment in sorted(evidence.comments, key=lambda each: each["created_at"]):
        written[str(comment["issue_id"])].append(str(comment["id"]))
    for issue in {**told, **written}:
        if not _are_the_same(evidence, told[issue], written[issue]):
            yield f"issue {issue} has the comments {written[issue]}, its events {told[issue]}"


def _are_the_same(evidence: Evidence, told: list[str], written: list[str]) -> bool:
    """But for comments of one instant, whose order nobody knows."""
    times = {str(each["id"]): each["created_at"] for each in evidence.comments}
    is_complete = sorted(told) == sorted(written)
    return is_complete and [times[each] for each in told] == [times[each] for each in written]


@always
def what_was_written_stays(evidence: Evidence) -> Iterator[str]:
    """R2.3: a comment whose writer was told that it is written is there."""
    there = {str(each["id"]) for each in evidence.comments}
    for comment_id in evidence.machines.posted:
        if comment_id not in there:
            yield f"comment {comment_id} was acknowledged, and is not there"


@always
def an_issue_in_progress_is_worked_on(evidence: Evidence) -> Iterator[str]:
    """R5.6: at no commit is an issue in progress that has no active task."""
    statuses: dict[str, str] = {}
    for events, board in commits(evidence.events):
        touched = {each.body.get("issue_id") for each in events}
        for event in events:
            if event.kind.startswith("issue:"):
                statuses[event.body["issue_id"]] = event.body["status"]
        active = {it.issue for it in board.tasks.values() if it.status in ACTIVE}
        for issue in touched - active:
            if issue and statuses.get(issue) == "in_progress":
                yield f"issue {issue} is in progress by nobody at {events[0].at:.3f}"


@always
def agents_are_as_they_are_said_to_be(evidence: Evidence) -> Iterator[str]:
    """R2.3: at each commit an agent is said to work if it has a task in flight, else to be idle."""
    known: dict[str, str] = {}
    for events, board in commits(evidence.events):
        for event in events:
            if event.kind == "agent:status":
                known[event.body["agent_id"]] = event.body["status"]
        for agent in {each.body["agent_id"] for each in events if "agent_id" in each.body}:
            truth = "working" if board.runs_of(agent) else "idle"
            if known.get(agent, "idle") != truth:
                yield f"{agent} is said to be {known.get(agent)} at {events[0].at:.3f}: {truth}"


@always
def streams_have_no_gap(evidence: Evidence) -> Iterator[str]:
    """R11.4: each reader hears each event once and in order, over all its reconnections."""
    for name, told in evidence.machines.told.items():
        if list(told.heard) != list(told.written):
            missed = sorted(set(told.written) - set(told.heard))
            twice = len(told.heard) - len(set(told.heard))
            yield f"{name} missed {missed[:5]}, heard {twice} twice, or some out of order"


@always
def no_answer_is_500(evidence: Evidence) -> Iterator[str]:
    """R11.3: no request is answered with 500, but for a defect that this world put there."""
    yield from evidence.machines.broken_answers


@always
def nothing_crashes_unforeseen(evidence: Evidence) -> Iterator[str]:
    """R11.3: nothing is logged as a crash, but for a defect or a loss that this world put there."""
    yield from evidence.machines.surprises
