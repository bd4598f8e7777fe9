"""`understudy doctor`: each thing that can be wrong is found, with its repair."""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import httpx2
import msgspec
import pytest
from click.testing import Result

from understudy.cli import checks, doctor
from understudy.cli.checks import State
from understudy.config import Home
from understudy.daemon.outbox import Outbox, Report
from understudy.daemon.status import DaemonStatus, write_status
from understudy.testing.node import Node
from understudy.version import VERSION

Call: TypeAlias = Callable[..., Awaitable[Result]]
Ask: TypeAlias = Callable[..., Awaitable[Any]]
NOW = 1_800_000_000.0
STATUS = DaemonStatus(
    pid=1, server="http://board", daemon_id="", version=VERSION, is_linked=True,
    slots=20, slots_free=19, reports_waiting=3, found={}, runs=[],
)  # fmt: skip


def states(findings: Any) -> set[tuple[str, State]]:
    return {(each.check, each.state) for each in findings}


def repair(findings: Any) -> str:
    [finding] = [each for each in findings if each.state is not State.OK]
    assert finding.repair
    return str(finding.repair)


def program(directory: Path, name: str, says: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\necho '{says}'\n")
    (directory / name).chmod(0o755)


@pytest.fixture
def here(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    (home.daemon / "runs").mkdir(parents=True)
    home.daemon.chmod(0o700)
    return home


async def test_a_machine_that_has_not_joined_is_told_how(anywhere: Call) -> None:
    done = await anywhere("doctor", "--json")
    told = json.loads(done.stdout)
    [server] = [each for each in told["findings"] if each["check"] == "server"]
    assert (done.exit_code, told["ok"]) == (1, False)
    assert (server["state"], "understudy join" in server["repair"]) == ("broken", True)
    assert "daemon" not in {each["check"] for each in told["findings"]}


async def test_a_machine_with_nothing_but_notes_is_well(
    node: Node, ask: Ask, anywhere: Call, home: Path, tmp_path: Path
) -> None:
    """And everything has been looked at."""
    await anywhere("join", (await ask("join"))["link"])
    program(tmp_path / "bin", "git", "git version 3.0")
    (home / "daemon").mkdir(mode=0o700)
    write_status(home / "daemon", STATUS)
    with (home / "daemon" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = await anywhere(
            "doctor", "--json", PATH=str(tmp_path / "bin"), UNDERSTUDY_TOKEN=node.personal_key
        )
    told = json.loads(done.stdout)
    assert [each for each in told["findings"] if each["state"] == "broken"] == []
    assert (done.exit_code, told["ok"]) == (0, True)
    by_check = {each["check"]: each["state"] for each in told["findings"]}
    assert (by_check.pop("agents"), by_check.pop("outbox")) == ("note", "note")
    assert set(by_check) == {
        "permissions", "disk", "git", "limits", "server", "clock", "machine key", "login",
        "daemon", "runs",
    }  # fmt: skip


async def test_a_machine_that_joined_is_well_but_for_its_daemon(
    node: Node, ask: Ask, anywhere: Call
) -> None:
    await anywhere("join", (await ask("join"))["link"])
    done = await anywhere("doctor")
    assert done.exit_code == 1
    assert f"ok      server       {node.address} answers" in done.stdout
    assert "ok      machine key" in done.stdout
    assert "ok      clock" in done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("BROKEN")] == [
        "BROKEN  daemon       it does not run"
    ]
    assert "-> understudy daemon start" in done.stdout


async def test_a_key_that_the_server_refuses_is_found(
    node: Node, ask: Ask, anywhere: Call, home: Path
) -> None:
    await anywhere("join", (await ask("join"))["link"])
    text = (home / "credentials.json").read_text()
    (home / "credentials.json").write_text(text.replace("usd_", "usd_x"))
    done = await anywhere("doctor")
    assert "BROKEN  machine key  the server refuses it (401)" in done.stdout
    assert "-> understudy join LINK" in done.stdout
    assert "usd_" not in done.stdout


async def test_a_server_that_is_away_is_found(anywhere: Call) -> None:
    done = await anywhere("doctor", UNDERSTUDY_SERVER="http://127.0.0.1:1")
    assert "BROKEN  server       http://127.0.0.1:1 cannot be reached" in done.stdout
    assert "-> start it: understudy up" in done.stdout


async def test_a_proxy_that_is_not_spoken_is_found(anywhere: Call) -> None:
    """And crashes nothing else that goes to the server."""
    surroundings = {"UNDERSTUDY_SERVER": "http://board.example", "UNDERSTUDY_TOKEN": "x"}
    for proxy in ("socks5://127.0.0.1:1", "what://127.0.0.1:1", "http://127.0.0.1:port"):
        environment = {**surroundings, "ALL_PROXY": proxy, "NO_PROXY": "", "no_proxy": ""}
        done = await anywhere("doctor", **environment)
        assert "BROKEN  server       the proxy in the environment is not spoken" in done.stdout
        assert "-> HTTPS_PROXY, HTTP_PROXY and ALL_PROXY have to name an HTTP" in done.stdout
        done = await anywhere("issue", "list", **environment)
        assert (done.exit_code, "SOCKS is not spoken" in done.stderr) == (6, True)


def answer(status: int, body: object, **headers: str) -> httpx2.Response:
    return httpx2.Response(status, json=body, headers=headers)


@pytest.mark.parametrize(
    ("response", "state"),
    [
        (answer(200, {"status": "ok", "version": VERSION}), State.OK),
        (answer(200, {"status": "ok", "version": "0.0.1"}), State.NOTE),
        (answer(503, {"status": "database_away", "version": "1"}), State.BROKEN),
        (answer(200, {"status": "up"}), State.BROKEN),
        (httpx2.Response(200, text="<html>"), State.BROKEN),
    ],
)
def test_what_answers_must_be_a_server_of_ours_with_its_database(
    response: httpx2.Response, state: State
) -> None:
    finding = doctor._health("http://x", response)
    assert finding.state is state
    assert (finding.repair is None) == (state is State.OK)


@pytest.mark.parametrize(
    ("ahead_s", "state", "said"),
    [
        (0, "ok", "0 s"), (-29, "ok", "29 s behind"), (31, "broken", "31 s ahead"),
        (-31, "broken", "31 s behind"),
    ],
)  # fmt: skip
def test_a_clock_that_differs_from_the_servers_is_found(
    ahead_s: float, state: str, said: str
) -> None:
    date = format_datetime(datetime.fromtimestamp(NOW - ahead_s, UTC), usegmt=True)
    [finding] = doctor._clock(answer(200, {}, Date=date), NOW)
    assert (finding.state, finding.found.startswith(said)) == (state, True)


def test_a_server_that_tells_no_time_has_no_wrong_clock() -> None:
    assert list(doctor._clock(answer(200, {}), NOW)) == []


def test_what_others_can_read_is_found(here: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """R9.5"""
    here.credentials.write_text("{}")
    here.credentials.chmod(0o640)
    assert repair(checks.permissions(here)) == f"chmod 600 {here.credentials}"
    here.credentials.chmod(0o600)
    assert states(checks.permissions(here)) == {("permissions", "ok")}
    here.daemon.chmod(0o711)
    assert repair(checks.permissions(here)) == f"chmod 700 {here.daemon}"
    monkeypatch.setattr(os, "geteuid", lambda: -2)
    assert [each.repair for each in checks.permissions(here)] == [
        f"chown -2 {here.credentials}", f"chown -2 {here.daemon}",
    ]  # fmt: skip


def test_a_disk_that_fills_up_is_found(here: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "DISK_FEW", 1 << 80)
    assert states(checks.disk(here)) == {("disk", State.NOTE)}
    monkeypatch.setattr(checks, "DISK_MIN", 1 << 80)
    assert states(checks.disk(here)) == {("disk", State.BROKEN)}
    assert states(checks.disk(Home(here.path / "not" / "yet"))) == {("disk", State.BROKEN)}


@pytest.mark.parametrize(("inodes", "found"), [(1000, ["only 0 files can be made"]), (0, [])])
def test_a_disk_that_takes_no_more_files_is_found(
    here: Home, monkeypatch: pytest.MonkeyPatch, inodes: int, found: list[str]
) -> None:
    """Where it counts them at all."""
    size = {"f_blocks": 1 << 40, "f_bfree": 1 << 40, "f_bavail": 1 << 40, "f_frsize": 1}
    counted = SimpleNamespace(f_files=inodes, f_favail=0, **size)
    monkeypatch.setattr(os, "statvfs", lambda _: counted)
    said = [each.found for each in checks.disk(here) if each.state is State.BROKEN]
    assert said == [f"{each} at {here.path}" for each in found]


@pytest.mark.parametrize(
    ("says", "state"),
    [
        ("git version 2.28.1", State.BROKEN),
        ("git version 2.29.0", State.OK),
        ("git version 3.0", State.OK),
        ("no git", State.BROKEN),
    ],
)
def test_a_git_that_is_too_old_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, state: State
) -> None:
    program(tmp_path / "bin", "git", says)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    assert states(checks.git()) == {("git", state)}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [each.found for each in checks.git()] == ["there is no git on PATH"]


def test_a_git_that_does_not_run_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "git", "'; exit 7; '")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    [finding] = checks.git()
    assert (finding.state, "returned non-zero exit status 7" in finding.found) == ("broken", True)


def test_limits_that_agents_would_meet_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "PROC_SYS", tmp_path)
    assert states(checks.limits()) == {("limits", State.OK)}
    (tmp_path / "fs" / "inotify").mkdir(parents=True)
    (tmp_path / "fs" / "inotify" / "max_user_watches").write_text("8192\n")
    assert repair(checks.limits()) == "sudo sysctl fs.inotify.max_user_watches=65536"
    (tmp_path / "fs" / "inotify" / "max_user_watches").write_text("65536\n")
    assert states(checks.limits()) == {("limits", State.OK)}
    monkeypatch.setattr(checks, "FILES_MIN", 1 << 40)
    assert repair(checks.limits()) == f"ulimit -n {1 << 40}"


