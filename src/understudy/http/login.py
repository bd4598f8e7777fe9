"""One-time links and the browser's cookie."""

from __future__ import annotations

from quart import Blueprint, Response, redirect, request

from understudy.http import auth
from understudy.http.body import body
from understudy.http.errors import answer
from understudy.http.site import Site
from understudy.store import tokens
from understudy.wire import board as wire
from understudy.wire.errors import Refused


def blueprint(site: Site) -> Blueprint:
    routes = Blueprint("login", __name__)
    database = site.database

    @routes.get("/login/<code>")
    async def follow_link(code: str) -> Response:
        session = await tokens.redeem_login(database, code, session_s=auth.SESSION_S)
        if session is None:
            return redirect("/login?spent=1")  # type: ignore[return-value]
        response: Response = redirect("/")  # type: ignore[assignment]
        response.set_cookie(
            auth.COOKIE,
            session,
            max_age=int(auth.SESSION_S),
            httponly=True,
            samesite="Lax",
            secure=request.scheme == "https",
        )
        return response

    @routes.post("/api/login/links")
    async def new_link() -> Response:
        """Another way in for the same person: a browser, a second machine."""
        person = await auth.person(request, database)
        code = await tokens.create(
            database, "login", tokens.Owner(user_id=person.user.id), valid_s=tokens.LINK_S
        )
        return answer(wire.LoginLink(path=f"/login/{code}", valid_s=tokens.LINK_S), 201)

    @routes.post("/api/login")
    async def login() -> Response:
        """For the command line: a one-time code becomes a personal key."""
        wanted = await body(wire.Login)
        session = await tokens.redeem_login(database, wanted.code, session_s=60.0)
        grant = await tokens.find(database, session) if session else None
        if session is None or grant is None:
            raise Refused(401, "unauthenticated", "this code was used before, or has expired")
        secret = await tokens.create(
            database, "personal", tokens.Owner(user_id=grant.user_id), name="command line"
        )
        await tokens.revoke(database, session)
        return answer(wire.CreatedToken(token=secret, workspace_id=None), 201)

    @routes.post("/logout")
    async def logout() -> Response:
        await auth.person(request, database)
        await tokens.revoke(database, request.cookies.get(auth.COOKIE, ""))
        response: Response = redirect("/login")  # type: ignore[assignment]
        response.delete_cookie(auth.COOKIE)
        return response

    return routes
