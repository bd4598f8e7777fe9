"""Who calls an agent is heard (R10.2): by a run that begins afterwards and was told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from uuid import UUID

from understudy.testing.evidence import CLOSE_S, Evidence, Row, seconds
from understudy.testing.laws import always, at_rest

HOPS_MAX: Final = 8


@at_rest
def who_is_called_is_told(evidence: Evidence) -> Iterator[str]:
    """R10.2: a run of the agent that a comment calls begins afterwards, and is told the comment."""
    for comment in evidence.comments:
        for agent_id, agent in evidence.agents.items():
            is_elsewhere = evidence.are_apart(agent_id, comment["id"])
            is_called = f"@{agent['name']}." in comment["body"] and not is_elsewhere
            if is_called and agent_id != comment["author_agent_id"]:
                yield from _unheard(evidence, comment, agent_id)


@always
def the_next_attempt_is_told_the_same(evidence: Evidence) -> Iterator[str]:
    """R5.3, R10.2: the next attempt is told what the one before it was told, and maybe more."""
    for task_id, run in evidence.machines.runs.items():
        row = evidence.tasks[task_id]
        before = evidence.machines.runs.get(row["parent_task_id"])
        if row["attempt"] > 1 and before is not None and before.brief not in run.brief:
            yield f"{task_id} is told {run.brief!r}, and the attempt before it {before.brief!r}"


@at_rest
def no_call_waits_for_ever(evidence: Evidence) -> Iterator[str]:
    """R10.2: when all is done, each call has the task that was to answer it."""
    for call in evidence.calls:
        if call["task_id"] is None:
            agent = evidence.agents[call["agent_id"]]["name"]
            yield f"the call of {agent} in comment {call['comment_id']} waits for nobody"


@always
def chains_of_calls_end(evidence: Evidence) -> Iterator[str]:
    """R10.1: no more than 8 agents call one another, one behind the other."""
    for task_id in evidence.tasks:
        if _depth(evidence, task_id) > HOPS_MAX:
            yield f"{task_id} is called by more than {HOPS_MAX} agents, one behind the other"


def _unheard(evidence: Evidence, comment: Row, agent_id: UUID) -> Iterator[str]:
    said_at = seconds(comment["created_at"])
    if comment["task_id"] and _depth(evidence, comment["task_id"]) >= HOPS_MAX:
        return
    theirs = [
        row
        for row in evidence.tasks.values()
        if row["issue_id"] == comment["issue_id"] and row["agent_id"] == agent_id
    ]
    for row in theirs:
        run = evidence.machines.runs.get(row["id"])
        if run is not None and run.began_at >= said_at - CLOSE_S and comment["body"] in run.brief:
            return
    if not any(_is_excuse(evidence, row, said_at) for row in theirs):
        agent = evidence.agents[agent_id]["name"]
        yield f"{agent} was never told at {said_at:.3f}: {comment['body']!r}"


def _is_excuse(evidence: Evidence, row: Row, said_at: float) -> bool:
    """A person called the agent off afterwards, or what was to answer never came to run."""
    if row["cancel_requested_at"] is not None:
        return seconds(row["cancel_requested_at"]) >= said_at
    is_off = row["cancel_requested_by"] is not None
    has_failed = row["status"] == "failed" and row["id"] not in evidence.machines.runs
    return (is_off or has_failed) and evidence.ended_at(row) >= said_at


def _depth(evidence: Evidence, task_id: UUID) -> int:
    """How many agents called one another up to this task."""
    by_id = {each["id"]: each for each in evidence.comments}
    depth = 0
    while (comment := by_id.get(evidence.tasks[task_id]["trigger_comment_id"])) is not None:
        if comment["task_id"] is None:
            break
        depth, task_id = depth + 1, comment["task_id"]
    return depth
