"""join, daemon status, stop and restart, as far as they need no daemon. With one: tests/system."""

from __future__ import annotations

import fcntl
import json
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import pytest
import trio
from click.testing import CliRunner, Result

from understudy.cli.main import cli
from understudy.daemon.disk import DiskUse
from understudy.daemon.status import LOCK, DaemonStatus, RunStatus, write_status
from understudy.testing.node import Node

Call: TypeAlias = Callable[..., Awaitable[Result]]
Ask: TypeAlias = Callable[..., Awaitable[Any]]


@pytest.fixture
def working(home: Path) -> Iterator[DaemonStatus]:
    """What a daemon says of itself that has lost its server, and drains."""
    daemon, run_dir = home / "daemon", home / "daemon" / "runs" / str(uuid.uuid4())
    run_dir.mkdir(parents=True)
    run = RunStatus(
        task_id=uuid.UUID(run_dir.name), issue="UND-1", provider="claude", work_dir="/work",
        agent="Nia", run_dir=str(run_dir),
    )  # fmt: skip
    disk = DiskUse(work=3 << 30, caches=0, spools=0, outbox=0)
    status = DaemonStatus(
        pid=2**22, server="http://board", daemon_id="", version="1.2.3", is_linked=False,
        slots=20, slots_free=19, reports_waiting=3, found={"claude": None, "codex": "is broken"},
        runs=[run], trouble="the server answered 502", ending="drain", disk=disk,
    )  # fmt: skip
    write_status(daemon, status)
    with (daemon / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield status


async def test_a_status_says_all_that_is_in_the_way(working: DaemonStatus, anywhere: Call) -> None:
    done = await anywhere("daemon", "status")
    assert done.exit_code == 0
    for said in (
        "version 1.2.3",
        "NOT linked to http://board: the server answered 502",
        "takes nothing new",
        "1 of 20 slots taken, 3 reports wait",
        "codex: is broken",
        "UND-1",
        "Nia",
        "work directories 3.0 GiB",
    ):
        assert said in done.stdout


@pytest.mark.parametrize(
    ("no_websocket", "told"),
    [
        ("the server answered 502", "no websocket gets through (the server answered 502)."),
        (None, "it was told to (UNDERSTUDY_TRANSPORT)."),
    ],
)
async def test_a_status_says_that_it_speaks_over_http_and_why(
    working: DaemonStatus, anywhere: Call, home: Path, no_websocket: str | None, told: str
) -> None:
    """R11.2"""
    over_http = {"is_linked": True, "trouble": None, "is_over_http": True}
    status = msgspec.structs.replace(working, no_websocket=no_websocket, **over_http)
    write_status(home / "daemon", status)
    done = await anywhere("daemon", "status")
    assert f"linked to http://board over HTTP polling: {told}" in done.stdout
    told_as_json = json.loads((await anywhere("daemon", "status", "--json")).stdout)
    assert (told_as_json["is_over_http"], told_as_json["no_websocket"]) == (True, no_websocket)


async def test_a_run_that_has_ended_waits_to_be_reported(
    working: DaemonStatus, anywhere: Call, home: Path
) -> None:
    """R6.4"""
    assert "to be reported" not in (await anywhere("daemon", "status")).stdout
    runs = [msgspec.structs.replace(run, is_reported=True) for run in working.runs]
    write_status(home / "daemon", msgspec.structs.replace(working, runs=runs))
    assert "ended, to be reported" in (await anywhere("daemon", "status")).stdout


@pytest.mark.parametrize("said", [None, b"{", b"{}"])
async def test_a_daemon_that_says_nothing_of_itself_is_not_taken_for_one_that_works(
    working: DaemonStatus, anywhere: Call, home: Path, said: bytes | None
) -> None:
    """It has only just started, or hangs."""
    (home / "daemon" / "status.json").unlink()
    if said is not None:
        (home / "daemon" / "status.json").write_bytes(said)
    assert (await anywhere("daemon", "status")).exit_code == 1
    done = await anywhere("daemon", "stop")
    assert (done.exit_code, "or hangs" in done.stderr) == (1, True)


async def test_a_daemon_that_never_ran_has_no_log(anywhere: Call) -> None:
    done = await anywhere("daemon", "logs")
    assert (done.exit_code, "no log yet" in done.stderr) == (1, True)


async def test_a_run_without_a_keeper_yet_has_no_times(
    working: DaemonStatus, anywhere: Call
) -> None:
    [run] = json.loads((await anywhere("daemon", "status", "--json")).stdout)["runs"]
    assert (run["since"], run["last_progress"]) == (None, None)
    state = {"format": 1, "run": "", "boot_id": "", "started_at": 1_800_000_000.0,
             "keeper_pid": 1, "keeper_start": 1}  # fmt: skip
    run_dir = Path(working.runs[0].run_dir)
    (run_dir / "state.json").write_text(json.dumps(state))
    (run_dir / "out").touch()
    [run] = json.loads((await anywhere("daemon", "status", "--json")).stdout)["runs"]
    assert run["since"] == "2027-01-15T08:00:00+00:00"
    assert run["last_progress"] >= run["since"]


async def test_a_status_of_an_older_daemon_is_read(working: DaemonStatus, anywhere: Call) -> None:
    """It may be asked for just before an upgrade."""
    daemon = Path(working.runs[0].run_dir).parents[1]
    older = msgspec.to_builtins(working)
    for name in (
        "incarnation", "trouble", "ending", "is_child", "disk", "is_over_http", "no_websocket",
    ):  # fmt: skip
        del older[name]
    for name in ("agent", "run_dir", "is_reported"):
        del older["runs"][0][name]
    (daemon / "status.json").write_text(json.dumps(older))
    assert "It runs" in (await anywhere("daemon", "status")).stdout


@pytest.mark.parametrize("command", ["stop", "restart"])
async def test_what_does_not_run_is_not_stopped(anywhere: Call, command: str) -> None:
    done = await anywhere("daemon", command)
    assert (done.exit_code, "does not run" in done.stderr) == (1, True)


async def test_to_wait_and_not_to_wait_is_a_contradiction(anywhere: Call) -> None:
    assert (await anywhere("daemon", "stop", "--drain", "--now")).exit_code == 2


async def test_a_machine_joins_without_its_key_on_a_command_line(
    node: Node, ask: Ask, home: Path
) -> None:
    """R9.5"""
    link = (await ask("join"))["link"]
    runner = CliRunner(env={"UNDERSTUDY_HOME": str(home)})
    done = await trio.to_thread.run_sync(
        lambda: runner.invoke(cli, ["join", "-"], input=f"{link}\n")
    )
    assert "Start it: understudy daemon start" in done.stdout
    assert json.loads((home / "credentials.json").read_text())["machine"]["server"] == node.address
