"""Runs, as people see them."""

from __future__ import annotations

from quart import Blueprint, Response, request

from understudy.http import auth
from understudy.http.agents import shown
from understudy.http.errors import answer
from understudy.http.site import Site
from understudy.store import agents, issues, runtimes, tasks
from understudy.wire import board as wire
from understudy.wire.errors import not_found


def blueprint(site: Site) -> Blueprint:
    routes = Blueprint("tasks", __name__)
    database = site.database

    @routes.get("/api/tasks")
    async def list_tasks() -> Response:
        person = await auth.person(request, database)
        return answer(await tasks.of_workspace(database, person.workspace.id))

    @routes.get("/api/tasks/<task_id>")
    async def show_task(task_id: str) -> Response:
        person = await auth.person(request, database)
        return answer(await task_detail(site, person, task_id))

    return routes


async def task_detail(site: Site, person: auth.Person, task_id: str) -> wire.TaskDetail:
    """Raises `Refused` (400, 404)."""
    database = site.database
    identity = auth.parse_id(task_id, "task_id")
    task = await tasks.find(database, person.workspace.id, identity)
    if task is None:
        raise not_found("task")
    issue = None
    if task.issue_id is not None:
        issue = await issues.get(database, person.workspace.id, task.issue_id)
    return wire.TaskDetail(
        task=task,
        agent=shown(await agents.of_task(database, task)),
        issue=issue,
        runtime=await runtimes.find(database, task.runtime_id) if task.runtime_id else None,
        usage=await tasks.usage(database, identity),
    )
