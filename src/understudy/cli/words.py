"""A run and what became of it, in the words of the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from understudy.cli.output import one_line, when

ACTIVE: Final = frozenset({"deferred", "queued", "dispatched", "running"})
CALLED: Final = {
    "enqueued": "{agent} is called; task {task_id} is queued.",
    "joined": "{agent} hears of it in task {task_id}, which waits already.",
    "waiting": "{agent} is at work on this issue, and hears of it when that run ends.",
    "too_many_hops": "{agent} is not called: agents have called one another too often.",
}


def is_active(task: Any) -> bool:
    return task["status"] in ACTIVE


def status_of(task: Any) -> str:
    """`cancelling` is no status of its own: the run goes on until its machine has stopped it."""
    is_cancelling = is_active(task) and task["cancel_requested_at"]
    return "cancelling" if is_cancelling else str(task["status"])


def attempt_of(task: Any) -> str:
    return f"{task['attempt']} of {task['max_attempts']}"


def reason_of(task: Any) -> str | None:
    from understudy.core.reasons import REASONS

    reason = task["failure_reason"]
    if reason == "cancelled":
        return None  # Its status has said so.
    return reason and f"{reason} ({REASONS.get(reason, 'failed')})"


def line_of(task: Any) -> str:
    reason, error = reason_of(task), one_line(task["error"] or "")
    why = ", ".join(filter(None, [reason, error]))
    said = f"task {task['id']}  attempt {attempt_of(task)}  {status_of(task)}"
    return f"{said}: {why}" if why else said


def history_of(task: Any) -> Iterator[tuple[str, str]]:
    """What came before it, what it waits for, and what came of it; each with its name."""
    if task["parent_task_id"]:
        verb = "tries again" if task["attempt"] > 1 else "runs again"
        yield "follows", f"{task['parent_task_id']}, which it {verb}"
    if task["status"] == "deferred":
        yield "deferred", f"until {when(task['fire_at'])}"
    if status_of(task) == "cancelling":
        yield "cancelling", f"since {when(task['cancel_requested_at'])}"
    if task["retry_task_id"]:
        yield "retried", f"as {task['retry_task_id']}"
    if task["move"] == "complete_late":
        yield "late", "its result came after it had been given up, and counts"
    elif task["status"] == "failed" and task["result"]:
        yield "late", "its result came when the next attempt had begun; it is kept here"
