"""`understudy gc`: what goes, what stays and why, on the machine itself."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID

import pytest
from click.testing import Result

from understudy.cli import credentials
from understudy.cli.credentials import Credentials, MachineKey
from understudy.daemon.git import Git
from understudy.daemon.repositories import Repositories
from understudy.daemon.workspace import prepare
from understudy.testing.desk import Desk
from understudy.testing.node import Node

Call: TypeAlias = Callable[..., Awaitable[Result]]


@pytest.fixture
def desk(tmp_path: Path, home: Path, node: Node, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """Of a machine that has joined."""
    monkeypatch.setenv("UNDERSTUDY_HOME", str(home))
    workspace = str(node.workspace.id)
    machine = MachineKey(server=node.address, key=node.daemon_key, workspace_id=workspace)
    credentials.save(Credentials(machine=machine))
    (tmp_path / "desk").mkdir()
    desk = Desk(tmp_path / "desk")
    desk.repositories = Repositories(home / "daemon/work", Git(desk.env))
    desk.ids["workspace"] = node.workspace.id
    return desk


async def old_directory(desk: Desk) -> Path:
    work = await prepare(desk.order(), desk.repositories)
    work.claim.close()
    for entry in [work.path.parent, *work.path.parent.rglob("*")]:
        os.utime(entry, (1_600_000_000, 1_600_000_000))
    return work.path


async def make_issue(node: Node, desk: Desk, status: str) -> None:
    made = await node.person.post("/api/issues", json={"title": "Do it"})
    issue = made.json()["issue"]
    moved = await node.person.patch(f"/api/issues/{issue['key']}", json={"status": status})
    assert moved.is_success, moved.text
    desk.ids["issue"] = UUID(issue["id"])


async def gc(call: Call, *arguments: str) -> Any:
    done = await call("gc", "--json", *arguments)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


async def test_gc_asks_the_server_and_removes_what_is_closed(
    anywhere: Call, node: Node, desk: Desk
) -> None:
    """R8.6"""
    await make_issue(node, desk, "done")
    work = await old_directory(desk)
    [kept] = (await gc(anywhere))["directories"]
    assert (kept["verdict"], work.is_dir()) == ("keep", True)
    assert re.match(r"its issue is done; touched \d+ s ago, and kept for 7 d", kept["reason"])
    [told] = (await gc(anywhere, "--keep-days", "0", "--dry-run"))["directories"]
    assert (told["verdict"], told["removed"], work.is_dir()) == ("remove", False, True)
    [gone] = (await gc(anywhere, "--keep-days", "0"))["directories"]
    assert (gone["removed"], work.parent.exists()) == (True, False)


async def test_gc_explains_each_directory_and_what_the_disk_is_used_for(
    anywhere: Call, node: Node, desk: Desk
) -> None:
    """R8.6"""
    await make_issue(node, desk, "in_review")
    work = await old_directory(desk)
    done = await anywhere("gc", "--explain")
    assert done.exit_code == 0
    (line,) = (line for line in done.stdout.splitlines() if str(work.parent) in line)
    assert line.split()[0] == "keep"
    assert line.rstrip().endswith("its issue is in review")
    assert "Directories: 0 removed, 0 B; 1 kept." in done.stdout
    assert "On disk: work directories" in done.stdout


async def test_gc_explains_each_repository_too(anywhere: Call, node: Node, desk: Desk) -> None:
    """R8.6: with its class and size."""
    await make_issue(node, desk, "in_review")
    work = await prepare(desk.order(desk.repository()), desk.repositories)
    work.claim.close()
    done = await anywhere("gc", "--explain")
    (line,) = (line for line in done.stdout.splitlines() if ".repositories" in line)
    assert line.split()[:2] == ["keep", "repository"]
    assert "iB" in line
    assert "a worktree of it is there: " in line
    classes = [each["class"] for each in (await gc(anywhere))["directories"]]
    assert classes == ["work", "repository"]


async def test_gc_removes_nothing_while_the_server_is_away(
    anywhere: Call, desk: Desk, node: Node
) -> None:
    """R8.6"""
    await old_directory(desk)
    machine = MachineKey(server="http://127.0.0.1:1", key="k", workspace_id=str(node.workspace.id))
    credentials.save(Credentials(machine=machine))
    [kept] = (await gc(anywhere, "--keep-days", "0"))["directories"]
    assert kept["reason"] == "the server cannot be asked about it now"


async def test_gc_of_an_issue_that_was_deleted(anywhere: Call, desk: Desk) -> None:
    work = await old_directory(desk)
    [gone] = (await gc(anywhere))["directories"]
    assert gone["reason"].startswith("its issue was deleted, and nobody has touched it for")
    assert not work.exists()


async def test_gc_on_a_machine_that_never_worked(anywhere: Call) -> None:
    done = await anywhere("gc", "--explain")
    assert done.exit_code == 0
    assert "There are no work directories." in done.stdout


async def test_a_proxy_that_is_not_spoken_is_said(
    anywhere: Call, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_HOME", str(home))
    machine = MachineKey(server="http://board.example", key="usd_x", workspace_id="")
    credentials.save(Credentials(machine=machine))
    done = await anywhere("gc", ALL_PROXY="socks5://127.0.0.1:1", NO_PROXY="", no_proxy="")
    assert (done.exit_code, "SOCKS is not spoken" in done.stderr) == (6, True)
