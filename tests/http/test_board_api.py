"""The API of people: what it refuses, and that nothing sent to it breaks it."""

from __future__ import annotations

import json
import re
from functools import partial
from itertools import cycle
from random import Random, SystemRandom
from typing import Any
from uuid import UUID, uuid4

import httpx2
import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from quart_trio import QuartTrio

from understudy.core.records import Usage
from understudy.http import auth
from understudy.http.app import create_app
from understudy.store import agents, claims, issues, people, runtimes, schema, tasks, tokens
from understudy.store.connection import open_connection
from understudy.store.database import Database
from understudy.store.pool import Pool
from understudy.store.tasks import Holder
from understudy.testing.node import Node, open_node
from understudy.testing.tenants import add_workspace
from understudy.wire.board import CreateAgent, CreateIssue

UNKNOWN = str(UUID(int=2**127 + 7))


def refused(answer: httpx2.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "code"}
    sentence: str = answer.json()["error"]
    return sentence


async def issue_for_nia(node: Node) -> Any:
    await node.person.post("/api/agents", json={"name": "Nia", "provider": "scripted"})
    made = await node.person.post("/api/issues", json={"title": "A thing", "agent": "nia"})
    assert made.status_code == 201, made.text
    return made.json()


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/api/issues", {}, "title"),
        ("/api/issues", {"title": ""}, "title"),
        ("/api/issues", {"title": "x" * 501}, "title"),
        ("/api/issues", {"title": 5}, "title"),
        ("/api/issues", {"title": "a\x00b"}, "NUL"),
        ("/api/issues", {"title": "x", "color": "red"}, "color"),
        ("/api/issues", {"title": "x", "priority": 9}, "priority"),
        ("/api/issues", {"title": "x", "status": "asleep"}, "status"),
        ("/api/issues", {"title": "x", "description": "x" * 200_001}, "description"),
        ("/api/agents", {"name": "Nia"}, "provider"),
        ("/api/agents", {"name": "", "provider": "claude"}, "name"),
        ("/api/agents", {"name": "../x", "provider": "claude"}, "name"),
        ("/api/agents", {"name": "x", "provider": "Claude!"}, "provider"),
        ("/api/agents", {"name": "x", "provider": "p", "runtime_id": "x"}, "runtime_id"),
        ("/api/agents", {"name": "x", "provider": "command"}, "custom_args"),
        ("/api/agents", {"name": "x", "provider": "acp"}, "--provider acp -- PROGRAM"),
        ("/api/agents", {"name": "x", "provider": "p", "max_concurrent_tasks": 0}, "max_conc"),
        ("/api/agents", {"name": "x", "provider": "p", "custom_env": {"a": 1}}, "custom_env"),
        ("/api/tokens", {"kind": "session"}, "kind"),
        ("/api/login", {}, "code"),
        ("/api/issues/UND-1/assign", {}, "agent"),
        ("/api/issues/UND-1/comments", {"body": ""}, "body"),
    ],
)
async def test_a_bad_field_is_named(node: Node, path: str, body: object, named: str) -> None:
    """R11.3"""
    await issue_for_nia(node)
    assert named in refused(await node.person.post(path, json=body), 400)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", f"/api/issues/{UNKNOWN}", None),
        ("GET", "/api/issues/UND-99", None),
        ("PATCH", "/api/issues/UND-99", {"status": "todo"}),
        ("POST", "/api/issues/UND-99/assign", {"agent": "nia"}),
        ("POST", "/api/issues/UND-1/assign", {"agent": "nobody"}),
        ("POST", "/api/issues/UND-99/comments", {"body": "x"}),
        ("POST", "/api/issues", {"title": "x", "agent": "nobody"}),
        ("POST", "/api/agents", {"name": "x", "provider": "p", "runtime_id": UNKNOWN}),
        ("GET", f"/api/tasks/{UNKNOWN}", None),
        ("GET", f"/api/tasks/{UNKNOWN}/messages", None),
        ("GET", f"/api/tasks/{UNKNOWN}/stream", None),
        ("GET", "/api/issues?workspace=elsewhere", None),
        ("GET", "/api/issues/a%00b", None),
        ("GET", "/api/nothing", None),
    ],
)
async def test_what_is_not_there_is_a_404(node: Node, method: str, path: str, body: object) -> None:
    """R4.6, R11.3"""
    await issue_for_nia(node)
    sentence = refused(await node.person.request(method, path, json=body), 404)
    assert "not found" in sentence.lower()


