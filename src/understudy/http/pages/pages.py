"""The pages, and the fragments they replace themselves with when something happened."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias
from uuid import UUID

import trio
from quart import Blueprint, Response, redirect, request

from understudy.http import auth
from understudy.http.auth import Person
from understudy.http.errors import refusal_of, refuse
from understudy.http.pages import board, fleet, issue, tree
from understudy.http.pages.assets import load_static, serve_asset
from understudy.http.pages.render import Renderer
from understudy.http.site import Site
from understudy.store.errors import DatabaseUnavailable
from understudy.wire.errors import Refusal, Refused

FRAGMENTS: Final = "/fragments"

View: TypeAlias = Callable[[Person], Awaitable[object]]


def blueprint(site: Site) -> Blueprint:
    routes = Blueprint("pages", __name__)
    pages = Pages(site)
    _add_files(routes)
    _add_errors(routes, pages)
    _add_issue(routes, site, pages)

    async def show_board(person: Person) -> object:
        return await board.view(site, person.workspace.id)

    async def show_agents(person: Person) -> object:
        return await fleet.agents_view(site, person.workspace.id)

    async def show_machines(person: Person) -> object:
        return await fleet.machines_view(site, person.workspace.id)

    async def show_system(person: Person) -> object:
        now = site.tree.snapshot(trio.current_time())
        return await tree.view(site.database, person.workspace.id, now)

    _add_page(routes, pages, "/", "board", show_board)
    _add_page(routes, pages, "/agents", "agents", show_agents)
    _add_page(routes, pages, "/machines", "machines", show_machines)
    _add_page(routes, pages, "/system", "system", show_system)

    @routes.get("/login")
    async def login() -> Response:
        return pages.bare("login.html", is_spent="spent" in request.args)

    @routes.get("/join/<key>")
    async def join(key: str) -> Response:
        """The address is for `understudy join`; somebody opened it in a browser."""
        return pages.bare("join.html")

    return routes


class Pages:
    """Renders a view whole, or only the part of it that changes."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._renderer = Renderer()

    async def whole(self, name: str, view: View) -> Response:
        # Read before the rows: an event between the two is told again, never missed.
        cursor = self._site.cast.tail.mark.value
        person = await auth.person(request, self._site.database)
        shown = await self._shown(person, view)
        return self._html(f"{name}.html", {"page": name, "cursor": cursor} | shown)

    async def part(self, name: str, view: View) -> Response:
        person = await auth.person(request, self._site.database)
        return self._html(f"parts/{name}.html", await self._shown(person, view))

    async def _shown(self, person: Person, view: View) -> dict[str, object]:
        providers = await fleet.providers(self._site.database, person.workspace.id)
        return {"person": person, "view": await view(person), "providers": providers}

    def bare(self, template: str, *, status: int = 200, **context: object) -> Response:
        """For somebody who may be nobody."""
        return self._html(template, {"version": self._site.version} | context, status)

    def _html(self, template: str, context: dict[str, object], status: int = 200) -> Response:
        return Response(
            self._renderer.render(template, context),
            status,
            content_type="text/html; charset=utf-8",
            headers={"Cache-Control": "no-store"},
        )


def _add_page(routes: Blueprint, pages: Pages, path: str, name: str, view: View) -> None:
    async def whole() -> Response:
        return await pages.whole(name, view)

    async def part() -> Response:
        return await pages.part(name, view)

    routes.add_url_rule(path, name, whole, methods=["GET"])
    routes.add_url_rule(f"{FRAGMENTS}/{name}", f"{name}_part", part, methods=["GET"])


def _add_issue(routes: Blueprint, site: Site, pages: Pages) -> None:
    def show(name: str) -> View:
        run = request.args.get("run")
        chosen: UUID | None = auth.parse_id(run, "run") if run else None

        async def show_issue(person: Person) -> object:
            return await issue.view(site, person.workspace.id, name, chosen)

        return show_issue

    @routes.get("/issues/<name>")
    async def issue_page(name: str) -> Response:
        return await pages.whole("issue", show(name))

    @routes.get(f"{FRAGMENTS}/issues/<name>")
    async def issue_part(name: str) -> Response:
        return await pages.part("issue", show(name))


def _add_files(routes: Blueprint) -> None:
    static = load_static()

    @routes.get("/static/<path:name>")
    async def file(name: str) -> Response:
        return serve_asset(static, name, request)


def _add_errors(routes: Blueprint, pages: Pages) -> None:
    """A person gets a page; a script of ours gets what scripts get."""

    async def explain(error: Exception) -> Response:
        refusal = refusal_of(error)
        if request.path.startswith((f"{FRAGMENTS}/", "/static/")):
            return refuse(refusal)
        if refusal.code == "unauthenticated":
            return redirect("/login")  # type: ignore[return-value]
        return _problem(pages, refusal)

    for kind in (Refused, DatabaseUnavailable, Exception):
        routes.register_error_handler(kind, explain)


def _problem(pages: Pages, refusal: Refusal) -> Response:
    response = pages.bare("problem.html", status=refusal.status, refusal=refusal)
    if refusal.retry_after_s is not None:
        response.headers["Retry-After"] = str(round(refusal.retry_after_s))
    return response
