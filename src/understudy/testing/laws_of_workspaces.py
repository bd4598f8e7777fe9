"""Who shares nothing but the installation hears nothing of one another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias
from uuid import UUID

from understudy.testing.evidence import Evidence
from understudy.testing.laws import always

Pair: TypeAlias = tuple[str, UUID, UUID]
"""A sentence of two that are to be of one workspace, or the workspace itself."""

ABSENT = 404


@always
def workspaces_keep_apart(evidence: Evidence) -> Iterator[str]:
    """R3.1: nothing of one workspace is claimed, worked at, said or shown in another."""
    for pairs in (_claims(evidence), _rows(evidence), _shown(evidence)):
        for sentence, one, other in pairs:
            if evidence.are_apart(one, other):
                yield f"{sentence} of another workspace"


@always
def what_is_elsewhere_is_not_there(evidence: Evidence) -> Iterator[str]:
    """R4.6: who asks for what another workspace has is told that there is no such thing."""
    for request, status in evidence.machines.pried:
        if status != ABSENT:
            yield f"{request} is of another workspace, and was answered with {status}"


@always
def streams_tell_of_one_workspace(evidence: Evidence) -> Iterator[str]:
    """R11.4: no reader hears an event of another workspace."""
    for name, told in evidence.machines.told.items():
        if foreign := sorted(set(told.heard) - set(told.written)):
            yield f"{name} heard of {foreign[:5]}"


def _claims(evidence: Evidence) -> Iterator[Pair]:
    for event in evidence.events:
        if event.kind == "task:dispatch" and event.task_id is not None:
            runtime_id = UUID(event.body["runtime_id"])
            yield f"{event.task_id} is claimed by a machine", event.task_id, runtime_id
    for _, task_id, machine in evidence.machines.tokens:
        if (workspace_id := evidence.machines.workspaces.get(machine)) is not None:
            yield f"{machine} is handed {task_id}", task_id, workspace_id


def _rows(evidence: Evidence) -> Iterator[Pair]:
    for event in evidence.events:
        if event.task_id is not None and event.workspace_id is not None:
            yield f"an event tells of {event.task_id}", event.task_id, event.workspace_id
    for task_id, row in evidence.tasks.items():
        yield f"{task_id} is the task of an agent", task_id, row["agent_id"]
        if row["issue_id"] is not None:
            yield f"{task_id} is for an issue", task_id, row["issue_id"]
    for comment in evidence.comments:
        yield f"{comment['id']} is a comment on an issue", comment["id"], comment["issue_id"]
    for call in evidence.calls:
        comment_id = call["comment_id"]
        yield f"{comment_id} calls an agent", comment_id, call["agent_id"]


def _shown(evidence: Evidence) -> Iterator[Pair]:
    for workspace_id, found in evidence.machines.shown:
        yield f"somebody is shown {found}, which is", found, workspace_id