async def test_a_key_of_one_workspace_opens_no_other_of_its_person(node: Node) -> None:
    """Tenants: whose key it is decides, even for who belongs to both."""
    second = await add_workspace(node.database, "second")
    await node.database.pool.execute(
        "insert into understudy.members (workspace_id, user_id) values ($1, $2)",
        second.workspace_id,
        node.user.id,
    )
    assert (await node.person.get("/api/issues?workspace=second")).status_code == 404
    assert (await node.person.get("/api/issues")).status_code == 200


async def test_another_workspace_is_not_there(node: Node) -> None:
    """Tenants: whose key it is decides, whatever id is asked for."""
    database = node.database
    elsewhere = await _workspace_elsewhere(node)
    agent = await agents.create(database, elsewhere, CreateAgent(name="Zed", provider="scripted"))
    issue = await issues.create(database, elsewhere, None, CreateIssue(title="Secret"))
    task = (await issues.assign(database, elsewhere, issue.id, agent.id)).task
    machine = runtimes.Machine(elsewhere, "d", "d", None)
    offer = runtimes.Offer("scripted", "r", "", "1", "online", None)
    (runtime,) = (await runtimes.register(database, machine, [offer])).runtimes
    assert task is not None
    await issue_for_nia(node)
    asked = [
        await node.person.get(f"/api/issues/{issue.id}"),
        await node.person.patch(f"/api/issues/{issue.id}", json={"status": "done"}),
        await node.person.post(f"/api/issues/{issue.id}/assign", json={"agent": "nia"}),
        await node.person.post("/api/issues/UND-1/assign", json={"agent": str(agent.id)}),
        await node.person.post(f"/api/issues/{issue.id}/comments", json={"body": "x"}),
        await node.person.get(f"/api/tasks/{task.id}"),
        await node.person.get(f"/api/tasks/{task.id}/messages"),
        await node.person.get(f"/api/issues?workspace={elsewhere}"),
        await node.person.post(
            "/api/agents",
            json={"name": "x", "provider": "scripted", "runtime_id": str(runtime.id)},
        ),
        await node.machine.get(f"/api/daemon/tasks/{task.id}/status"),
        await node.machine.post(f"/api/daemon/tasks/{task.id}/start"),
        await node.machine.post(f"/api/daemon/runtimes/{runtime.id}/tasks/claim"),
        await node.machine.get(f"/api/daemon/runtimes/{runtime.id}/tasks/pending"),
        await node.machine.post("/api/daemon/heartbeat", json={"runtime_id": str(runtime.id)}),
    ]
    for answer in asked:
        refused(answer, 404)
    listed = (await node.person.get("/api/issues")).json()
    assert [each["title"] for each in listed] == ["A thing"]
    gone = {"runtime_ids": [str(runtime.id)]}
    assert (await node.machine.post("/api/daemon/deregister", json=gone)).status_code == 200
    row = await runtimes.find(database, runtime.id)
    assert row is not None
    assert row.status == "online"


async def _workspace_elsewhere(node: Node) -> Any:
    workspace_id = uuid4()
    await node.database.pool.execute(
        "insert into understudy.workspaces (id, slug, name) values ($1, 'elsewhere', 'Elsewhere')",
        workspace_id,
    )
    assert await people.find_workspace(node.database, workspace_id)
    return workspace_id


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 201),
        ("same", 201),
        ("https://evil.example", 403),
        ("null", 403),
        ("http://[", 403),
        ("", 403),
    ],
)
async def test_a_foreign_page_cannot_act_with_the_cookie(
    node: Node, origin: str | None, status: int
) -> None:
    """The browser sends the cookie along whoever made the form."""
    owner = tokens.Owner(user_id=node.user.id)
    session = await tokens.create(node.database, "session", owner, valid_s=60)
    headers = {"Cookie": f"{auth.COOKIE}={session}"}
    if origin is not None:
        headers["Origin"] = node.address if origin == "same" else origin
    answer = await node.stranger.post("/api/issues", json={"title": "x"}, headers=headers)
    assert answer.status_code == status, answer.text
    shown = await node.stranger.get("/api/issues", headers=headers)
    assert shown.status_code == 200


async def test_a_machines_key_opens_no_board_and_a_session_no_daemon_api(node: Node) -> None:
    for method, path in (
        ("GET", "/api/issues"),
        ("POST", "/api/issues"),
        ("POST", "/api/tokens"),
        ("GET", "/api/events"),
        ("GET", "/api/tree"),
    ):
        refused(await node.machine.request(method, path, json={"title": "x"}), 403)
    owner = tokens.Owner(user_id=node.user.id)
    session = await tokens.create(node.database, "session", owner, valid_s=60)
    headers = {"Authorization": f"Bearer {session}"}
    refused(await node.stranger.post("/api/daemon/heartbeat", json={}, headers=headers), 403)


