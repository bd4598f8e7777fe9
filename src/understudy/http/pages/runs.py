"""A run as a person sees it: one of a few looks, and the sentence that goes with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from understudy.core.lifecycle import ACTIVE, Status
from understudy.core.reasons import REASONS
from understudy.core.records import Runtime, Task
from understudy.http.pages import words
from understudy.store.board import Run

Look = Literal["waiting", "preparing", "running", "finished", "failed", "cancelled"]


@dataclass(frozen=True)
class RunView:
    """`since` counts up while the run is active; `lasted` is how long it ran. `line` is the last
    thing it told, or why it waits."""

    id: UUID
    look: Look
    label: str
    since: datetime | None
    lasted: str | None
    line: str
    step: int | None
    total: int | None
    agent_name: str
    device_name: str | None
    issue_key: str | None
    issue_title: str | None
    attempt: int
    task: Task

    @property
    def is_active(self) -> bool:
        return self.task.status in ACTIVE

    @property
    def result(self) -> dict[str, Any]:
        return self.task.result or {}

    @property
    def changes(self) -> str:
        return words.changes(self.result.get("changes") or {})


def view(run: Run, machines: Iterable[Runtime]) -> RunView:
    task = run.task
    look, label = _look(task)
    progress = task.progress or {}
    return RunView(
        id=task.id,
        look=look,
        label=label,
        since=_since(task),
        lasted=_lasted(task),
        line=_line(run, machines),
        step=progress.get("step"),
        total=progress.get("total"),
        agent_name=run.agent_name,
        device_name=run.device_name,
        issue_key=run.issue_key,
        issue_title=run.issue_title,
        attempt=task.attempt,
        task=task,
    )


def _look(task: Task) -> tuple[Look, str]:
    if task.cancel_requested_at and task.status in ACTIVE:
        return "waiting", "Cancelling"
    match task.status:
        case Status.DEFERRED:
            return "waiting", "Waiting to retry"
        case Status.QUEUED:
            return "waiting", "Queued"
        case Status.DISPATCHED:
            return "preparing", "Preparing"
        case Status.RUNNING:
            return "running", "Running"
        case Status.COMPLETED:
            return "finished", "Finished"
        case Status.FAILED:
            assert task.failure_reason is not None
            return "failed", REASONS[task.failure_reason]
        case Status.CANCELLED:
            return "cancelled", "Cancelled"


def _since(task: Task) -> datetime | None:
    match task.status:
        case Status.QUEUED | Status.DEFERRED:
            return task.created_at
        case Status.DISPATCHED:
            return task.dispatched_at
        case Status.RUNNING:
            return task.started_at
        case Status.COMPLETED | Status.FAILED | Status.CANCELLED:
            return None


def _lasted(task: Task) -> str | None:
    if task.started_at is None or task.completed_at is None:
        return None
    return words.between(task.started_at, task.completed_at)


def _line(run: Run, machines: Iterable[Runtime]) -> str:
    task = run.task
    if task.status is Status.QUEUED:
        return why_queued(task, machines)
    if task.status is Status.RUNNING:
        told = str((task.progress or {}).get("summary") or "")
        return told or (words.said(run.said) if run.said else "")
    return (task.error or "").strip().partition("\n")[0] if task.status is Status.FAILED else ""


def why_queued(task: Task, machines: Iterable[Runtime]) -> str:
    """Who would have to come back. Empty while a machine is there: then it is taken soon."""
    fitting = [
        each
        for each in machines
        if each.provider == task.provider and task.runtime_id in {None, each.id}
    ]
    if not fitting:
        return f"no machine offers {task.provider}"
    if any(each.status == "online" for each in fitting):
        return ""
    names = " and ".join(sorted({each.device_name or each.name for each in fitting})[:2])
    return f"{task.provider} on {names} is offline"
