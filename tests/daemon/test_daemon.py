"""A whole daemon against a whole node, in one process: the slice from assignment to comment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio

from understudy.config import DaemonConfig
from understudy.core.tree import Branch
from understudy.daemon.main import run_daemon
from understudy.testing.node import Node


def config(node: Node, path: Path) -> DaemonConfig:
    return DaemonConfig(path, node.address, node.daemon_key, str(node.workspace.id))


async def wait_for(node: Node, task_id: str, status: str) -> Any:
    with trio.fail_after(20):
        while True:
            shown = (await node.person.get(f"/api/tasks/{task_id}")).json()
            if shown["task"]["status"] == status:
                return shown
            await trio.sleep(0.05)


async def test_an_assigned_issue_is_worked_on_and_comes_back_with_a_comment(
    node: Node, tmp_path: Path, nursery: trio.Nursery
) -> None:
    nursery.start_soon(run_daemon, config(node, tmp_path / "daemon"), Branch("daemon"))
    body = {"name": "Nia", "provider": "scripted", "custom_args": ["--step-s", "0.05"]}
    await node.person.post("/api/agents", json=body)
    made = await node.person.post("/api/issues", json={"title": "Write it", "agent": "nia"})
    shown = await wait_for(node, made.json()["task"]["id"], "completed")
    assert shown["task"]["session_id"]
    told = (await node.person.get(f"/api/tasks/{shown['task']['id']}/messages")).json()
    assert {each["type"] for each in told} >= {"text", "tool_use", "tool_result"}
    assert [each["seq"] for each in told] == list(range(len(told)))
    assert {each["tool"] for each in told if each["type"] == "tool_result"} == {"write", "edit"}
    detail = (await node.person.get("/api/issues/UND-1")).json()
    assert detail["issue"]["status"] == "in_review"
    assert detail["comments"][0]["author_name"] == "Nia"
    nursery.cancel_scope.cancel()
