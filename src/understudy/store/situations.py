"""What is known of tasks that have not ended, for `core/explain.py` (R10.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from understudy.core.lifecycle import ACTIVE
from understudy.core.records import Runtime, Task
from understudy.core.situation import Place, Situation
from understudy.store import runtimes
from understudy.store.database import Database, read

Attendance = tuple[bool | None, int | None]
"""Of a runtime: is it attached, how many of its slots are free; None where nobody here knows."""
FACTS: Final = """
    select t.*, a.name as agent_name, a.max_concurrent_tasks, a.archived_at,
           a.runtime_id as pinned_to,
           (select count(*)::int from understudy.tasks f where f.agent_id = t.agent_id
            and f.status in ('dispatched', 'running')) as agent_runs,
           before.id as running_on_issue, before.cancel_requested_at as stopping_at,
           exists (select from understudy.tasks p where p.issue_id = t.issue_id
                   and p.agent_id = t.agent_id and p.status in ('queued', 'dispatched')
                   and p.id <> t.id) as has_pending, understudy.now() as now
    from understudy.tasks t
    join understudy.agents a on a.id = t.agent_id
    left join lateral (
      select * from understudy.tasks f where f.agent_id = t.agent_id and f.issue_id = t.issue_id
        and f.status in ('dispatched', 'running') and f.id <> t.id limit 1
    ) before on true
    where t.id = any ($1)
"""


@dataclass(frozen=True)
class Known:
    """A task as it is `now`, by the database's clock; `situation` is None once it has ended."""

    task: Task
    situation: Situation | None
    now: datetime


async def of_tasks(
    database: Database,
    workspace_id: UUID,
    task_ids: list[UUID],
    attendance: Callable[[Runtime], Attendance],
) -> list[Known]:
    rows = await database.pool.fetch(FACTS, task_ids)
    holders = [row["runtime_id"] for row in rows if row["runtime_id"] is not None]
    machines = await runtimes.of_workspace(database, workspace_id, and_these=holders)
    found = []
    for row in rows:
        task, facts = read(row, Task), row.as_dict()
        situation = None
        if task.status in ACTIVE:
            situation = _situation(task, facts, machines, attendance)
        found.append(Known(task, situation, facts["now"]))
    return found


def _situation(
    task: Task,
    facts: dict[str, Any],
    machines: Iterable[Runtime],
    attendance: Callable[[Runtime], Attendance],
) -> Situation:
    pinned_to = facts["pinned_to"]
    return Situation(
        task=task,
        queued_at=facts["queued_at"] or facts["created_at"],
        claim_expires_at=facts["claim_expires_at"],
        fire_at=facts["fire_at"],
        deferred_for=facts["deferred_for"],
        agent_name=facts["agent_name"],
        agent_runs=facts["agent_runs"],
        agent_limit=facts["max_concurrent_tasks"],
        is_archived=facts["archived_at"] is not None,
        running_on_issue=facts["running_on_issue"],
        is_cancelling_on_issue=facts["stopping_at"] is not None,
        has_pending_on_issue=facts["has_pending"],
        places=[
            _place(machine, task, pinned_to, attendance(machine))
            for machine in machines
            if _may_run(machine, task, pinned_to)
        ],
    )


def _may_run(machine: Runtime, task: Task, pinned_to: UUID | None) -> bool:
    if machine.id == task.runtime_id:
        return True
    return machine.provider == task.provider and pinned_to in {None, machine.id}


def _place(machine: Runtime, task: Task, pinned_to: UUID | None, attendance: Attendance) -> Place:
    is_attached, free_slots = attendance
    return Place(
        name=f"{machine.device_name}/{machine.provider}" if machine.device_name else machine.name,
        offline_since=machine.offline_since,
        online_since=machine.online_since,
        last_seen_at=machine.last_seen_at,
        problem=machine.problem,
        quota_resets_at=machine.quota_resets_at,
        is_pinned=machine.id == pinned_to,
        is_mine=machine.id == task.runtime_id and task.dispatched_at is not None,
        free_slots=free_slots,
        is_attached=is_attached,
    )
