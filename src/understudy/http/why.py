"""Why a task is where it is: what the database and this node know, put into words (R10.4)."""

from __future__ import annotations

from uuid import UUID

from understudy.core.explain import explain
from understudy.core.leases import Leases
from understudy.core.lifecycle import Status
from understudy.core.records import Runtime, Task
from understudy.http.site import Site
from understudy.store import situations
from understudy.store.situations import Attendance, Known
from understudy.wire.board import Why


async def why(site: Site, workspace_id: UUID, task_ids: list[UUID]) -> dict[UUID, Why]:
    """Of tasks of one workspace, whatever their status."""
    if not task_ids:
        return {}
    known = await situations.of_tasks(
        site.database, workspace_id, task_ids, lambda machine: _attendance(site, machine)
    )
    return {each.task.id: _why(each, site.cast.leases) for each in known}


def _why(known: Known, leases: Leases) -> Why:
    if known.situation is None:
        return _ending(known.task)
    said = explain(known.situation, known.now, leases)
    return Why(
        task_id=known.task.id,
        status=known.task.status,
        sentence=said.sentence,
        constraint=said.constraint,
        changes=said.changes,
        changes_at=said.changes_at,
    )


def _attendance(site: Site, machine: Runtime) -> Attendance:
    presence = site.cast.presence(machine.id)
    if presence is None or machine.node_id != site.cast.node_id or presence.polls:
        return None, None
    return presence.link is not None, presence.link.free if presence.link else None


def _ending(task: Task) -> Why:
    match task.status:
        case Status.FAILED:
            what = f"{task.failure_reason}: {_first_line(task.error) or 'it said no more'}"
            if task.retry_task_id is not None:
                what += f"; it was tried again as {task.retry_task_id}"
        case Status.CANCELLED:
            what = _first_line(task.error) or "somebody wanted it stopped"
        case _:
            what = "it is done"
    return Why(task_id=task.id, status=task.status, sentence=f"{task.status}: {what}")


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]
