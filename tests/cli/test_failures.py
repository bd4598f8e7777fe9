"""Exit codes are the failure classes (R11.5), each with one sentence on stderr."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import pytest
from click.testing import Result

from understudy.cli.client import AWAY, CONFLICT, FAILED, FORBIDDEN, NOT_FOUND, USAGE
from understudy.testing.node import Node

Call: TypeAlias = Callable[..., Awaitable[Result]]
NOBODY = "00000000-0000-0000-0000-000000000000"


def check(done: Result, code: int, *words: str) -> None:
    assert done.exit_code == code, done.output
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("issue", "create"), "TITLE"),
        (("issue", "create", "T", "--priority", "soon"), "soon"),
        (("issue", "create", ""), "title"),
        (("issue", "move", "UND-1", "later"), "later"),
        (("agent", "create", "N"), "--provider"),
        (("agent", "create", "N", "--provider", "scripted", "--env", "A"), "NAME=VALUE"),
        (("task", "show", "x"), "task_id"),
        (("nothing",), "nothing"),
    ],
)
async def test_what_cannot_be_meant_is_2(call: Call, arguments: tuple[str, ...], word: str) -> None:
    check(await call(*arguments), USAGE, word)


@pytest.mark.parametrize(
    "arguments",
    [
        ("issue", "show", "UND-9"),
        ("issue", "watch", "UND-9"),
        ("issue", "assign", "UND-9", "Nia"),
        ("issue", "move", "UND-9", "done"),
        ("issue", "create", "T", "--agent", "Nobody"),
        ("task", "show", NOBODY),
        ("task", "logs", NOBODY),
        ("task", "logs", "-f", NOBODY),
    ],
)
async def test_what_is_not_there_is_3(call: Call, arguments: tuple[str, ...]) -> None:
    check(await call(*arguments), NOT_FOUND, "not found")


async def test_a_watch_of_an_issue_without_runs_is_3(call: Call) -> None:
    await call("issue", "create", "T")
    check(await call("issue", "watch", "UND-1"), NOT_FOUND, "no run yet")


async def test_a_second_agent_of_one_name_is_4(call: Call) -> None:
    await call("agent", "create", "Nia", "--provider", "scripted")
    check(await call("agent", "create", "nia", "--provider", "scripted"), CONFLICT, "already")


async def test_without_a_key_or_with_a_wrong_one_it_is_5(
    node: Node, anywhere: Call, call: Call
) -> None:
    check(await anywhere("issue", "list"), FORBIDDEN, "not logged in")
    check(await call("issue", "list", UNDERSTUDY_TOKEN="usp_no"), FORBIDDEN, "key")
    check(await call("issue", "list", UNDERSTUDY_TOKEN=node.daemon_key), FORBIDDEN, "person")
    check(await anywhere("login", f"{node.address}/login/usl_no"), FORBIDDEN, "code")
    check(await anywhere("join", f"{node.address}/join/usd_no"), FORBIDDEN, "key")
    check(await anywhere("daemon", "run"), FORBIDDEN, "join")
    check(await anywhere("daemon", "start"), FORBIDDEN, "join")


@pytest.mark.parametrize("arguments", [("issue", "list"), ("task", "logs", "-f", NOBODY)])
async def test_a_server_that_is_away_is_6(call: Call, arguments: tuple[str, ...]) -> None:
    done = await call(*arguments, UNDERSTUDY_SERVER="http://127.0.0.1:9")
    check(done, AWAY, "127.0.0.1:9", "understudy up")


@pytest.mark.parametrize("link", ["nonsense", "http://", "127.0.0.1/join/x", "ftp://127.0.0.1/x"])
@pytest.mark.parametrize("command", ["join", "login"])
async def test_what_is_no_link_is_2(anywhere: Call, command: str, link: str) -> None:
    check(await anywhere(command, link), USAGE, "link")


async def test_a_daemon_that_does_not_run_is_1(anywhere: Call) -> None:
    check(await anywhere("daemon", "stop"), FAILED, "does not run")
    check(await anywhere("daemon", "logs"), FAILED, "no log")
    assert (await anywhere("daemon", "status")).exit_code == FAILED
    assert '"running": false' in (await anywhere("daemon", "status", "--json")).stdout