async def test_a_login_code_works_once_even_for_two_at_the_same_time(node: Node) -> None:
    link = (await node.person.post("/api/login/links")).json()
    code = link["path"].rpartition("/")[2]
    statuses: list[int] = []

    async def redeem() -> None:
        answer = await node.stranger.post("/api/login", json={"code": code})
        statuses.append(answer.status_code)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(redeem)
    assert sorted(statuses) == [201] + [401] * 7


async def test_an_expired_code_opens_nothing(node: Node) -> None:
    owner = tokens.Owner(user_id=node.user.id)
    code = await tokens.create(node.database, "login", owner, valid_s=-1)
    refused(await node.stranger.post("/api/login", json={"code": code}), 401)
    followed = await node.stranger.get(f"/login/{code}")
    assert auth.COOKIE not in followed.cookies


async def test_other_keys_are_no_login_codes(node: Node) -> None:
    for key in (node.personal_key, node.daemon_key, "", "\U0001f600"):
        refused(await node.stranger.post("/api/login", json={"code": key}), 401)


async def test_an_oversized_body_is_a_413_on_every_route(node: Node) -> None:
    body = b'{"title": "' + b"x" * (17 * 1024 * 1024) + b'"}'
    for path in ("/api/issues", "/api/agents", "/api/login"):
        refused(await node.person.post(path, content=body), 413)


async def test_an_agents_name_is_taken_once_in_any_case(node: Node) -> None:
    await issue_for_nia(node)
    again = await node.person.post("/api/agents", json={"name": "NIA", "provider": "scripted"})
    assert "NIA" in refused(again, 409)


async def test_a_run_of_an_archived_agent_is_still_shown(node: Node) -> None:
    made = await issue_for_nia(node)
    await node.database.pool.execute("update understudy.agents set archived_at = now()")
    shown = await node.person.get(f"/api/tasks/{made['task']['id']}")
    assert shown.status_code == 200, shown.text
    assert shown.json()["agent"]["name"] == "Nia"
    issue = made["issue"]["key"]
    refused(await node.person.post(f"/api/issues/{issue}/assign", json={"agent": "nia"}), 404)


async def test_a_position_beyond_any_message_is_the_end(node: Node) -> None:
    made = await issue_for_nia(node)
    path = f"/api/tasks/{made['task']['id']}/messages"
    answer = await node.person.get(path, params={"after": 2**40})
    assert (answer.status_code, answer.json()) == (200, [])


async def test_usage_of_one_model_named_twice_counts_as_the_last(node: Node) -> None:
    """R6.7: a report that the database cannot take would be sent for ever."""
    made = await issue_for_nia(node)
    machine = runtimes.Machine(node.workspace.id, "d", "d", None)
    offer = runtimes.Offer("scripted", "r", "", "1", "online", None)
    (runtime,) = (await runtimes.register(node.database, machine, [offer])).runtimes
    (claim,) = (
        await claims.claim(node.database, runtime.id, slots=1, fence="full", claim_s=60)
    ).tasks
    holder = Holder(node.workspace.id, claim.id, claim.claim_token)
    rows = [Usage(provider="p", model="m", output_tokens=number) for number in (1, 2)]
    await tasks.report_usage(node.database, holder, rows)
    shown = (await node.person.get(f"/api/tasks/{made['task']['id']}")).json()
    assert [each["output_tokens"] for each in shown["usage"]] == [2]


NAMES = st.sampled_from(
    [
        "title",
        "description",
        "status",
        "priority",
        "repository",
        "agent",
        "body",
        "name",
        "provider",
        "runtime_id",
        "model",
        "custom_args",
        "custom_env",
        "mcp_config",
        "max_concurrent_tasks",
        "kind",
        "code",
        "workspace_id",
        "daemon_id",
        "device_name",
        "runtimes",
        "type",
        "version",
        "incarnation",
        "inventory",
        "running",
        "finished",
        "task_id",
        "claim_token",
        "runtime_ids",
        "messages",
        "seq",
        "content",
        "input",
        "output",
        "usage",
        "input_tokens",
        "error",
        "failure_reason",
        "session_id",
        "work_dir",
        "summary",
        "step",
        "total",
    ]
)
WORDS = st.sampled_from(["Nia", "UND-1", "scripted", "todo", "daemon", "text", UNKNOWN, "", "\x00"])
SCALARS = (
    st.none() | st.booleans() | st.integers() | WORDS | st.text(max_size=20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([2**31, 2**63, 2**64, -1, 10**30, 1e308, "x" * 5000, "\U0001f600" * 3000])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda each: st.lists(each, max_size=4) | st.dictionaries(NAMES | st.text(), each, max_size=6),
    max_leaves=12,
)
BODIES = st.one_of(
    st.dictionaries(NAMES, VALUES, max_size=8).map(lambda value: json.dumps(value).encode()),
    VALUES.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=40),
)


