"""The real Claude Code, run by a whole daemon for a whole node; only its model is ours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from understudy.testing import model_api
from understudy.testing.agent_clis import Loopback, find_cli, open_loopback, write_entrance
from understudy.testing.desk import Clone, Desk
from understudy.testing.machine import Machine, open_machine
from understudy.testing.model_api import Refusal, Reply, Script, Text, ToolCall, serve_model
from understudy.testing.node import Node

CLAUDE = find_cli("claude")
pytestmark = pytest.mark.skipif(CLAUDE is None, reason="no claude on PATH or in .clis: make clis")
MODEL = "claude-opus-4-8"
INSTRUCTIONS = "Be kind to whoever reads it."
RUN_S = 120


@dataclass(frozen=True)
class Lab:
    """Ada's repository, a machine with Claude Code on it, and the model that it asks."""

    desk: Desk
    user: Clone
    machine: Machine
    loopback: Loopback
    nursery: trio.Nursery

    def serve(self, *steps: model_api.Step) -> Script:
        script = Script(steps)
        self.nursery.start_soon(serve_model, script, self.loopback.listener)
        return script

    async def assign(self) -> str:
        env = {
            "CLAUDE_CONFIG_DIR": str(self.desk.directory / "claude"),
            "ANTHROPIC_BASE_URL": model_api.address(self.loopback.listener),
            "ANTHROPIC_API_KEY": "none",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_TELEMETRY": "1",
            "DISABLE_ERROR_REPORTING": "1",
            "CLAUDE_CODE_MAX_RETRIES": "0",
        }
        await self.machine.agent(
            "Cleo", "claude", instructions=INSTRUCTIONS, model=MODEL, custom_env=env
        )
        repository = str(self.user.path)
        return await self.machine.assign("cleo", title="Greet warmly", repository=repository)

    async def issue(self) -> Any:
        return await self.machine.get("/api/issues/UND-1")


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
def lab(node: Node, desk: Desk, loopback: Loopback, nursery: trio.Nursery) -> Iterator[Lab]:
    entrances = desk.directory / "bin"
    entrances.mkdir()
    write_entrance(str(CLAUDE), loopback, entrances)
    user = desk.repository()
    user.commit("greeting.txt", "hello\n")
    search_path = os.pathsep.join([str(entrances), os.environ["PATH"]])
    with open_machine(node, desk.directory / "daemon", search_path) as machine:
        yield Lab(desk, user, machine, loopback, nursery)


def reads(name: str) -> ToolCall:
    return ToolCall("Read", {"file_path": name}, id=f"toolu_read_{name}")


def edits(name: str, old: str, new: str) -> ToolCall:
    given = {"file_path": name, "old_string": old, "new_string": new}
    return ToolCall("Edit", given, id=f"toolu_edit_{name}")


def writes(name: str, text: str) -> ToolCall:
    return ToolCall("Write", {"file_path": name, "content": text}, id=f"toolu_write_{name}")


def shell(command: str) -> ToolCall:
    return ToolCall("Bash", {"command": command, "description": "Run it"}, id="toolu_bash")


async def test_an_edit_becomes_a_commit_a_transcript_a_bill_and_a_comment(lab: Lab) -> None:
    """R5.8, R6.7, R8.5, R8.7, R10.3: the model falls silent until its session id is stored."""
    stored = trio.Event()
    commit = "git commit --quiet --all --message='Greet warmly' && echo committed"
    script = lab.serve(
        Reply((Text("I look at it."), reads("greeting.txt")), input_tokens=100, output_tokens=20),
        Reply((edits("greeting.txt", "hello", "hello, dear"),), 110, 21, cache_read_tokens=7),
        Reply((shell(commit),), 120, 22),
        Reply((writes("notes.txt", "for later\n"),), 130, 23, cache_write_tokens=3),
        Reply((Text("It greets warmly now."),), 140, 24, held=stored),
    )
    async with lab.machine.daemon():
        task_id = await lab.assign()
        shown = await lab.machine.wait_task(task_id, lambda shown: shown["task"]["session_id"])
        assert shown["task"]["status"] == "running"
        session_id, work = (
            shown["task"]["session_id"],
            lab.desk.clone(Path(shown["task"]["work_dir"])),
        )
        stored.set()
        shown = await lab.machine.wait_status(task_id, "completed")

    assert str(script.requests[0]).count(INSTRUCTIONS) == 1
    assert shown["task"]["session_id"] == session_id
    assert lab.user.git("show", "understudy/cleo/und-1:greeting.txt") == "hello, dear"
    assert (lab.user.path / "greeting.txt").read_text() == "hello\n"
    assert work.git("status", "--porcelain") == "?? notes.txt"
    assert shown["task"]["result"] == {
        "output": "It greets warmly now.",
        "branch_name": "understudy/cleo/und-1",
        "changes": {
            "commits": 1, "files": 1, "insertions": 1, "deletions": 1, "uncommitted": 1
        },
    }  # fmt: skip
    assert shown["usage"] == [
        {
            "provider": "claude", "model": MODEL, "input_tokens": 600, "output_tokens": 110,
            "cache_read_tokens": 7, "cache_write_tokens": 3,
        }
    ]  # fmt: skip
    detail = await lab.issue()
    assert detail["issue"]["status"] == "in_review"
    said = [(each["author_name"], each["body"]) for each in detail["comments"]]
    assert said == [("Cleo", "It greets warmly now.")]
    check_transcript(await lab.machine.messages(task_id))


