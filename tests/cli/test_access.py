"""login, join and the file that remembers them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import trio
from click.testing import Result

from understudy.cli import confided
from understudy.testing.node import Node

Call: TypeAlias = Callable[..., Awaitable[Result]]
Ask: TypeAlias = Callable[..., Awaitable[Any]]


async def test_a_link_logs_another_command_line_in_once(
    ask: Ask, anywhere: Call, home: Path
) -> None:
    link = (await ask("login"))["url"]
    done = await anywhere("login", link)
    assert done.exit_code == 0, done.output
    assert "Logged in" in done.stdout
    assert (home / "credentials.json").stat().st_mode & 0o777 == 0o600
    assert (await anywhere("issue", "list")).exit_code == 0
    assert (await anywhere("login", link)).exit_code == 5
    assert (await anywhere("issue", "list")).exit_code == 0


@pytest.mark.parametrize("command", ["login", "join"])
async def test_a_link_is_read_from_stdin_out_of_sight(
    ask: Ask, anywhere: Call, home: Path, command: str
) -> None:
    """R9.5"""
    made = await ask(command)
    link = made.get("url") or made["link"]
    done = await anywhere(command, "-", stdin=f"{link}\n")
    assert done.exit_code == 0, done.output
    assert (home / "credentials.json").exists()
    assert link not in done.output


def test_at_a_terminal_a_link_is_asked_for_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """R9.5: what is typed there would stay in the window's memory."""
    unseen: list[str] = []

    def getpass(prompt: str, stream: object = None) -> str:
        unseen.append(prompt)
        return " http://board/login/x "

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("getpass.getpass", getpass)
    assert confided.given_link("-") == "http://board/login/x"
    assert len(unseen) == 1


async def test_a_machine_joins_and_its_daemon_comes_up_and_goes(
    node: Node, call: Call, ask: Ask, anywhere: Call, home: Path
) -> None:
    """R7.4"""
    printed = (await call("join")).stdout
    assert "understudy join http" in printed
    assert "No other machine reaches http://127.0.0.1" in printed
    link = (await ask("join"))["link"]
    joined = await anywhere("join", link, "--json")
    assert json.loads(joined.stdout)["workspace"]["id"] == str(node.workspace.id)
    assert (home / "credentials.json").stat().st_mode & 0o777 == 0o600
    assert (await anywhere("issue", "list")).exit_code == 5  # It is a machine's key, no person's.
    started = await trio.run_process(  # Not in this process, whose child it would be.
        [sys.executable, "-m", "understudy", "daemon", "start", "--json"],
        capture_stdout=True,
        env={**os.environ, "UNDERSTUDY_HOME": str(home)},
    )
    assert json.loads(started.stdout)["server"] == node.address
    try:
        assert (await anywhere("daemon", "start")).exit_code == 1
        status = json.loads((await anywhere("daemon", "status", "--json")).stdout)
        assert status["running"]
        assert status["server"] == node.address
        assert "It runs" in (await anywhere("daemon", "status")).stdout
    finally:
        stopped = await anywhere("daemon", "stop", "--json")
    assert json.loads(stopped.stdout) == {"stopped": True, "agents_going_on": 0}
    assert (await anywhere("daemon", "status")).exit_code == 1


async def test_to_join_keeps_the_login_and_to_log_in_keeps_the_machine(
    ask: Ask, anywhere: Call, home: Path
) -> None:
    await anywhere("login", (await ask("login"))["url"])
    await anywhere("join", (await ask("join"))["link"])
    await anywhere("login", (await ask("login"))["url"])
    known = json.loads((home / "credentials.json").read_text())
    assert known["machine"]["key"].startswith("usd_")
    assert known["key"].startswith("usp_")
