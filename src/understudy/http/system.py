"""Who am I, is it well, what runs: the node itself."""

from __future__ import annotations

import trio
from quart import Blueprint, Response, request

from understudy.http import auth
from understudy.http.body import body
from understudy.http.errors import answer
from understudy.http.site import Site
from understudy.store import people, tokens
from understudy.store.errors import DatabaseUnavailable
from understudy.wire import board as wire
from understudy.wire import openapi


def blueprint(site: Site) -> Blueprint:
    routes = Blueprint("system", __name__)
    database = site.database

    @routes.get("/api/me")
    async def me() -> Response:
        person = await auth.person(request, database)
        return answer(
            wire.Me(
                user=person.user, workspaces=await people.workspaces_of(database, person.user.id)
            )
        )

    @routes.get("/api/workspaces")
    async def workspaces() -> Response:
        """Also for a machine, which learns here where it works (spec section 12)."""
        if await auth.is_machine(request, database):
            machine = await auth.machine(request, database)
            mine = await people.find_workspace(database, machine.workspace_id)
            return answer([mine])
        person = await auth.person(request, database)
        return answer(await people.workspaces_of(database, person.user.id))

    @routes.post("/api/tokens")
    async def create_token() -> Response:
        person = await auth.person(request, database)
        wanted = await body(wire.CreateToken)
        secret = await tokens.create(
            database,
            wanted.kind,
            tokens.Owner(user_id=person.user.id, workspace_id=person.workspace.id),
            name=wanted.name,
        )
        return answer(wire.CreatedToken(token=secret, workspace_id=person.workspace.id), 201)

    @routes.get("/api/tree")
    async def tree() -> Response:
        await auth.person(request, database)
        return answer(site.tree.snapshot(trio.current_time()))

    @routes.get("/api/openapi.json")
    async def description() -> Response:
        return answer(openapi.document(site.version, cookie=auth.COOKIE))

    @routes.get("/api/health")
    async def health() -> Response:
        try:
            await database.pool.check()
        except DatabaseUnavailable:
            return answer(wire.Health(status="database_away", version=site.version), 503)
        return answer(wire.Health(status="ok", version=site.version))

    return routes
