"""Runtimes, as people see them: listed, pinged, removed."""

from __future__ import annotations

from quart import Blueprint, Response, request

from understudy.core.records import Runtime
from understudy.http import auth
from understudy.http.errors import answer
from understudy.http.site import Site
from understudy.store import runtimes
from understudy.wire import board as wire
from understudy.wire.daemon import Ping
from understudy.wire.errors import Refused, not_found


def blueprint(site: Site) -> Blueprint:
    routes = Blueprint("runtimes", __name__)
    database = site.database

    @routes.get("/api/runtimes")
    async def list_runtimes() -> Response:
        person = await auth.person(request, database)
        return answer(await runtimes.of_workspace(database, person.workspace.id))

    @routes.delete("/api/runtimes/<runtime_id>")
    async def delete_runtime(runtime_id: str) -> Response:
        row = await _runtime(site, await auth.person(request, database), runtime_id)
        is_gone = await runtimes.delete(database, row.workspace_id, row.id)
        if is_gone is None:
            raise not_found("runtime")
        if not is_gone:
            raise Refused(409, "at_work", f"{row.name} has runs in flight: cancel them first")
        site.cast.forget(row.id)
        site.cast.committed(None)
        return answer(row)

    @routes.post("/api/runtimes/<runtime_id>/pings")
    async def ping(runtime_id: str) -> Response:
        """R4.12. The daemon must be attached to this node: what it has not heard it cannot time."""
        row = await _runtime(site, await auth.person(request, database), runtime_id)
        if site.cast.presence(row.id) is None:
            raise Refused(409, "not_here", f"{row.name} is not connected to this server")
        sent = Ping(id=database.new_id(), runtime_id=row.id)
        if not site.cast.ping(sent):
            raise Refused(
                429, "too_many_pings", f"{row.name} has not answered others", retry_after_s=15.0
            )
        return answer(wire.Pinged(ping_id=sent.id, is_answered=False), 202)

    @routes.get("/api/runtimes/<runtime_id>/pings/<ping_id>")
    async def show_ping(runtime_id: str, ping_id: str) -> Response:
        row = await _runtime(site, await auth.person(request, database), runtime_id)
        presence = site.cast.presence(row.id)
        identity = auth.parse_id(ping_id, "ping_id")
        if presence is None or identity not in presence.pings | presence.round_trips_s:
            raise not_found("ping")
        round_trip_s = presence.round_trips_s.get(identity)
        return answer(
            wire.Pinged(
                ping_id=identity,
                is_answered=round_trip_s is not None,
                round_trip_s=round_trip_s,
            )
        )

    return routes


async def _runtime(site: Site, person: auth.Person, runtime_id: str) -> Runtime:
    row = await runtimes.find(site.database, auth.parse_id(runtime_id, "runtime_id"))
    if row is None or row.workspace_id != person.workspace.id:
        raise not_found("runtime")
    return row
