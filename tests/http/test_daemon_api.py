"""The daemon API over HTTP, on a whole node (spec sections 11 and 12)."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import httpx2
import pytest

from understudy.store import runtimes
from understudy.testing.node import Node


def ok(answer: httpx2.Response, status: int = 200) -> Any:
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content else None


async def register(node: Node, **more: object) -> Any:
    body = {
        "workspace_id": str(node.workspace.id),
        "daemon_id": " laptop-1 ",
        "device_name": "laptop",
        "cli_version": "0.1",
        "runtimes": [{"name": "", "type": "scripted", "version": "1.0", "status": "online"}],
    } | more
    return ok(await node.machine.post("/api/daemon/register", json=body))


async def queued(node: Node, title: str = "Write it down") -> Any:
    """An issue, assigned to Nia through the board's API."""
    await node.person.post("/api/agents", json={"name": "Nia", "provider": "scripted"})
    made = await node.person.post("/api/issues", json={"title": title, "agent": "nia"})
    return ok(made, 201)


async def claimed(node: Node) -> Any:
    registered = await register(node)
    await queued(node)
    runtime = registered["runtimes"][0]["id"]
    answer = ok(await node.machine.post(f"/api/daemon/runtimes/{runtime}/tasks/claim"))
    return answer["task"]


async def test_a_task_goes_through_its_whole_life(node: Node) -> None:
    task = await claimed(node)
    assert task["status"] == "dispatched"
    assert task["agent"]["name"] == "Nia"
    assert task["issue"]["key"] == "UND-1"
    token, path = task["claim_token"], f"/api/daemon/tasks/{task['id']}"
    held = {"claim_token": token}
    started = ok(await node.machine.post(f"{path}/start", json=held))
    assert started["status"] == "running"
    said = [{"seq": 0, "type": "text", "content": "Hello"}]
    ok(await node.machine.post(f"{path}/messages", json=held | {"messages": said}))
    ok(await node.machine.post(f"{path}/session", json=held | {"session_id": "s1"}), 204)
    spent = [{"provider": "scripted", "model": "m", "input_tokens": 5, "output_tokens": 7}]
    ok(await node.machine.post(f"{path}/usage", json=held | {"usage": spent}))
    ok(await node.machine.post(f"{path}/progress", json=held | {"summary": "half"}))
    done = ok(await node.machine.post(f"{path}/complete", json=held | {"output": "Done."}))
    assert done["status"] == "completed"
    assert (ok(await node.machine.get(f"{path}/status")))["status"] == "completed"
    shown = ok(await node.person.get(f"/api/tasks/{task['id']}"))
    assert shown["task"]["session_id"] == "s1"
    assert shown["usage"][0]["output_tokens"] == 7
    told = ok(await node.person.get(f"/api/tasks/{task['id']}/messages"))
    assert [each["content"] for each in told] == ["Hello"]


async def test_fail_says_why_and_is_idempotent(node: Node) -> None:
    """R3.7, R6.6"""
    task = await claimed(node)
    path = f"/api/daemon/tasks/{task['id']}/fail"
    body = {"claim_token": task["claim_token"], "error": "no", "failure_reason": "auth"}
    first = ok(await node.machine.post(path, json=body))
    again = ok(await node.machine.post(path, json=body))
    assert first == again
    assert (first["status"], first["failure_reason"]) == ("failed", "auth")


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"daemon_id": " "}, "daemon_id is required"),
        ({"workspace_id": ""}, "workspace_id is required"),
        ({"runtimes": []}, "at least one runtime is required"),
    ],
)
async def test_register_names_what_is_missing(
    node: Node, body: dict[str, Any], sentence: str
) -> None:
    """R11.3"""
    whole = {"workspace_id": str(node.workspace.id), "daemon_id": "d", "runtimes": [{}]}
    answer = await node.machine.post("/api/daemon/register", json=whole | body)
    assert answer.status_code == 400
    assert answer.json()["error"] == sentence


async def test_register_fills_in_the_defaults(node: Node) -> None:
    """Spec section 12, register in detail."""
    answer = await register(node, runtimes=[{"type": " ", "version": "2"}])
    assert answer["runtimes"][0]["provider"] == "unknown"
    (shown,) = (await node.person.get("/api/runtimes")).json()
    assert shown["daemon_id"] == "laptop-1"
    assert shown["name"] == "unknown (laptop)"
    assert shown["device_info"] == "laptop · 2"


