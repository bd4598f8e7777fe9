"""Runs, as people see them."""

from __future__ import annotations

from functools import partial

from quart import Blueprint, Response, request

from understudy.actors.task import Cancel
from understudy.core.records import Task
from understudy.http import auth
from understudy.http.agents import shown
from understudy.http.errors import answer
from understudy.http.site import Site
from understudy.http.why import why
from understudy.store import agents, issues, runtimes, tasks
from understudy.store.tasks import Outcome
from understudy.wire import board as wire
from understudy.wire.errors import Refused, not_found


def blueprint(site: Site) -> Blueprint:
    routes = Blueprint("tasks", __name__)
    database = site.database

    @routes.get("/api/tasks")
    async def list_tasks() -> Response:
        asker = await auth.somebody(request, database)
        return answer(await tasks.of_workspace(database, asker.workspace.id))

    @routes.get("/api/tasks/<task_id>")
    async def show_task(task_id: str) -> Response:
        asker = await auth.somebody(request, database)
        return answer(await task_detail(site, asker, task_id))

    @routes.get("/api/tasks/<task_id>/why")
    async def explain_task(task_id: str) -> Response:
        asker = await auth.somebody(request, database)
        task = await find_task(site, asker, task_id)
        return answer((await why(site, task.workspace_id, [task.id]))[task.id])

    @routes.post("/api/tasks/<task_id>/cancel")
    async def cancel_task(task_id: str) -> Response:
        person = await auth.person(request, database)
        task = await find_task(site, person, task_id)
        asked = partial(Cancel, task.workspace_id, task.id, person.user.id)
        done = await site.cast.report(task.id, asked)
        if done.task is None:
            raise not_found("task")
        if done.outcome is Outcome.ENDED:
            raise Refused(409, "ended", f"it has ended: {done.task.status}")
        status = 202 if done.task.status == "running" else 200
        return answer(wire.Cancelled(outcome=done.outcome, task=done.task), status)

    return routes


async def find_task(site: Site, asker: auth.Somebody, task_id: str) -> Task:
    """Raises `Refused` (400, 404)."""
    identity = auth.parse_id(task_id, "task_id")
    task = await tasks.find(site.database, asker.workspace.id, identity)
    if task is None:
        raise not_found("task")
    return task


async def task_detail(site: Site, asker: auth.Somebody, task_id: str) -> wire.TaskDetail:
    """Raises `Refused` (400, 404)."""
    database = site.database
    task = await find_task(site, asker, task_id)
    issue = None
    if task.issue_id is not None:
        issue = await issues.get(database, task.workspace_id, task.issue_id)
    return wire.TaskDetail(
        task=task,
        why=(await why(site, task.workspace_id, [task.id]))[task.id],
        agent=shown(await agents.of_task(database, task)),
        issue=issue,
        runtime=await runtimes.find(database, task.runtime_id) if task.runtime_id else None,
        usage=await tasks.usage(database, task.id),
    )
