"""A real agent over the Agent Client Protocol, run by a whole daemon for a whole node: Claude Code
behind its adapter; only its model is ours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from understudy.testing import model_api
from understudy.testing.agent_clis import Loopback, find_cli, open_loopback, write_entrance
from understudy.testing.desk import Clone, Desk
from understudy.testing.machine import Machine, open_machine
from understudy.testing.model_api import Reply, Script, Text, ToolCall, serve_model
from understudy.testing.node import Node

ADAPTER, CLAUDE = find_cli("claude-agent-acp"), find_cli("claude")
pytestmark = pytest.mark.skipif(
    ADAPTER is None or CLAUDE is None,
    reason="no claude-agent-acp, or no claude, on PATH or in .clis: make clis",
)
INSTRUCTIONS = "Be kind to whoever reads it."
ASKED = b"session/request_permission"
RUN_S = 120


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """The daemon's environment is a person's on a machine of their own."""
    for name in os.environ:
        if name.startswith(("ANTHROPIC_", "CLAUDE")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    desk = Desk(tmp_path)
    monkeypatch.setenv("HOME", desk.env["HOME"])
    return desk


@pytest.fixture
def loopback() -> Iterator[Loopback]:
    with open_loopback() as loopback:
        yield loopback


@pytest.fixture
def user(desk: Desk) -> Clone:
    user = desk.repository()
    user.commit("greeting.txt", "hello\n")
    return user


@pytest.fixture
def machine(node: Node, desk: Desk, loopback: Loopback) -> Iterator[Machine]:
    entrances = desk.directory / "bin"
    entrances.mkdir()
    write_entrance(str(ADAPTER), loopback, entrances)
    search_path = os.pathsep.join([str(entrances), os.environ["PATH"]])
    with open_machine(node, desk.directory / "daemon", search_path) as machine:
        yield machine


async def assign(machine: Machine, desk: Desk, user: Clone, loopback: Loopback) -> str:
    """To an agent that asks before it does anything."""
    config = desk.directory / "claude"
    config.mkdir()
    never = '{"permissions": {"disableBypassPermissionsMode": "disable"}}'
    (config / "settings.json").write_text(never)
    env = {
        "CLAUDE_CONFIG_DIR": str(config),
        "CLAUDE_CODE_EXECUTABLE": str(CLAUDE),
        "ANTHROPIC_BASE_URL": model_api.address(loopback.listener),
        "ANTHROPIC_API_KEY": "none",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_RETRIES": "0",
        "CLAUDE_CODE_ENABLE_PROMPT_SUGGESTION": "0",
    }
    await machine.agent(
        "Ace",
        "acp",
        instructions=INSTRUCTIONS,
        custom_args=["claude-agent-acp"],
        custom_env=env,
    )
    return await machine.assign("ace", title="Greet warmly", repository=str(user.path))


def shell(command: str, call_id: str = "toolu_1") -> ToolCall:
    return ToolCall("Bash", {"command": command, "description": "Run it"}, id=call_id)


async def test_what_it_asks_while_nobody_is_there_the_next_daemon_grants(
    machine: Machine, desk: Desk, user: Clone, loopback: Loopback, nursery: trio.Nursery
) -> None:
    """R8.1, R8.7, R10.3: one process, one conversation, one commit."""
    alone = trio.Event()
    commit = "echo hello, dear > greeting.txt && git commit --quiet --all --message=Greet"
    script = Script(
        [
            Reply((Text("One."), shell("echo 1 > first.txt")), 100, 20),
            Reply((Text("Two."), shell(commit, "toolu_2")), 110, 21, held=alone),
            Reply((Text("It greets warmly now."),), 120, 22),
        ]
    )
    nursery.start_soon(serve_model, script, loopback.listener)
    async with machine.daemon():
        task_id = await assign(machine, desk, user, loopback)
        with trio.fail_after(RUN_S):
            await script.wait_asked(2)
        await machine.wait_told(task_id, 3)
    [kept] = machine.kept()
    spool = kept.run_dir / "out"
    assert spool.read_bytes().count(ASKED) == 1
    alone.set()
    with trio.fail_after(RUN_S):
        while spool.read_bytes().count(ASKED) < 2:  # noqa: ASYNC110  A file sends no event.
            await trio.sleep(0.05)
    async with machine.daemon():
        shown = await machine.wait_status(task_id, "completed")
    assert len(script.requests) == 3
    assert str(script.requests[0]).count(INSTRUCTIONS) == 1
    assert user.git("show", "understudy/ace/und-1:greeting.txt") == "hello, dear"
    assert shown["task"]["result"]["output"] == "It greets warmly now."
    told = await machine.messages(task_id)
    assert [each["type"] for each in told] == [
        "text", "tool_use", "tool_result", "text", "tool_use", "tool_result", "text"
    ]  # fmt: skip
    [bill] = shown["usage"]
    assert (bill["provider"], bill["input_tokens"], bill["output_tokens"]) == ("acp", 330, 63)
    detail = await machine.get("/api/issues/UND-1")
    assert [each["body"] for each in detail["comments"]] == ["It greets warmly now."]