async def test_a_foreign_workspace_is_not_found(node: Node) -> None:
    body = {"workspace_id": str(uuid4()), "daemon_id": "d", "runtimes": [{}]}
    answer = await node.machine.post("/api/daemon/register", json=body)
    assert (answer.status_code, answer.json()["error"]) == (404, "workspace not found")


@pytest.mark.parametrize(
    ("verb", "path", "status"),
    [
        ("POST", "/api/daemon/tasks/{id}/start", 404),
        ("POST", "/api/daemon/tasks/{id}/complete", 404),
        ("POST", "/api/daemon/tasks/{id}/fail", 404),
        ("POST", "/api/daemon/tasks/{id}/messages", 404),
        ("POST", "/api/daemon/tasks/{id}/usage", 404),
        ("GET", "/api/daemon/tasks/{id}/status", 404),
        ("POST", "/api/daemon/runtimes/{id}/tasks/claim", 404),
        ("GET", "/api/daemon/runtimes/{id}/tasks/pending", 404),
        ("GET", "/api/tasks/{id}", 404),
        ("GET", "/api/issues/{id}", 404),
        ("GET", "/api/nothing", 404),
        ("DELETE", "/api/issues", 405),
    ],
)
async def test_an_unknown_id_is_a_404_with_a_sentence(
    node: Node, verb: str, path: str, status: int
) -> None:
    """R4.6, R11.3"""
    client = node.machine if "daemon" in path else node.person
    answer = await client.request(verb, path.format(id=uuid4()))
    assert answer.status_code == status
    assert set(answer.json()) == {"error", "code"}


async def test_a_heartbeat_of_an_unknown_runtime_is_a_404(node: Node) -> None:
    answer = await node.machine.post("/api/daemon/heartbeat", json={"runtime_id": str(uuid4())})
    assert (answer.status_code, answer.json()["error"]) == (404, "runtime not found")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"{", "JSON"),
        (b"[]", "object"),
        (b"\xff\xfe", "JSON"),
        (b'{"claim_token": "no-uuid"}', "claim_token"),
        (b'{"claim_token": 5}', "claim_token"),
        (b'{"x": ' + b"[" * 100_000, "nested"),
        (b'{"claim_token": "\xff"}', "claim_token"),
    ],
)
async def test_a_malformed_body_is_a_400_that_names_the_field(
    node: Node, body: bytes, named: str
) -> None:
    """R3.5, R11.3: a malformed token is never treated as none."""
    task = await claimed(node)
    answer = await node.machine.post(f"/api/daemon/tasks/{task['id']}/start", content=body)
    assert answer.status_code == 400
    assert named.lower() in answer.json()["error"].lower()
    status = ok(await node.machine.get(f"/api/daemon/tasks/{task['id']}/status"))
    assert status["status"] == "dispatched"


async def test_a_malformed_id_is_a_400_because_404_would_stop_an_agent(node: Node) -> None:
    """R4.6"""
    answer = await node.machine.get("/api/daemon/tasks/no-id/status")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("key", [None, "usd_0000", "garbage"])
