"""A run as a person sees it: one of a few looks, and the sentence that goes with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

from understudy.core.lifecycle import ACTIVE, Move, Status
from understudy.core.reasons import REASONS
from understudy.core.records import Task
from understudy.core.situation import Constraint
from understudy.http.pages import words
from understudy.http.site import Site
from understudy.http.why import why
from understudy.store.board import Run
from understudy.wire.board import Why

Look = Literal["waiting", "preparing", "running", "cancelling", "finished", "failed", "cancelled"]
IN_HAND: Final = frozenset({"preparing", "running", "cancelling"})

C = Constraint
STUCK: Final = frozenset(
    {
        C.AGENT_ARCHIVED,
        C.NO_RUNTIME,
        C.RUNTIME_OFFLINE,
        C.RUNTIME_PROBLEM,
        C.CLAIM_EXPIRED,
        C.TAKEOVER_GRACE,
        C.ALONE_GRACE,
        C.STOP_UNCONFIRMED,
    }
)
"""What somebody could do something about."""

MOVING_MS: Final = 5_000
WAITING_MS: Final = 15_000


@dataclass(frozen=True)
class RunView:
    """`since` counts up while the run is active; `lasted` is how long it ran. `line` is the last
    thing it told while it works, else why it is where it is, or how it ended."""

    id: UUID
    look: Look
    label: str
    since: datetime | None
    lasted: str | None
    line: str
    why: Why | None
    """Of a run that has not ended."""
    step: int | None
    total: int | None
    agent_name: str
    device_name: str | None
    issue_key: str | None
    issue_title: str | None
    task: Task

    @property
    def is_active(self) -> bool:
        return self.task.status in ACTIVE

    @property
    def is_in_hand(self) -> bool:
        return self.look in IN_HAND

    @property
    def is_stuck(self) -> bool:
        return self.why is not None and self.why.constraint in STUCK

    @property
    def attempt(self) -> str:
        return f"attempt {self.task.attempt} of {self.task.max_attempts}"

    @property
    def is_late(self) -> bool:
        """R6.5: its result came when it had been given up."""
        return self.task.move is Move.COMPLETE_LATE

    @property
    def kept(self) -> str:
        """R6.5: what it had to say when another attempt had begun already."""
        return str(self.result.get("output") or "") if self.task.status is Status.FAILED else ""

    @property
    def result(self) -> dict[str, Any]:
        return self.task.result or {}

    @property
    def changes(self) -> str:
        return words.changes(self.result.get("changes") or {})


async def views(site: Site, workspace_id: UUID, found: Sequence[Run]) -> list[RunView]:
    """Why they are where they are is one question for all of them (R10.4)."""
    active = [run.task.id for run in found if run.task.status in ACTIVE]
    told = await why(site, workspace_id, active)
    return [view(run, told.get(run.task.id)) for run in found]


def every_ms(shown: Iterable[RunView]) -> int | None:
    """How often the page looks again by itself: sentences tell how long things last."""
    active = [run for run in shown if run.is_active]
    if any(run.is_in_hand for run in active):
        return MOVING_MS
    return WAITING_MS if active else None


def view(run: Run, told: Why | None) -> RunView:
    task = run.task
    look, label = _look(task)
    progress = task.progress or {}
    return RunView(
        id=task.id,
        look=look,
        label=label,
        since=_since(task),
        lasted=_lasted(task),
        line=_line(run, told),
        why=told,
        step=progress.get("step"),
        total=progress.get("total"),
        agent_name=run.agent_name,
        device_name=run.device_name,
        issue_key=run.issue_key,
        issue_title=run.issue_title,
        task=task,
    )


def _look(task: Task) -> tuple[Look, str]:
    if task.cancel_requested_at and task.status in ACTIVE:
        return "cancelling", "Cancelling"
    match task.status:
        case Status.DEFERRED:
            return "waiting", "Waiting to retry" if task.attempt > 1 else "Waiting"
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
            return "cancelled", REASONS[task.failure_reason] if task.failure_reason else "Cancelled"


def _since(task: Task) -> datetime | None:
    if task.status in ACTIVE and task.cancel_requested_at:
        return task.cancel_requested_at
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


def _line(run: Run, told: Why | None) -> str:
    task = run.task
    if told is None or told.constraint is None:
        ended_badly = task.status in {Status.FAILED, Status.CANCELLED}
        return (task.error or "").strip().partition("\n")[0] if ended_badly else ""
    if told.constraint is not Constraint.WORKING:
        return short(told)
    said = str((task.progress or {}).get("summary") or "")
    return said or (words.said(run.said) if run.said else "")


def short(told: Why) -> str:
    """Without the status, which stands beside it."""
    return told.sentence.removeprefix(f"{told.status}: ").removeprefix("cancelling: ")
