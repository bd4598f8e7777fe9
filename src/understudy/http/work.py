"""What sets agents to work on an issue, and what stops them: assign, comment, rerun, cancel."""

from __future__ import annotations

from quart import Blueprint, Response, request

from understudy.core.records import Agent, Issue, Task
from understudy.http import auth
from understudy.http.agents import find_agent
from understudy.http.body import body
from understudy.http.errors import answer
from understudy.http.site import Site
from understudy.store import issues, tasks
from understudy.store.issues import Assignment, Author
from understudy.store.tasks import Moved, Outcome
from understudy.wire import board as wire
from understudy.wire.errors import Refused, not_found


def blueprint(site: Site) -> Blueprint:
    routes = Blueprint("work", __name__)
    database = site.database

    @routes.post("/api/issues/<name>/assign")
    async def assign_issue(name: str) -> Response:
        asker = await auth.somebody(request, database)
        wanted = await body(wire.Assign)
        issue = await find_issue(site, asker, name)
        agent = await find_agent(site, asker, wanted.agent)
        return answer(await assign_to(site, asker, issue, agent))

    @routes.post("/api/issues/<name>/comments")
    async def comment(name: str) -> Response:
        asker = await auth.somebody(request, database)
        wanted = await body(wire.CreateComment)
        issue = await find_issue(site, asker, name)
        made = await issues.add_comment(database, issue, wanted.body, author_of(asker))
        if made is None:
            raise not_found("issue")
        site.cast.committed(None)  # Whom it calls hears by the event (actors/courier.py).
        return answer(made, 201)

    @routes.post("/api/issues/<name>/rerun")
    async def rerun_issue(name: str) -> Response:
        person = await auth.person(request, database)
        wanted = await body(wire.RerunIssue)
        issue = await find_issue(site, person, name)
        return answer(await _rerun(site, person, issue, wanted), 202)

    @routes.post("/api/issues/<name>/cancel")
    async def cancel_issue(name: str) -> Response:
        person = await auth.person(request, database)
        issue = await find_issue(site, person, name)
        done = await tasks.cancel_issue(database, issue.workspace_id, issue.id, by=person.user.id)
        site.cast.committed(None)
        for moved in done:
            site.cast.committed(moved)
        newest = await issues.get(database, issue.workspace_id, issue.id)
        cancelled = [wire.Cancelled(outcome=m.outcome, task=m.task) for m in done if m.task]
        return answer(wire.CancelledIssue(issue=newest or issue, tasks=cancelled))

    return routes


async def find_issue(site: Site, asker: auth.Somebody, name: str) -> Issue:
    """Raises `Refused` (404)."""
    issue = await issues.find(site.database, asker.workspace.id, name)
    if issue is None:
        raise not_found(f"issue {name[:80]}")
    return issue


def author_of(asker: auth.Somebody) -> Author:
    match asker:
        case auth.Person(user=user):
            return Author(user_id=user.id)
        case auth.AgentAtWork(task_id=task_id):
            return Author(task_id=task_id)


async def assign_to(site: Site, asker: auth.Somebody, issue: Issue, agent: Agent) -> wire.Assigned:
    done = await issues.assign(
        site.database, issue.workspace_id, issue.id, agent.id, by_task=author_of(asker).task_id
    )
    return await assigned(site, issue, done)


async def assigned(site: Site, issue: Issue, done: Assignment) -> wire.Assigned:
    """Commit first, then wake whoever may claim it (R3.9)."""
    if done.outcome.endswith("_not_found"):  # It went away meanwhile.
        raise not_found(done.outcome.partition("_")[0])
    site.cast.committed(None)
    if done.task is not None:
        site.cast.wake_for(done.task)
    newest = await issues.get(site.database, issue.workspace_id, issue.id)
    return wire.Assigned(outcome=done.outcome, issue=newest or issue, task=done.task)


async def _rerun(site: Site, person: auth.Person, issue: Issue, wanted: wire.RerunIssue) -> Task:
    done = await issues.rerun(site.database, issue, wanted, user_id=person.user.id)
    if done.outcome == "agent_not_found":
        raise Refused(404, "not_found", "no agent to run again: assign one, or name a task_id")
    if done.task is None:
        raise not_found(done.outcome.partition("_")[0])
    for moved in done.cancelled:
        site.cast.committed(moved)
    site.cast.committed(Moved(Outcome.MOVED, done.task))
    return done.task