async def test_without_a_valid_key_nothing_is_said(node: Node, key: str | None) -> None:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    for path in ("/api/daemon/register", "/api/daemon/heartbeat", "/api/issues"):
        answer = await node.stranger.post(path, json={}, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


async def test_a_machine_key_opens_no_board(node: Node) -> None:
    answer = await node.machine.get("/api/issues")
    assert answer.status_code == 403


async def test_a_body_over_the_limit_is_a_413(node: Node) -> None:
    task = await claimed(node)
    body = b'{"output": "' + b"x" * (17 * 1024 * 1024) + b'"}'
    answer = await node.machine.post(f"/api/daemon/tasks/{task['id']}/complete", content=body)
    assert answer.status_code == 413


async def test_a_nul_byte_in_the_output_does_not_hold_the_task(node: Node) -> None:
    """R6.8; accident nul_byte"""
    task = await claimed(node)
    path, held = f"/api/daemon/tasks/{task['id']}", {"claim_token": task["claim_token"]}
    await node.machine.post(f"{path}/start", json=held)
    said = [{"seq": 0, "type": "tool_result", "output": "a\x00b", "input": {"k\x00": ["\x00"]}}]
    ok(await node.machine.post(f"{path}/messages", json=held | {"messages": said}))
    done = ok(await node.machine.post(f"{path}/complete", json=held | {"output": "a\x00b"}))
    assert done["result"]["output"] == "ab"


async def test_a_claimant_without_tokens_works_without(node: Node) -> None:
    """R3.6"""
    registered = await register(node)
    await queued(node)
    runtime = registered["runtimes"][0]["id"]
    plain = {"X-Client-Capabilities": ""}
    path = f"/api/daemon/runtimes/{runtime}/tasks/claim"
    task = (ok(await node.machine.post(path, headers=plain)))["task"]
    assert task["claim_token"] is None
    ok(await node.machine.post(f"/api/daemon/tasks/{task['id']}/start"))
    stale = {"claim_token": str(uuid4()), "output": "x"}
    refused = await node.machine.post(f"/api/daemon/tasks/{task['id']}/complete", json=stale)
    assert (refused.status_code, refused.json()["code"]) == (409, "fenced")


async def test_the_inventory_is_answered_task_by_task(node: Node) -> None:
    """R6.2"""
    task = await claimed(node)
    mine = {"task_id": task["id"], "claim_token": task["claim_token"]}
    stale = {"task_id": task["id"], "claim_token": str(uuid4())}
    gone = {"task_id": str(uuid4()), "claim_token": str(uuid4())}
    answer = await register(node, inventory={"running": [mine, gone], "finished": []})
    assert answer["verdicts"] == {task["id"]: "keep", gone["task_id"]: "stop"}
    answer = await register(node, inventory={"running": [stale], "finished": [gone]})
    assert answer["verdicts"] == {task["id"]: "stop", gone["task_id"]: "send"}


async def test_a_registration_that_was_broken_off_before_recovery_is_made_good_by_the_next(
    node: Node,
) -> None:
    """R6.1, R6.2: else what an earlier process had begun just before runs on for ever (seed
    500000186)."""
    task = await claimed(node)
    machine = runtimes.Machine(node.workspace.id, "laptop-1", "laptop", "the next")
    offer = runtimes.Offer("scripted", "scripted (laptop)", "laptop", "1.0", "online", None)
    await runtimes.register(node.database, machine, [offer])
    nothing: dict[str, list[str]] = {"running": [], "finished": []}
    registered = await register(node, incarnation="the next", inventory=nothing)
    lost = ok(await node.person.get(f"/api/tasks/{task['id']}"))["task"]
    assert (lost["status"], lost["move"]) == ("failed", "orphan")
    runtime = registered["runtimes"][0]["id"]
    heir = ok(await node.machine.post(f"/api/daemon/runtimes/{runtime}/tasks/claim"))["task"]
    await register(node, incarnation="the next", inventory=nothing)
    still = ok(await node.person.get(f"/api/tasks/{heir['id']}"))["task"]
    assert still["status"] == "dispatched"


async def test_people_see_that_an_agents_variable_is_set_and_not_to_what(node: Node) -> None:
    """R9.5: its value may be a key; only the run gets it."""
    body = {"name": "Nia", "provider": "scripted", "custom_env": {"API_KEY": "sk-very-secret"}}
    made = await node.person.post("/api/agents", json=body)
    task = await claimed(node)
    assert task["agent"]["custom_env"] == {"API_KEY": "sk-very-secret"}
    told = [made, await node.person.get("/api/agents")]
    told.append(await node.person.get(f"/api/tasks/{task['id']}"))
    assert all("API_KEY" in each.text and "sk-very-secret" not in each.text for each in told)


async def test_a_reason_of_another_daemons_own_does_not_keep_its_run_from_ending(
    node: Node,
) -> None:
    """R9.6, R11.1"""
    task = await claimed(node)
    body = {"claim_token": task["claim_token"], "error": "x", "failure_reason": "theirs"}
    ended = ok(await node.machine.post(f"/api/daemon/tasks/{task['id']}/fail", json=body))
    assert (ended["status"], ended["failure_reason"]) == ("failed", "unknown")


async def test_a_path_that_we_do_not_know_proves_no_absence(node: Node) -> None:
    """R4.6: a daemon stops its agent on `not_found`."""
    answer = await node.machine.post(f"/api/daemon/tasks/{uuid4()}/of-a-later-version")
    assert (answer.status_code, answer.json()["code"]) == (404, "no_such_path")