SUBJECTS = st.sampled_from([UNKNOWN, "task", "UND-1", "%00", "%F0%9F", "x" * 300])


def writing_routes(app: QuartTrio) -> list[tuple[str, str]]:
    return [
        (method, re.sub("<[^>]*>", "SUBJECT", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in sorted({"POST", "PATCH", "PUT", "DELETE"} & (rule.methods or set()))
        if rule.rule != "/logout"
    ]


@settings(max_examples=12, deadline=None)
@given(sent=st.lists(st.tuples(SUBJECTS, BODIES), min_size=5, max_size=100))
def test_no_body_on_any_route_is_a_500(dsn: str, sent: list[tuple[str, bytes]]) -> None:
    """R11.3: nothing bad in is a 500, and nothing hangs."""
    trio.run(send_everywhere, dsn, sent)


async def send_everywhere(dsn: str, sent: list[tuple[str, bytes]]) -> None:
    pool = Pool(partial(open_connection, dsn), size=2)
    async with pool.connection() as connection:
        await schema.bring_up(connection)
    async with open_node(dsn, Database(pool, SystemRandom())) as node:
        made = await issue_for_nia(node)
        routes = writing_routes(create_app(node.site))
        assert len(routes) > 15
        for (method, route), (subject, body) in zip(cycle(routes), sent, strict=False):
            path = route.replace("SUBJECT", made["task"]["id"] if subject == "task" else subject)
            client = node.machine if "/daemon/" in path else node.person
            with trio.fail_after(30):
                answer = await client.request(method, path, content=body)
            assert answer.status_code < 500, (method, path, body, answer.text)
            if answer.status_code >= 400:
                assert msgspec.json.decode(answer.content)["error"]
    await pool.aclose()


@pytest.mark.parametrize("text", ["long", "wide", "control"])
async def test_a_machines_longest_words_are_stored_or_refused(node: Node, text: str) -> None:
    """R6.8, R11.3: what an index cannot hold is refused at the door, not in the database."""
    dice = Random(3)
    word = {
        "long": "".join(dice.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(9000)),
        "wide": "".join(chr(dice.randrange(0x4E00, 0x9FFF)) for _ in range(9000)),
        "control": "\x00\x01\x7f\u2028" * 2000,
    }[text]
    body = {
        "workspace_id": str(node.workspace.id),
        "daemon_id": word,
        "device_name": word,
        "incarnation": word,
        "runtimes": [{"type": word, "name": word, "version": word, "problem": word}],
    }
    answer = await node.machine.post("/api/daemon/register", json=body)
    assert answer.status_code in {200, 400}, answer.text
    body |= {"daemon_id": "d", "runtimes": [{"type": "scripted", "name": word, "version": word}]}
    answer = await node.machine.post("/api/daemon/register", json=body)
    assert answer.status_code == 200, answer.text
    await issue_for_nia(node)
    runtime_id = answer.json()["runtimes"][0]["id"]
    claim = await node.machine.post(f"/api/daemon/runtimes/{runtime_id}/tasks/claim")
    task = claim.json()["task"]
    held = {"claim_token": task["claim_token"]}
    row = {"provider": word, "model": word, "input_tokens": 2**63 - 1}
    reports: list[tuple[str, dict[str, Any]]] = [
        ("start", {}),
        ("progress", {"summary": word, "step": 10**30, "total": -1}),
        ("messages", {"messages": [{"seq": 0, "type": "text", "content": word, "input": 10**30}]}),
        ("session", {"session_id": word, "work_dir": word}),
        ("usage", {"usage": [row]}),
        ("complete", {"output": word, "changes": {word: [word, 10**30, 1e300]}}),
    ]
    for verb, report in reports:
        path = f"/api/daemon/tasks/{task['id']}/{verb}"
        answer = await node.machine.post(path, json=held | report)
        assert answer.status_code in {200, 204, 400}, (verb, answer.text)
    shown = await node.person.get(f"/api/tasks/{task['id']}")
    assert shown.json()["task"]["status"] == "completed"
    for path in (f"/runs/{task['id']}", "/issues/UND-1", "/"):
        assert (await node.person.get(path)).status_code in {200, 303, 404}