async def test_each_cli_is_found_with_its_version_and_its_login(
    anywhere: Call, tmp_path: Path
) -> None:
    """R9.4"""
    program(tmp_path / "bin", "claude", "2.1.197 (Claude Code)")
    program(tmp_path / "bin", "codex", "codex is confused")
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    surroundings = {"PATH": path, "HOME": str(tmp_path), "ANTHROPIC_API_KEY": ""}
    said = (await anywhere("doctor", **surroundings)).stdout
    assert f"note    claude       2.1.197 at {tmp_path}/bin/claude, and no login" in said
    assert "BROKEN  codex" in said
    assert "-> reinstall Codex" in said
    said = (await anywhere("doctor", **surroundings | {"ANTHROPIC_API_KEY": "x"})).stdout
    assert f"ok      claude       2.1.197 at {tmp_path}/bin/claude, logged in" in said
    (tmp_path / ".claude").mkdir()
    (tmp_path / ".claude" / ".credentials.json").touch()
    said = (await anywhere("doctor", **surroundings)).stdout
    assert f"ok      claude       2.1.197 at {tmp_path}/bin/claude, logged in" in said


def test_a_lock_that_nobody_explains_is_found(here: Home) -> None:
    with (here.daemon / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "fuser" in repair(checks.daemon(here))
    assert repair(checks.daemon(here)) == "understudy daemon start"


@pytest.mark.parametrize(
    ("says", "state", "found", "hint"),
    [
        ({}, State.OK, "pid 1, linked to http://board", None),
        ({"is_linked": False, "trouble": "refused"}, State.BROKEN, ": refused", "daemon logs"),
        ({"is_linked": False}, State.BROKEN, "no answer yet", "daemon logs"),
        ({"version": "0.0.1"}, State.NOTE, "runs version 0.0.1", "understudy daemon restart"),
        ({"is_over_http": True}, State.OK, "over HTTP polling: it was told to", None),
        ({"is_over_http": True, "no_websocket": "it answered 502"}, State.NOTE,
         "over HTTP polling: no websocket gets through (it answered 502)", "/api/daemon/ws"),
    ],
)  # fmt: skip
def test_what_a_daemon_says_of_itself_is_judged(
    here: Home, says: dict[str, Any], state: State, found: str, hint: str | None
) -> None:
    write_status(here.daemon, msgspec.structs.replace(STATUS, **says))
    with (here.daemon / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        [finding] = checks.daemon(here)
        assert (finding.state, found in finding.found) == (state, True)
        assert (hint or "") in (finding.repair or "")
        assert (finding.repair is None) == (state is State.OK)
        assert repair(checks.outbox(here)) == "it is sent with the next link"


def test_agents_without_a_daemon_and_what_was_set_aside_are_found(here: Home) -> None:
    """R8.2"""
    run_dir = here.daemon / "runs" / str(uuid.uuid4())
    run_dir.mkdir()
    (run_dir / "state.json").touch()
    with (run_dir / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert repair(checks.runs(here, NOW)) == "understudy daemon start"
        with (here.daemon / "lock").open("w") as daemon:
            fcntl.flock(daemon, fcntl.LOCK_EX)
            assert states(checks.runs(here, NOW)) == {("runs", State.OK)}
    run_dir.rename(run_dir.with_name(f"{run_dir.name}.aside-1"))
    assert "remove it" in repair(checks.runs(here, NOW))


@pytest.mark.parametrize("name", ["packed-refs.lock", "refs/heads/a/b.lock", "worktrees/x/y.lock"])
def test_a_lock_that_git_left_behind_is_found_once_it_is_old(here: Home, name: str) -> None:
    lock = here.daemon / "work" / ".repositories" / "project.git" / name
    lock.parent.mkdir(parents=True)
    lock.touch()
    os.utime(lock, (NOW, NOW))
    assert states(checks.runs(here, NOW + 60)) == {("runs", State.OK)}
    assert repair(checks.runs(here, NOW + 7200)) == f"rm {lock}"


def test_reports_that_wait_are_found(here: Home) -> None:
    """R6.4"""
    assert states(checks.outbox(here)) == {("outbox", State.OK)}
    with Outbox(here.daemon / "outbox.db") as outbox:
        outbox.put(Report("task", "token", "fail", b"{}"))
        assert states(checks.outbox(here)) == {("outbox", State.OK)}  # It is open elsewhere.
    assert repair(checks.outbox(here)) == "understudy daemon start"
