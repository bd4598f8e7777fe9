"""Issues: made, shown, moved, assigned, spoken about."""

from __future__ import annotations

from quart import Blueprint, Response, request

from understudy.core.records import Agent, Issue
from understudy.http import auth
from understudy.http.agents import find_agent
from understudy.http.body import body
from understudy.http.errors import answer
from understudy.http.site import Site
from understudy.store import issues, tasks
from understudy.store.issues import Assignment
from understudy.wire import board as wire
from understudy.wire.errors import not_found


def blueprint(site: Site) -> Blueprint:
    routes = Blueprint("issues", __name__)
    database = site.database

    @routes.get("/api/issues")
    async def list_issues() -> Response:
        person = await auth.person(request, database)
        return answer(await issues.of_workspace(database, person.workspace.id))

    @routes.post("/api/issues")
    async def create_issue() -> Response:
        person = await auth.person(request, database)
        wanted = await body(wire.CreateIssue)
        agent = await find_agent(site, person, wanted.agent) if wanted.agent else None
        made = await issues.create(database, person.workspace.id, person.user.id, wanted)
        if agent is not None:
            return answer(await assign_to(site, person, made, agent), 201)
        site.cast.committed(None)
        return answer(wire.Assigned(outcome="created", issue=made), 201)

    @routes.get("/api/issues/<name>")
    async def show_issue(name: str) -> Response:
        person = await auth.person(request, database)
        issue = await find_issue(site, person, name)
        return answer(
            wire.IssueDetail(
                issue=issue,
                tasks=await tasks.of_issue(database, issue.id),
                comments=await issues.comments(database, issue.id),
            )
        )

    @routes.patch("/api/issues/<name>")
    async def update_issue(name: str) -> Response:
        person = await auth.person(request, database)
        wanted = await body(wire.UpdateIssue)
        issue = await find_issue(site, person, name)
        done = await issues.set_status(database, person.workspace.id, issue.id, wanted.status)
        return answer(await _assigned(site, person, issue, done))

    @routes.post("/api/issues/<name>/assign")
    async def assign_issue(name: str) -> Response:
        person = await auth.person(request, database)
        wanted = await body(wire.Assign)
        issue = await find_issue(site, person, name)
        agent = await find_agent(site, person, wanted.agent)
        return answer(await assign_to(site, person, issue, agent))

    @routes.post("/api/issues/<name>/comments")
    async def comment(name: str) -> Response:
        person = await auth.person(request, database)
        wanted = await body(wire.CreateComment)
        issue = await find_issue(site, person, name)
        author = issues.Author(user_id=person.user.id)
        made = await issues.add_comment(database, issue, wanted.body, author)
        if made is None:
            raise not_found("issue")
        site.cast.committed(None)
        return answer(made, 201)

    return routes


async def find_issue(site: Site, person: auth.Person, name: str) -> Issue:
    """Raises `Refused` (404)."""
    issue = await issues.find(site.database, person.workspace.id, name)
    if issue is None:
        raise not_found(f"issue {name[:80]}")
    return issue


async def assign_to(site: Site, person: auth.Person, issue: Issue, agent: Agent) -> wire.Assigned:
    done = await issues.assign(site.database, person.workspace.id, issue.id, agent.id)
    return await _assigned(site, person, issue, done)


async def _assigned(
    site: Site, person: auth.Person, issue: Issue, done: Assignment
) -> wire.Assigned:
    """Commit first, then wake whoever may claim it (R3.9)."""
    if done.outcome.endswith("_not_found"):  # It went away meanwhile.
        raise not_found(done.outcome.partition("_")[0])
    site.cast.committed(None)
    if done.task is not None:
        site.cast.wake(done.task.workspace_id, done.task.provider)
    newest = await issues.get(site.database, person.workspace.id, issue.id)
    return wire.Assigned(outcome=done.outcome, issue=newest or issue, task=done.task)
