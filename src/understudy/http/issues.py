"""Issues: made, shown, moved, assigned, spoken about, run again, called off."""

from __future__ import annotations

from quart import Blueprint, Response, request

from understudy.http import auth
from understudy.http.agents import find_agent
from understudy.http.body import body
from understudy.http.errors import answer
from understudy.http.site import Site
from understudy.http.work import assign_to, assigned, author_of, find_issue
from understudy.store import issues, tasks
from understudy.wire import board as wire


def blueprint(site: Site) -> Blueprint:
    routes = Blueprint("issues", __name__)
    database = site.database

    @routes.get("/api/issues")
    async def list_issues() -> Response:
        asker = await auth.somebody(request, database)
        return answer(await issues.of_workspace(database, asker.workspace.id))

    @routes.post("/api/issues")
    async def create_issue() -> Response:
        asker = await auth.somebody(request, database)
        wanted = await body(wire.CreateIssue)
        agent = await find_agent(site, asker, wanted.agent) if wanted.agent else None
        author = author_of(asker)
        made = await issues.create(database, asker.workspace.id, author.user_id, wanted)
        if agent is not None:
            return answer(await assign_to(site, asker, made, agent), 201)
        site.cast.committed(None)
        return answer(wire.Assigned(outcome="created", issue=made), 201)

    @routes.get("/api/issues/<name>")
    async def show_issue(name: str) -> Response:
        asker = await auth.somebody(request, database)
        issue = await find_issue(site, asker, name)
        return answer(
            wire.IssueDetail(
                issue=issue,
                tasks=await tasks.of_issue(database, issue.id),
                comments=await issues.comments(database, issue.id),
            )
        )

    @routes.patch("/api/issues/<name>")
    async def update_issue(name: str) -> Response:
        asker = await auth.somebody(request, database)
        wanted = await body(wire.UpdateIssue)
        issue = await find_issue(site, asker, name)
        done = await issues.set_status(database, issue.workspace_id, issue.id, wanted.status)
        return answer(await assigned(site, issue, done))

    return routes
