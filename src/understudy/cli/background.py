"""start, restart and stop: the daemon behind the terminal.

What a running daemon is asked to do it is asked by signal (`daemon/stopping.py`); how it gets on
stands in its status file.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import msgspec

from understudy.cli import credentials
from understudy.cli.client import AWAY, FAILED, FORBIDDEN, USAGE, give_up
from understudy.cli.credentials import MachineKey
from understudy.cli.limits import limit_arguments, limit_options
from understudy.cli.output import json_option, show_json
from understudy.config import ORPHAN_S
from understudy.core.limits import Limits
from understudy.daemon.rundir import Standing, look
from understudy.daemon.status import DaemonStatus, RunStatus, is_running, linked, read_status
from understudy.daemon.stopping import NOW_S, SIGNALS, Ending

START_S: Final = 20.0
STOP_S: Final = 20.0
POLL_S: Final = 0.05
LOG: Final = "daemon.log"
ERR: Final = "daemon.err"
"""What a daemon in the background says on stderr: why it could not start."""

F = TypeVar("F", bound=Callable[..., Any])
BY_ENDING: Final = {ending: number for number, ending in SIGNALS.items()}


def run_options(command: F) -> F:
    """Those of a daemon, in the foreground or behind."""
    for option in (
        click.option(
            "--max-concurrent-tasks",
            "tasks_max",
            default=20,
            show_default=True,
            type=click.IntRange(1, 1000),
            envvar="UNDERSTUDY_DAEMON_MAX_CONCURRENT_TASKS",
        ),
        click.option(
            "--orphan-after",
            "orphan_s",
            default=ORPHAN_S,
            show_default=True,
            type=click.FloatRange(1),
            envvar="UNDERSTUDY_DAEMON_ORPHAN_AFTER",
            help="Stop an agent whose daemon has not come back for so many seconds.",
        ),
    ):
        command = option(command)
    return command


def joined() -> MachineKey:
    machine = credentials.load().machine
    if machine is None:
        give_up("this machine has not joined a server: `understudy join <link>`", FORBIDDEN)
    return machine


def path() -> Path:
    return credentials.home().daemon


@click.command()
@run_options
@limit_options
@json_option
def start(*, tasks_max: int, orphan_s: float, limits: Limits, as_json: bool) -> None:
    """Start it in the background, and wait until it is linked."""
    if is_running(path()):
        give_up("it runs already: `understudy daemon status`", FAILED)
    joined()
    arguments = ["--max-concurrent-tasks", str(tasks_max), "--orphan-after", str(orphan_s)]
    process = _spawn(["daemon", "run", *arguments, *limit_arguments(limits)])

    def check() -> None:
        if process.poll() is not None:
            give_up((path() / ERR).read_text().strip() or f"it ended; see {path() / LOG}", FAILED)

    _show_linked(_wait_linked(lambda _: True, check), as_json=as_json)


def _spawn(arguments: list[str]) -> subprocess.Popen[bytes]:
    path().mkdir(mode=0o700, parents=True, exist_ok=True)
    file = os.open(path() / ERR, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(file, "wb") as err:
        return subprocess.Popen(
            [sys.executable, "-m", "understudy", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=err,
            cwd="/",  # Else the file system of the shell that started it could not be unmounted.
            start_new_session=True,
        )


@click.command()
@json_option
def restart(*, as_json: bool) -> None:
    """Start it anew, in the version that is installed by now. Its agents go on."""
    before = _running()
    os.kill(before.pid, BY_ENDING[Ending.RESTART])

    def check() -> None:
        if not _lives(before.pid):
            give_up(f"it ended: `understudy daemon start`, or see {path() / LOG}", FAILED)

    after = _wait_linked(lambda found: found.incarnation != before.incarnation, check)
    if not as_json and after.version != before.version:
        click.echo(f"It was version {before.version} and is {after.version} now.")
    _show_linked(after, as_json=as_json)


def _wait_linked(is_it: Callable[[DaemonStatus], bool], check: Callable[[], None]) -> DaemonStatus:
    """What it says at last: that it is linked, or after a while why it is not."""
    deadline = time.monotonic() + START_S
    while (found := read_status(path())) is None or not is_it(found) or not found.is_linked:
        check()
        if time.monotonic() > deadline:
            if found is None or not is_it(found):
                give_up(f"it has not come up in {START_S:.0f} s; see {path() / LOG}", FAILED)
            return found
        time.sleep(POLL_S)
    return found


def _show_linked(found: DaemonStatus, *, as_json: bool) -> None:
    if as_json:
        show_json(msgspec.to_builtins(found))
    elif found.is_linked:
        click.echo(f"It runs (pid {found.pid}), {linked(found)}. Log: {path() / LOG}")
    if not found.is_linked:
        why = found.trouble or "no answer yet"
        give_up(f"it runs (pid {found.pid}) and goes on trying, but has no link to {found.server}:"
                f" {why}. Log: {path() / LOG}", AWAY)  # fmt: skip


@click.command()
@click.option("--drain", is_flag=True, help="Take nothing new, wait for its runs, then end.")
@click.option("--now", is_flag=True, help="Stop its agents first; their tasks are tried again.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0),
    help="With --drain: seconds, after which the agents that are left are left to go on.",
)
@json_option
def stop(*, drain: bool, now: bool, timeout_s: float | None, as_json: bool) -> None:
    """Stop it. Its agents go on, and the next daemon takes them over."""
    if drain and now:
        give_up("--drain waits for the agents and --now does not: choose one", USAGE)
    before = _running()
    if drain:
        last = _drain(before, timeout_s)
    elif now:
        last = _end(before, BY_ENDING[Ending.NOW], NOW_S + STOP_S)
    else:
        last = _end(before, signal.SIGTERM, STOP_S)
    going_on = [run for run in last.runs if _goes_on(run)]
    if as_json:
        show_json({"stopped": True, "agents_going_on": len(going_on)})
        return
    noun = "agent goes" if len(going_on) == 1 else "agents go"
    click.echo(f"It has stopped{f'; {len(going_on)} {noun} on' if going_on else ''}.")


def _running() -> DaemonStatus:
    found = read_status(path())
    if found is None:
        hangs = f" (it is about to, or hangs: see {path() / LOG})" if is_running(path()) else ""
        give_up(f"it does not run{hangs}", FAILED)
    return found


def _goes_on(run: RunStatus) -> bool:
    return bool(run.run_dir) and look(Path(run.run_dir)) is Standing.KEPT


def _end(daemon: DaemonStatus, number: int, within_s: float) -> DaemonStatus:
    os.kill(daemon.pid, number)
    last = _watch(daemon, time.monotonic() + within_s, lambda _: None)
    if _works(daemon):
        give_up(f"pid {daemon.pid} has not stopped within {within_s:.0f} s; `kill -9 {daemon.pid}`"
                " harms no agent", FAILED)  # fmt: skip
    return last


def _drain(daemon: DaemonStatus, timeout_s: float | None) -> DaemonStatus:
    """Ctrl-C twice, or the timeout, ends the waiting."""
    os.kill(daemon.pid, BY_ENDING[Ending.DRAIN])
    deadline = float("inf") if timeout_s is None else time.monotonic() + timeout_s
    try:
        try:
            last = _watch(daemon, deadline, _say)
        except KeyboardInterrupt:
            _say("It still waits. Ctrl-C again ends the waiting: its agents go on.")
            last = _watch(daemon, deadline, _say)
    except KeyboardInterrupt:
        last = daemon
    return _end(daemon, signal.SIGTERM, STOP_S) if _works(daemon) else last


def _say(sentence: str) -> None:
    click.echo(sentence, err=True)


def _watch(daemon: DaemonStatus, deadline: float, say: Callable[[str], None]) -> DaemonStatus:
    """Until its process is gone, or the deadline; the last that it has said of itself."""
    last, said = daemon, ""
    while _works(daemon) and time.monotonic() < deadline:
        if (found := read_status(path())) and found.incarnation == daemon.incarnation:
            last = found
            if (waits := _waits_for(found)) != said:
                say(waits)
                said = waits
        time.sleep(POLL_S)
    return last


def _waits_for(found: DaemonStatus) -> str:
    if not found.runs:
        return "Nothing runs."
    return "Waiting for " + ", ".join(
        f"{run.agent} on {run.issue or run.task_id}" + (" (to be reported)" * run.is_reported)
        for run in found.runs
    )


def _works(daemon: DaemonStatus) -> bool:
    """It, and not one that was started since."""
    found = read_status(path())
    return is_running(path()) and (found is None or found.incarnation == daemon.incarnation)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
