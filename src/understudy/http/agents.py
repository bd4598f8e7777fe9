"""Agents."""

from __future__ import annotations

from typing import Final

import msgspec
from quart import Blueprint, Response, request

from understudy.core.records import Agent
from understudy.http import auth
from understudy.http.body import body
from understudy.http.errors import answer
from understudy.http.site import Site
from understudy.store import agents, runtimes
from understudy.wire import board as wire
from understudy.wire.errors import Refused, invalid, not_found

HIDDEN: Final = "•••"
PROGRAMS: Final = frozenset({"acp", "command"})
"""Providers that run the program their agent names."""


def blueprint(site: Site) -> Blueprint:
    routes = Blueprint("agents", __name__)
    database = site.database

    @routes.get("/api/agents")
    async def list_agents() -> Response:
        asker = await auth.somebody(request, database)
        found = await agents.of_workspace(database, asker.workspace.id)
        return answer([shown(each) for each in found])

    @routes.post("/api/agents")
    async def create_agent() -> Response:
        person = await auth.person(request, database)
        wanted = await body(wire.CreateAgent)
        _check_program(wanted)
        await _check_runtime(site, person, wanted)
        try:
            made = await agents.create(database, person.workspace.id, wanted)
        except agents.AgentExists:
            raise Refused(409, "exists", f"there is an agent named {wanted.name} already") from None
        return answer(shown(made), 201)

    return routes


def shown(agent: Agent) -> Agent:
    """As people see it: that a variable is set, not to what. Its value may be a key (R9.5)."""
    hidden = dict.fromkeys(agent.custom_env, HIDDEN)
    return msgspec.structs.replace(agent, custom_env=hidden, mcp_config=None)


async def find_agent(site: Site, asker: auth.Somebody, name: str) -> Agent:
    agent = await agents.find(site.database, asker.workspace.id, name)
    if agent is None:
        raise not_found(f"agent {name[:80]}")
    return agent


def _check_program(wanted: wire.CreateAgent) -> None:
    """Here, where somebody can add it; else its first run would fail for it."""
    if wanted.provider in PROGRAMS and not wanted.custom_args:
        raise invalid(
            f"custom_args: a {wanted.provider} agent needs its program:"
            f" `understudy agent create … --provider {wanted.provider} -- PROGRAM`"
        )


async def _check_runtime(site: Site, person: auth.Person, wanted: wire.CreateAgent) -> None:
    if wanted.runtime_id is None:
        return
    row = await runtimes.find(site.database, wanted.runtime_id)
    if row is None or row.workspace_id != person.workspace.id:
        raise not_found("runtime")
    if row.provider != wanted.provider:
        raise invalid(f"provider is {wanted.provider}, but that runtime runs {row.provider}")