def check_transcript(told: list[Any]) -> None:
    assert [each["seq"] for each in told] == list(range(10))
    assert [told[0]["content"], told[-1]["content"]] == ["I look at it.", "It greets warmly now."]
    calls = [each for each in told if each["type"] == "tool_use"]
    assert [each["tool"] for each in calls] == ["Read", "Edit", "Bash", "Write"]
    edit, write = calls[1]["input"], calls[3]["input"]
    assert (edit["old_string"], edit["new_string"]) == ("hello", "hello, dear")
    assert (write["file_path"], write["content"]) == ("notes.txt", "for later\n")
    results = [each for each in told if each["type"] == "tool_result"]
    assert [each["content"] for each in results] == [each["content"] for each in calls]
    assert results[2]["output"] == "committed"


async def test_a_key_that_is_refused_fails_the_task_in_words_that_name_it(lab: Lab) -> None:
    """R5.2, R5.11: nobody tries again with the same key."""
    script = lab.serve(Refusal(401, "authentication_error", "invalid x-api-key"))
    async with lab.machine.daemon():
        task_id = await lab.assign()
        shown = await lab.machine.wait_status(task_id, "failed")
    assert shown["task"]["failure_reason"] == "auth"
    assert "Invalid API key" in shown["task"]["error"]
    assert len(script.requests) == 1
    detail = await lab.issue()
    assert (detail["issue"]["status"], detail["comments"]) == ("todo", [])
    assert len(detail["tasks"]) == 1
    told = await lab.machine.messages(task_id)
    assert [each["tool"] for each in told] == ["notice"], "none of it is the agent's own"


async def test_an_agent_works_on_without_a_daemon_and_the_next_one_tells_all(lab: Lab) -> None:
    """R7.4, R8.1: one process, one conversation, each message once."""
    alone, followed = trio.Event(), trio.Event()
    script = lab.serve(
        Reply((Text("One."), writes("first.txt", "1\n")), input_tokens=10, output_tokens=1),
        Reply((Text("Two."), writes("second.txt", "2\n")), 20, 2, held=alone),
        Reply((Text("Three."),), 30, 3, held=followed),
    )
    async with lab.machine.daemon():
        task_id = await lab.assign()
        shown = await lab.machine.wait_task(task_id, lambda shown: shown["task"]["session_id"])
        await lab.machine.wait_told(task_id, 3)
        with trio.fail_after(RUN_S):
            await script.wait_asked(2)
    [kept] = lab.machine.kept()
    agent = kept.state()
    alone.set()
    with trio.fail_after(RUN_S):
        await script.wait_asked(3)
    assert (Path(shown["task"]["work_dir"]) / "second.txt").read_text() == "2\n"
    async with lab.machine.daemon():
        await lab.machine.wait_told(task_id, 6)
        assert kept.state() == agent
        followed.set()
        shown = await lab.machine.wait_status(task_id, "completed")
    assert len(script.requests) == 3
    told = await lab.machine.messages(task_id)
    assert [each["seq"] for each in told] == list(range(7))
    assert [e["content"] for e in told if e["type"] == "text"] == ["One.", "Two.", "Three."]
    assert [each["type"] for each in told].count("tool_use") == 2
    [bill] = shown["usage"]
    assert (bill["input_tokens"], bill["output_tokens"]) == (60, 6)
    assert len((await lab.issue())["comments"]) == 1
