"""The sweeps of this node: what they did; and one of them at once, for an operator."""

from __future__ import annotations

import trio
from quart import Blueprint, Response, request

from understudy.actors.sweepers import Tally
from understudy.http import auth
from understudy.http.errors import answer
from understudy.http.site import Site
from understudy.wire import board as wire
from understudy.wire.errors import not_found


def blueprint(site: Site) -> Blueprint:
    routes = Blueprint("sweeps", __name__)
    database = site.database

    @routes.get("/api/sweeps")
    async def sweeps() -> Response:
        await auth.person(request, database)
        return answer([_sweep(name, tally) for name, tally in site.sweepers.tallies.items()])

    @routes.post("/api/sweeps/<name>")
    async def sweep_now(name: str) -> Response:
        """One batch, at once."""
        await auth.person(request, database)
        if name not in site.sweepers.tallies:
            raise not_found(f"sweep {name[:80]}")
        await site.sweepers.sweep_now(name)
        return answer(_sweep(name, site.sweepers.tallies[name]))

    return routes


def _sweep(name: str, tally: Tally) -> wire.Sweep:
    ago_s = None if tally.last_at is None else trio.current_time() - tally.last_at
    return wire.Sweep(
        name=name,
        runs=tally.runs,
        rows=tally.rows,
        last_rows=tally.last_rows,
        last_ago_s=ago_s,
        last_took_s=tally.last_took_s,
        longest_s=tally.longest_s,
    )
