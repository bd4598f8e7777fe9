"""The daemon API over HTTP: one route for each call of `wire/daemon.py`."""

from __future__ import annotations

from http import HTTPStatus
from uuid import UUID

from quart import Blueprint, Response, request

from understudy.http import auth
from understudy.http.body import raw_body
from understudy.http.calls import Desk
from understudy.http.errors import answer
from understudy.http.site import Site
from understudy.wire.daemon import CALLS, CallShape


def blueprint(site: Site, desk: Desk) -> Blueprint:
    routes = Blueprint("daemon", __name__)
    for name, shape in CALLS.items():
        _add(routes, site, desk, name, shape)
    return routes


def _add(routes: Blueprint, site: Site, desk: Desk, name: str, shape: CallShape) -> None:
    async def handle(subject: str | None = None) -> Response:
        machine = await auth.machine(request, site.database)
        subject_id: UUID | None = None
        if subject is not None:
            subject_id = auth.parse_id(subject, f"{shape.subject}_id")
        raw = await raw_body() if shape.method == "POST" else b""
        done = await desk.answer(machine, name, subject_id, raw)
        if shape.status == HTTPStatus.NO_CONTENT:
            return Response(b"", 204)
        return answer(done)

    routes.add_url_rule(shape.path, f"daemon_{name}", handle, methods=[shape.method])
