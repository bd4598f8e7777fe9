"""Who calls an agent is heard (R10.2): by a run that begins afterwards and was told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from uuid import UUID

from understudy.store.connection import Record
from understudy.testing.evidence import Evidence, seconds

HOPS_MAX: Final = 8
CLOSE_S: Final = 0.001


def broken(evidence: Evidence) -> Iterator[str]:
    for comment in evidence.comments:
        for agent_id, agent in evidence.agents.items():
            is_called = f"@{agent['name']}." in comment["body"]
            if is_called and agent_id != comment["author_agent_id"]:
                yield from _unheard(evidence, comment, agent_id)
    for task_id in evidence.tasks:
        if _depth(evidence, task_id) > HOPS_MAX:
            yield f"{task_id} is called by more than {HOPS_MAX} agents, one behind the other"


def _unheard(evidence: Evidence, comment: Record, agent_id: UUID) -> Iterator[str]:
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


def _is_excuse(evidence: Evidence, row: Record, said_at: float) -> bool:
    """A person called the agent off afterwards, or what was to answer never came to run."""
    if row["cancel_requested_at"] is not None:
        return seconds(row["cancel_requested_at"]) >= said_at
    is_off = row["cancel_requested_by"] is not None
    has_failed = row["status"] == "failed" and row["started_at"] is None
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
