"""Every command, as text for people and as JSON for scripts (R11.5)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import trio
from click.testing import Result

from understudy.config import DaemonConfig
from understudy.core.tree import Branch
from understudy.daemon.main import run_daemon
from understudy.store import agents
from understudy.testing.node import Node

Call: TypeAlias = Callable[..., Awaitable[Result]]
Ask: TypeAlias = Callable[..., Awaitable[Any]]
Tell: TypeAlias = Callable[..., Awaitable[str]]

SCRIPTED = ("--provider", "scripted", "--", "--step-s", "0.02")


async def open_daemon(node: Node, path: Path, nursery: trio.Nursery) -> None:
    config = DaemonConfig(path / "daemon", node.address, node.daemon_key, str(node.workspace.id))
    nursery.start_soon(run_daemon, config, Branch("daemon"))


def test_help_imports_nothing_that_is_slow() -> None:
    program = (
        "import sys; from understudy.cli.main import cli\n"
        "try: cli(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('trio', 'httpx2', 'rich', 'msgspec', 'quart') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.decode().splitlines()[-1] == "[]"
    assert b"issue" in done.stdout


async def test_what_is_not_there_yet_is_said_with_what_to_do(tell: Tell, ask: Ask) -> None:
    for command in ("issue", "task", "agent", "runtime"):
        assert "No " in await tell(command, "list")
        assert await ask(command, "list") == []


async def test_version(anywhere: Call) -> None:
    assert (await anywhere("version")).stdout.startswith("understudy ")
    assert json.loads((await anywhere("version", "--json")).stdout)["version"]


async def test_agents_are_made_and_listed(tell: Tell, ask: Ask) -> None:
    assert "Nia works with scripted." in await tell("agent", "create", "Nia", *SCRIPTED)
    made = await ask(
        "agent", "create", "Bo", "--provider", "command", "--env", "A=b=c", "--model", "m", "lint"
    )
    assert (made["custom_env"], made["model"]) == ({"A": "•••"}, "m")
    assert [each["name"] for each in await ask("agent", "list")] == ["Bo", "Nia"]
    assert "--step-s 0.02" in await tell("agent", "list")


async def test_variables_of_an_agent_need_not_be_typed(
    node: Node, call: Call, tmp_path: Path
) -> None:
    """R9.5: from our own environment, from files, from stdin; what is typed counts."""
    file = tmp_path / "env"
    file.write_text("# keys\n\nFORGE=x y='z' \n  SHOP=file\nTYPED=file\n")
    create = ("agent", "create", "Nia", "--provider", "scripted")
    given = ("--env", "OURS", "--env", "TYPED=typed", "--env-file", str(file), "--env-file", "-")
    made = await call(*create, *given, stdin="SHOP=stdin\nOURS_TOO\n", OURS="1", OURS_TOO="2")
    assert made.exit_code == 0, made.output
    (agent,) = await agents.of_workspace(node.database, node.workspace.id)
    assert agent.custom_env == {
        "FORGE": "x y='z' ", "SHOP": "stdin", "TYPED": "typed", "OURS": "1", "OURS_TOO": "2",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--env", "NOT_SET"), "--env NOT_SET: neither"),
        (("--env", "=hunter2"), "neither NAME=VALUE nor"),
        (("--env-file", "/nowhere"), "--env-file /nowhere: "),
        (("--env-file", "-"), "--env-file -, line 2: neither"),
    ],
)
async def test_a_variable_that_cannot_be_had_is_named_before_anything_is_made(
    call: Call, ask: Ask, given: tuple[str, ...], told: str
) -> None:
    done = await call(
        "agent", "create", "Nia", "--provider", "scripted", *given, stdin="A=1\nhunter2"
    )
    assert (done.exit_code, told in done.stderr) == (2, True)
    assert "hunter2" not in done.output
    assert await ask("agent", "list") == []


async def test_an_issue_from_the_board_to_its_agent(tell: Tell, ask: Ask, call: Call) -> None:
    """R10.1"""
    await tell("agent", "create", "Nia", *SCRIPTED)
    assert "UND-1 is on the board." in await tell("issue", "create", "One", "--priority", "high")
    assert (await ask("issue", "list"))[0]["priority"] == 3
    later = await ask("issue", "create", "Two", "--status", "backlog", "--agent", "nia")
    assert (later["outcome"], later["task"]) == ("assigned", None)
    assert "is queued" in await tell("issue", "assign", "UND-1", "Nia")
    assert "was started" in await tell("issue", "assign", "UND-1", "Nia")
    assert "UND-2 is todo." in await tell("issue", "move", "UND-2", "todo")
    assert len((await ask("issue", "show", "UND-2"))["tasks"]) == 1
    listed = await tell("issue", "list")
    assert "UND-1" in listed
    assert "Nia" in listed
    shown = await tell("issue", "show", "UND-1")
    assert "One" in shown
    assert "queued" in shown


async def test_a_description_comes_from_stdin_and_a_repository_becomes_absolute(
    node: Node, tmp_path: Path
) -> None:
    done = await trio.run_process(
        [sys.executable, "-m", "understudy", "issue", "create", "T", "-d", "-", "--repository", ".",
         "--json"],
        stdin=b"from a pipe",
        capture_stdout=True,
        cwd=tmp_path,
        env={"UNDERSTUDY_SERVER": node.address, "UNDERSTUDY_TOKEN": node.personal_key},
    )  # fmt: skip
    made = json.loads(done.stdout)["issue"]
    assert (made["description"], made["repository"]) == ("from a pipe", str(tmp_path))


async def test_a_run_is_watched_to_its_end_and_shown(
    node: Node, tmp_path: Path, nursery: trio.Nursery, tell: Tell, ask: Ask
) -> None:
    await open_daemon(node, tmp_path, nursery)
    await tell("agent", "create", "Nia", *SCRIPTED)
    task = (await ask("issue", "create", "One", "--agent", "Nia"))["task"]["id"]
    watched = await tell("issue", "watch", "UND-1")
    assert "▸ write" in watched
    assert watched.rstrip().endswith("completed")
    followed = await tell("task", "logs", "--follow", task)
    assert followed == watched
    assert watched.startswith(await tell("task", "logs", task))
    shown = await tell("task", "show", task)
    assert "completed" in shown
    assert "script: 720 in, 240 out" in shown
    assert (await ask("task", "show", task))["task"]["attempt"] == 1
    assert "completed" in await tell("task", "list")
    assert [each["id"] for each in await ask("task", "list")] == [task]
    assert "see notes/UND-1.md" in await tell("issue", "show", "UND-1")
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("command", [("issue", "watch", "UND-1"), ("issue", "create", "--watch")])
async def test_the_exit_code_of_a_watch_is_how_the_run_ended(
    node: Node, tmp_path: Path, nursery: trio.Nursery, call: Call, command: tuple[str, ...]
) -> None:
    """R11.5"""
    await open_daemon(node, tmp_path, nursery)
    await call("agent", "create", "Al", *SCRIPTED, "--fail", "auth")
    if "create" in command:
        done = await call("issue", "create", "One", "--agent", "Al", "--watch", "--json")
    else:
        await call("issue", "create", "One", "--agent", "Al")
        done = await call(*command, "--json")
    assert done.exit_code == 10
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["status"], last["failure_reason"]) == ("failed", "auth")
    nursery.cancel_scope.cancel()


async def test_machines_and_actors_are_shown(
    node: Node, tmp_path: Path, nursery: trio.Nursery, tell: Tell, ask: Ask
) -> None:
    await open_daemon(node, tmp_path, nursery)
    with trio.fail_after(30):
        found: list[Any] = []
        while not found:
            found = await ask("runtime", "list")
    assert "scripted" in {each["provider"] for each in found}
    assert "online" in await tell("runtime", "list")
    assert "runtimes" in await tell("tree")
    assert (await ask("tree"))["name"] == "server"
    nursery.cancel_scope.cancel()
