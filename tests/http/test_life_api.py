"""What issue 3 added to the API: cancel, rerun, comments, keys of agents, why, recovery, pings."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import httpx2
import pytest

from understudy.testing.node import Node
from understudy.wire.daemon import CALLS

HELD = ("lease", "start", "progress", "messages", "session", "usage", "complete", "fail", "stopped")


def ok(answer: httpx2.Response, status: int = 200) -> Any:
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content else None


async def register(node: Node, **more: object) -> str:
    body = {
        "workspace_id": str(node.workspace.id),
        "daemon_id": "laptop-1",
        "device_name": "laptop",
        "runtimes": [{"type": "scripted"}],
    } | more
    answer = ok(await node.machine.post("/api/daemon/register", json=body))
    runtime_id: str = answer["runtimes"][0]["id"]
    return runtime_id


async def queued(node: Node, title: str = "Write it down") -> Any:
    await node.person.post("/api/agents", json={"name": "Nia", "provider": "scripted"})
    made = await node.person.post("/api/issues", json={"title": title, "agent": "nia"})
    return ok(made, 201)["task"]


async def claim(node: Node, runtime_id: str) -> Any:
    path = f"/api/daemon/runtimes/{runtime_id}/tasks/claim"
    return ok(await node.machine.post(path))["task"]


async def tell(
    node: Node, task: Any, call: str, body: Any = None, **headers: str
) -> httpx2.Response:
    whole = {"claim_token": task["claim_token"]} | (body or {})
    path = f"/api/daemon/tasks/{task['id']}/{call}"
    return await node.machine.post(path, json=whole, headers=headers)


async def running(node: Node) -> Any:
    runtime_id = await register(node)
    await queued(node)
    task = await claim(node, runtime_id)
    ok(await tell(node, task, "start"))
    return task


async def test_a_cancellation_is_asked_for_then_confirmed(node: Node) -> None:
    """R7.1: the slot is free only once the machine has said that nothing is left."""
    task = await running(node)
    asked = ok(await node.person.post(f"/api/tasks/{task['id']}/cancel"), 202)
    assert asked["outcome"] == "requested"
    assert asked["task"]["status"] == "running"
    assert asked["task"]["cancel_requested_at"]
    told = ok(await node.machine.get(f"/api/daemon/tasks/{task['id']}/status"))
    assert told == {"status": "cancelled"}
    why = ok(await node.person.get(f"/api/tasks/{task['id']}/why"))
    assert why["sentence"].startswith("cancelling")
    beats = {"runtime_ids": [task["runtime_id"]]}
    heard = ok(await node.machine.post("/api/daemon/heartbeats", json=beats))
    assert [each["task_id"] for each in heard["cancelled"]] == [task["id"]]
    assert ok(await tell(node, task, "stopped"))["status"] == "cancelled"
    assert ok(await tell(node, task, "stopped"))["status"] == "cancelled"
    heard = ok(await node.machine.post("/api/daemon/heartbeats", json=beats))
    assert heard["cancelled"] == []
    again = ok(await node.person.post(f"/api/tasks/{task['id']}/cancel"))
    assert again["outcome"] == "replayed"


async def test_what_has_not_started_is_cancelled_at_once(node: Node) -> None:
    """R7.1: no agent runs before `start`; one that comes too late is refused."""
    runtime_id = await register(node)
    task = await queued(node)
    claimed = await claim(node, runtime_id)
    done = ok(await node.person.post(f"/api/tasks/{task['id']}/cancel"))
    assert (done["outcome"], done["task"]["status"]) == ("moved", "cancelled")
    assert (await tell(node, claimed, "start")).status_code == 409


async def test_what_has_ended_otherwise_is_not_cancelled(node: Node) -> None:
    task = await running(node)
    ok(await tell(node, task, "complete", {"output": "Done."}))
    answer = await node.person.post(f"/api/tasks/{task['id']}/cancel")
    assert (answer.status_code, answer.json()["code"]) == (409, "ended")


async def test_a_machine_or_an_agent_cancels_and_reruns_nothing(node: Node) -> None:
    task = await running(node)
    for key in (node.daemon_key, task["auth_token"]):
        headers = {"Authorization": f"Bearer {key}"}
        for path in (f"tasks/{task['id']}/cancel", "issues/UND-1/rerun", "issues/UND-1/cancel"):
            answer = await node.stranger.post(f"/api/{path}", json={}, headers=headers)
            assert answer.status_code == 403, path


async def test_cancelling_an_issue_stops_all_that_works_on_it(node: Node) -> None:
    task = await running(node)
    await node.person.post("/api/agents", json={"name": "Zed", "provider": "scripted"})
    ok(await node.person.post("/api/issues/UND-1/comments", json={"body": "@Zed help"}), 201)
    done = ok(await node.person.post("/api/issues/UND-1/cancel"))
    assert done["issue"]["status"] == "cancelled"
    assert sorted(each["outcome"] for each in done["tasks"]) == ["moved", "requested"]
    assert ok(await tell(node, task, "stopped"))["status"] == "cancelled"


async def test_a_rerun_cancels_what_runs_and_begins_anew(node: Node) -> None:
    """R7.6"""
    task = await running(node)
    new = ok(await node.person.post("/api/issues/UND-1/rerun", json={}), 202)
    assert (new["status"], new["trigger"], new["parent_task_id"]) == ("queued", "rerun", task["id"])
    why = ok(await node.person.get(f"/api/tasks/{new['id']}/why"))
    assert why["constraint"] == "issue_busy"
    assert await claim(node, task["runtime_id"]) is None
    ok(await tell(node, task, "stopped"))
    assert (await claim(node, task["runtime_id"]))["id"] == new["id"]


async def test_a_rerun_behind_what_runs_cancels_nothing(node: Node) -> None:
    """R7.6"""
    task = await running(node)
    ok(await node.person.post("/api/issues/UND-1/rerun", json={"after": True}), 202)
    assert ok(await tell(node, task, "complete", {"output": "x"}))["status"] == "completed"


@pytest.mark.parametrize(
    ("body", "status"), [({"task_id": str(uuid4())}, 404), ({"task_id": "x"}, 400), ({}, 404)]
)
async def test_a_rerun_of_nothing_says_so(node: Node, body: Any, status: int) -> None:
    ok(await node.person.post("/api/issues", json={"title": "Nobody's"}), 201)
    answer = await node.person.post("/api/issues/UND-1/rerun", json=body)
    assert answer.status_code == status


async def test_an_agent_reads_and_speaks_with_a_key_that_dies_with_its_claim(node: Node) -> None:
    """R9.5, R3.13: comments by the agent are fenced, too."""
    task = await running(node)
    headers = {"Authorization": f"Bearer {task['auth_token']}"}
    shown = await node.stranger.get("/api/issues/UND-1", headers=headers)
    assert ok(shown)["issue"]["title"] == "Write it down"
    path, said = "/api/issues/UND-1/comments", {"body": "Half way, @Nia."}
    made = ok(await node.stranger.post(path, json=said, headers=headers), 201)
    assert made["author_agent_id"] == task["agent_id"]
    assert made["called"] == [], "an agent that mentions itself starts nothing"
    ok(await tell(node, task, "complete", {"output": "Done."}))
    answer = await node.stranger.post(path, json=said, headers=headers)
    assert answer.status_code == 401
    comments = ok(await node.person.get("/api/issues/UND-1"))["comments"]
    assert [each["body"] for each in comments] == ["Half way, @Nia."], "R10.3: it has spoken"


@pytest.mark.parametrize("key", ["usa_", "usa_x", "usa_" + "0" * 96, "usa_" + "é" * 96])
async def test_a_made_up_agents_key_opens_nothing(node: Node, key: str) -> None:
    headers = {"Authorization": f"Bearer {key}".encode()}
    answer = await node.stranger.get("/api/issues", headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == 401


async def test_a_comment_tells_whom_it_called(node: Node) -> None:
    """R10.2"""
    await register(node)
    await queued(node)
    path = "/api/issues/UND-1/comments"
    joined = ok(await node.person.post(path, json={"body": "and @nia, tests!"}), 201)
    assert [(c["agent"], c["outcome"]) for c in joined["called"]] == [("Nia", "joined")]


async def test_the_claim_carries_all_that_was_said_to_the_agent(node: Node) -> None:
    """R10.2: at least once."""
    runtime_id = await register(node)
    await queued(node)
    for body in ("@Nia first", "@Nia second"):
        ok(await node.person.post("/api/issues/UND-1/comments", json={"body": body}), 201)
    told = (await claim(node, runtime_id))["trigger_comment_content"]
    assert "first" in told
    assert "second" in told


async def test_a_batch_claim_hands_over_up_to_the_free_slots(node: Node) -> None:
    """R3.11"""
    runtime_id = await register(node)
    for title in ("One", "Two", "Three"):
        await queued(node, title)
    body = {"runtime_ids": [runtime_id], "slots": 2}
    first = ok(await node.machine.post("/api/daemon/tasks/claim", json=body))
    assert len(first["tasks"]) == 2
    assert len(ok(await node.machine.post("/api/daemon/tasks/claim", json=body))["tasks"]) == 1


async def test_recovery_gives_up_what_was_in_flight_and_tries_it_again(node: Node) -> None:
    """R6.1"""
    task = await running(node)
    path = f"/api/daemon/runtimes/{task['runtime_id']}/recover-orphans"
    assert ok(await node.machine.post(path)) == {"orphaned": 1, "retried": 1}
    assert ok(await node.machine.post(path)) == {"orphaned": 0, "retried": 0}
    (new, old) = ok(await node.person.get("/api/issues/UND-1"))["tasks"]
    assert (old["failure_reason"], old["retry_task_id"]) == ("runtime_recovery", new["id"])
    assert (new["status"], new["attempt"]) == ("queued", 2)


async def test_a_new_process_gives_up_what_it_neither_runs_nor_has_finished(node: Node) -> None:
    """R6.2: and a known process that registers again gives up nothing that is just on its way."""
    one = {"incarnation": "one", "inventory": {"running": [], "finished": []}}
    runtime_id = await register(node, **one)
    await queued(node)
    task = await claim(node, runtime_id)
    await register(node, **one)
    assert ok(await tell(node, task, "start"))["status"] == "running"
    held = {"task_id": task["id"], "claim_token": task["claim_token"]}
    await register(node, incarnation="two", inventory={"running": [held]})
    assert ok(await node.person.get(f"/api/tasks/{task['id']}"))["task"]["status"] == "running"
    await register(node, incarnation="three", inventory={"finished": [held]})
    assert ok(await node.person.get(f"/api/tasks/{task['id']}"))["task"]["status"] == "running"
    await register(node, incarnation="four", inventory={"running": []})
    given_up = ok(await node.person.get(f"/api/tasks/{task['id']}"))["task"]
    assert given_up["failure_reason"] == "runtime_recovery"


async def test_a_run_to_be_stopped_holds_its_place_while_its_machine_comes_and_goes(
    node: Node,
) -> None:
    """R7.1: it is told to stop; only its word, or its silence, ends the run."""
    task = await running(node)
    ok(await node.person.post(f"/api/tasks/{task['id']}/cancel"), 202)
    held = {"task_id": task["id"], "claim_token": task["claim_token"]}
    await register(node, incarnation="two", inventory={"running": [held]})
    assert ok(await node.person.get(f"/api/tasks/{task['id']}"))["task"]["status"] == "running"
    assert ok(await tell(node, task, "stopped"))["status"] == "cancelled"


async def test_a_result_that_comes_late_counts_until_its_successor_starts(node: Node) -> None:
    """R6.5"""
    task = await running(node)
    path = f"/api/daemon/runtimes/{task['runtime_id']}/recover-orphans"
    ok(await node.machine.post(path))
    ok(
        await tell(
            node, task, "messages", {"messages": [{"seq": 0, "type": "text", "content": "x"}]}
        )
    )
    done = ok(await tell(node, task, "complete", {"output": "Late, but done."}))
    assert done["status"] == "completed"
    detail = ok(await node.person.get("/api/issues/UND-1"))
    assert [each["status"] for each in detail["tasks"]] == ["cancelled", "completed"]
    assert detail["tasks"][0]["failure_reason"] == "superseded"
    assert [each["body"] for each in detail["comments"]] == ["Late, but done."]
    assert detail["issue"]["status"] == "in_review"


@pytest.mark.parametrize("call", HELD)
@pytest.mark.parametrize("token", ["stale", "missing", "malformed"])
async def test_a_stale_write_changes_nothing(node: Node, call: str, token: str) -> None:
    """R3.13, for each call about a run and each claim that does not hold it."""
    runtime_id = await register(node)
    await queued(node)
    task = await claim(node, runtime_id)
    if call not in {"lease", "start"}:
        ok(await tell(node, task, "start"))
    if call == "stopped":
        ok(await node.person.post(f"/api/tasks/{task['id']}/cancel"), 202)
    before = await state(node)
    bodies: dict[str, Any] = {
        "messages": {"messages": [{"seq": 0, "type": "text", "content": "x"}]},
        "session": {"session_id": "zombie", "refused_session_id": "good"},
        "usage": {"usage": [{"provider": "p", "model": "m", "output_tokens": 1}]},
        "progress": {"summary": "zombie"},
        "complete": {"output": "zombie"},
        "fail": {"error": "zombie"},
    }
    claims = {"stale": str(uuid4()), "missing": None, "malformed": "not-a-token"}
    body = bodies.get(call, {}) | {"claim_token": claims[token]}
    answer = await node.machine.post(f"/api/daemon/tasks/{task['id']}/{call}", json=body)
    assert answer.status_code == (400 if token == "malformed" else 409), answer.text
    assert await state(node) == before


def test_every_call_about_a_run_is_in_that_test() -> None:
    """R3.13"""
    said = {name for name, shape in CALLS.items() if shape.subject == "task"} - {"status"}
    assert said == set(HELD)


async def state(node: Node) -> list[object]:
    tables = ("tasks", "issues", "comments", "task_messages", "usage", "refused_sessions", "events")
    return [
        await node.database.pool.fetchval(
            f"select coalesce(jsonb_agg(t order by t::text), '[]') from understudy.{table} t"
        )
        for table in tables
    ]


async def test_a_daemon_without_fenced_reports_may_tell_without_a_token(node: Node) -> None:
    """Spec section 12 gives progress, messages, session and usage none; a wrong one is refused."""
    old = {"X-Client-Capabilities": "claim-lease"}
    runtime_id = await register(node)
    await queued(node)
    path = f"/api/daemon/runtimes/{runtime_id}/tasks/claim"
    task = ok(await node.machine.post(path, headers=old))["task"]
    assert task["claim_token"]
    path = f"/api/daemon/tasks/{task['id']}"
    assert (await node.machine.post(f"{path}/start", json={})).status_code == 409
    ok(await tell(node, task, "start"))
    said = {"messages": [{"seq": 0, "type": "text", "content": "x"}]}
    ok(await node.machine.post(f"{path}/messages", json=said))
    wrong = said | {"claim_token": str(uuid4())}
    assert (await node.machine.post(f"{path}/messages", json=wrong)).status_code == 409
    assert (await node.machine.post(f"{path}/complete", json={"output": "x"})).status_code == 409


async def test_a_ping_travels_with_the_heartbeat_and_its_answer_is_timed(node: Node) -> None:
    """R4.12"""
    runtime_id = await register(node)
    path = f"/api/runtimes/{runtime_id}/pings"
    sent = ok(await node.person.post(path), 202)
    heard = ok(await node.machine.post("/api/daemon/heartbeat", json={"runtime_id": runtime_id}))
    assert heard == {
        "status": "ok",
        "pending_ping": {"id": sent["ping_id"], "runtime_id": runtime_id},
    }
    body = {"ping_id": sent["ping_id"]}
    ok(await node.machine.post(f"/api/daemon/runtimes/{runtime_id}/pong", json=body))
    shown = ok(await node.person.get(f"{path}/{sent['ping_id']}"))
    assert shown["is_answered"]
    assert shown["round_trip_s"] > 0
    assert (await node.person.get(f"{path}/{uuid4()}")).status_code == 404
    heard = ok(await node.machine.post("/api/daemon/heartbeat", json={"runtime_id": runtime_id}))
    assert heard == {"status": "ok"}


async def test_a_removed_runtime_is_gone_for_its_daemon_and_comes_back_by_registering(
    node: Node,
) -> None:
    """R4.7"""
    runtime_id = await register(node)
    ok(await node.person.delete(f"/api/runtimes/{runtime_id}"))
    assert ok(await node.person.get("/api/runtimes")) == []
    beat = {"runtime_id": runtime_id}
    assert (await node.machine.post("/api/daemon/heartbeat", json=beat)).status_code == 404
    beats = {"runtime_ids": [runtime_id]}
    heard = ok(await node.machine.post("/api/daemon/heartbeats", json=beats))
    assert heard["gone"] == [runtime_id]
    assert await register(node) == runtime_id
    assert ok(await node.machine.post("/api/daemon/heartbeat", json=beat))["status"] == "ok"


async def test_a_runtime_at_work_is_not_removed(node: Node) -> None:
    task = await running(node)
    answer = await node.person.delete(f"/api/runtimes/{task['runtime_id']}")
    assert (answer.status_code, answer.json()["code"]) == (409, "at_work")


async def test_a_clean_up_asks_how_the_issue_stands(node: Node) -> None:
    """Spec section 12"""
    task = await running(node)
    checked = ok(await node.machine.get(f"/api/daemon/issues/{task['issue_id']}/gc-check"))
    assert checked["status"] == "in_progress"
    assert checked["updated_at"]
    answer = await node.machine.get(f"/api/daemon/issues/{uuid4()}/gc-check")
    assert (answer.status_code, answer.json()["error"]) == (404, "issue not found")
    path = f"/api/daemon/workspaces/{node.workspace.id}/repos"
    assert ok(await node.machine.get(path))["repos"] == []


async def test_an_operator_sweeps_at_once_and_sees_what_sweeps_did(node: Node) -> None:
    swept = ok(await node.person.post("/api/sweeps/expire"))
    assert (swept["name"], swept["last_rows"]) == ("expire", 0)
    found = ok(await node.person.get("/api/sweeps"))
    names = ["offline", "lose", "time_out", "expire", "promote", "retire", "prune"]
    assert [each["name"] for each in found] == names
    answer = await node.person.post("/api/sweeps/chimney")
    assert (answer.status_code, answer.json()["error"]) == (404, "sweep chimney not found")
    assert (await node.machine.get("/api/sweeps")).status_code == 403


async def test_every_active_task_says_why(node: Node) -> None:
    """R10.4"""
    await queued(node)
    (task,) = ok(await node.person.get("/api/tasks"))
    path = f"/api/tasks/{task['id']}"
    assert ok(await node.person.get(f"{path}/why"))["constraint"] == "no_runtime"
    runtime_id = await register(node)
    assert ok(await node.person.get(path))["why"]["constraint"] in {"handing_over", "not_connected"}
    claimed = await claim(node, runtime_id)
    assert ok(await node.person.get(f"{path}/why"))["constraint"] == "preparing"
    ok(await tell(node, claimed, "start"))
    assert ok(await node.person.get(f"{path}/why"))["constraint"] == "working"
    ok(await tell(node, claimed, "fail", {"error": "no key\nat all", "failure_reason": "auth"}))
    why = ok(await node.person.get(f"{path}/why"))
    assert why["sentence"] == "failed: auth: no key"
    assert why["constraint"] is None
