"""What is served under /api and what `/api/openapi.json` says are the same (R11.6)."""

from __future__ import annotations

import re

from quart import url_for
from quart_trio import QuartTrio

from understudy.http.app import Route, create_app
from understudy.testing.node import Node
from understudy.wire.openapi import document

UNDESCRIBED = {"HEAD", "OPTIONS"}


def served(app: QuartTrio) -> set[str]:
    return {
        f"{method} {re.sub('<[^>]+>', '{}', rule.rule)}"
        for rule in app.url_map.iter_rules()
        if rule.rule.startswith("/api/") and not rule.websocket
        for method in (rule.methods or set()) - UNDESCRIBED
    }


def described() -> set[str]:
    paths = document("1", cookie="session")["paths"]
    return {
        f"{method.upper()} {re.sub('{[^}]+}', '{}', path)}"
        for path, methods in paths.items()
        for method in methods
    }


async def test_every_route_is_described_and_nothing_else(node: Node) -> None:
    """R11.6"""
    routes = served(create_app(node.site))
    assert len(routes) > 30
    missing, surplus = sorted(routes - described()), sorted(described() - routes)
    assert not missing, f"add to ROUTES in wire/api.py what http/ serves: {missing}"
    assert not surplus, f"remove from ROUTES in wire/api.py what nobody serves: {surplus}"


async def test_the_description_is_served_without_a_key(node: Node) -> None:
    """R11.6"""
    answer = await node.stranger.get("/api/openapi.json")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == document(node.site.version, cookie="understudy_session")


async def test_a_route_still_knows_its_address(node: Node) -> None:
    """What builds it is compiled when it is first asked for, by a name private to werkzeug."""
    app = create_app(node.site)
    assert {type(rule) for rule in app.url_map.iter_rules()} == {Route}
    async with app.test_request_context("/"):
        assert url_for("stream.messages", task_id="a b", after=3) == (
            "/api/tasks/a%20b/messages?after=3"
        )
