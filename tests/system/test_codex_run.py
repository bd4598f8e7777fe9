"""The real Codex, run by a whole daemon for a whole node; only its model is ours."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from understudy.testing import model_api
from understudy.testing.agent_clis import (
    Loopback,
    codex_settings,
    find_cli,
    open_loopback,
    write_entrance,
)
from understudy.testing.desk import Clone, Desk
from understudy.testing.machine import Machine, open_machine
from understudy.testing.model_api import Reply, Script, Text, ToolCall, serve_model
from understudy.testing.node import Node

CODEX = find_cli("codex")
pytestmark = pytest.mark.skipif(CODEX is None, reason="no codex on PATH or in .clis: make clis")
MODEL = "gpt-5.1-codex"
INSTRUCTIONS = "Be kind to whoever reads it."
RUN_S = 120


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """The daemon's environment is a person's on a machine of their own."""
    for name in os.environ:
        if name.startswith(("OPENAI_", "CODEX_")) or name.lower().endswith("_proxy"):
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
    write_entrance(str(CODEX), loopback, entrances)
    search_path = os.pathsep.join([str(entrances), os.environ["PATH"]])
    with open_machine(node, desk.directory / "daemon", search_path) as machine:
        yield machine


async def assign(machine: Machine, desk: Desk, user: Clone, loopback: Loopback) -> str:
    (desk.directory / "codex").mkdir()
    await machine.agent(
        "Cody",
        "codex",
        instructions=INSTRUCTIONS,
        model=MODEL,
        custom_args=codex_settings(model_api.address(loopback.listener)),
        custom_env={"CODEX_HOME": str(desk.directory / "codex"), "STUB_KEY": "none"},
    )
    return await machine.assign("cody", title="Greet warmly", repository=str(user.path))


def shell(command: str, call_id: str = "call_1") -> ToolCall:
    return ToolCall("exec_command", {"cmd": command}, id=call_id)


async def test_a_commit_a_transcript_a_bill_and_a_comment(
    machine: Machine, desk: Desk, user: Clone, loopback: Loopback, nursery: trio.Nursery
) -> None:
    """R5.8, R6.7, R8.5, R8.7, R10.3: the model falls silent until its session id is stored."""
    stored = trio.Event()
    commit = "echo hello, dear > greeting.txt; git commit --quiet --all -m Greet; echo committed"
    script = Script(
        [
            Reply((Text("I do it."), shell(commit)), input_tokens=100, output_tokens=20),
            Reply((Text("It greets warmly now."),), 140, 24, cache_read_tokens=7, held=stored),
        ]
    )
    nursery.start_soon(serve_model, script, loopback.listener)
    async with machine.daemon():
        task_id = await assign(machine, desk, user, loopback)
        shown = await machine.wait_task(task_id, lambda shown: shown["task"]["session_id"])
        assert shown["task"]["status"] == "running"
        stored.set()
        shown = await machine.wait_status(task_id, "completed")
    assert str(script.requests[0]).count(INSTRUCTIONS) == 1
    assert user.git("show", "understudy/cody/und-1:greeting.txt") == "hello, dear"
    assert shown["task"]["result"]["output"] == "It greets warmly now."
    assert shown["usage"] == [
        {
            "provider": "codex", "model": MODEL, "input_tokens": 240, "output_tokens": 44,
            "cache_read_tokens": 7, "cache_write_tokens": 0,
        }
    ]  # fmt: skip
    told = [each for each in await machine.messages(task_id) if each["tool"] != "notice"]
    assert [each["type"] for each in told] == ["text", "tool_use", "tool_result", "text"]
    assert told[2]["output"] == "committed\n"
    detail = await machine.get("/api/issues/UND-1")
    said = [(each["author_name"], each["body"]) for each in detail["comments"]]
    assert said == [("Cody", "It greets warmly now.")]


async def test_a_turn_goes_on_without_a_daemon_and_the_next_one_says_nothing_twice(
    machine: Machine, desk: Desk, user: Clone, loopback: Loopback, nursery: trio.Nursery
) -> None:
    """R8.1, R9.3: it ends while nobody listens; one process, one conversation, each frame once."""
    alone = trio.Event()
    script = Script(
        [
            Reply((Text("One."), shell("echo 1 > first.txt"))),
            Reply((Text("Two."), shell("echo 2 > second.txt", "call_2")), held=alone),
            Reply((Text("Three."),)),
        ]
    )
    nursery.start_soon(serve_model, script, loopback.listener)
    async with machine.daemon():
        task_id = await assign(machine, desk, user, loopback)
        with trio.fail_after(RUN_S):
            await script.wait_asked(2)
        await machine.wait_told(task_id, 3)
    [kept] = machine.kept()
    said = kept.frames()
    alone.set()
    with trio.fail_after(RUN_S):
        await script.wait_asked(3)
        while b"turn/completed" not in (kept.run_dir / "out").read_bytes():  # noqa: ASYNC110
            await trio.sleep(0.05)
    async with machine.daemon():
        shown = await machine.wait_status(task_id, "completed")
    assert len(script.requests) == 3
    methods = [json.loads(line).get("method") for frame in said for line in frame.splitlines()]
    assert methods == ["initialize", "initialized", "thread/start", "turn/start"]
    assert shown["task"]["result"]["output"] == "Three."
    told = [each for each in await machine.messages(task_id) if each["tool"] != "notice"]
    assert [each["content"] for each in told if each["type"] == "text"] == [
        "One.",
        "Two.",
        "Three.",
    ]
    [bill] = shown["usage"]
    assert (bill["input_tokens"], bill["output_tokens"]) == (30, 15)
