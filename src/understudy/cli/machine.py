"""daemon and join: this machine as one that runs agents."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Final

import click
import msgspec

from understudy.cli import credentials
from understudy.cli.client import (
    FAILED,
    FORBIDDEN,
    Client,
    client,
    give_up,
    is_loopback,
    split_link,
)
from understudy.cli.credentials import MachineKey
from understudy.cli.output import json_option, show_json, show_table
from understudy.config import DaemonConfig
from understudy.daemon.status import DaemonStatus, is_running, read_status

START_S: Final = 20.0
STOP_S: Final = 20.0
LOG: Final = "daemon.log"
NEAR: Final = (
    "No other machine reaches {server}: start the server with"
    " `understudy up --host ADDRESS`, an address of this machine in your network."
)


@click.command()
@click.argument("link", required=False)
@json_option
def join(link: str | None, *, as_json: bool) -> None:
    """Print the command that lets another machine run agents; there, with its LINK, do so."""
    if link is None:
        known = client()
        made = known.post("/api/tokens", {"kind": "daemon", "name": "join"})
        url = f"{known.server}/join/{made['token']}"
        if as_json:
            show_json({"link": url})
            return
        click.echo(f"On the other machine:\n\n  understudy join {url}\n")
        if is_loopback(known.server):
            click.echo(NEAR.format(server=known.server))
        return
    server, key = split_link(link)
    workspace = Client(server, key).get("/api/workspaces")[0]
    machine = MachineKey(server=server, key=key, workspace_id=workspace["id"])
    credentials.save(msgspec.structs.replace(credentials.load(), machine=machine))
    if as_json:
        show_json({"server": server, "workspace": workspace})
    else:
        click.echo(f"This machine works for {workspace['name']} at {server}."
                   " Start it: understudy daemon start")  # fmt: skip


@click.group()
def daemon() -> None:
    """The daemon that runs agents on this machine."""


def _path() -> Path:
    return credentials.home().daemon


def _machine() -> MachineKey:
    machine = credentials.load().machine
    if machine is None:
        give_up("this machine has not joined a server: `understudy join <link>`", FORBIDDEN)
    return machine


TASKS_MAX = click.option(
    "--max-concurrent-tasks",
    "tasks_max",
    default=20,
    show_default=True,
    type=click.IntRange(1, 1000),
    envvar="UNDERSTUDY_DAEMON_MAX_CONCURRENT_TASKS",
)


@daemon.command()
@TASKS_MAX
def run(*, tasks_max: int) -> None:
    """Work in the foreground, as `up` and service managers start it."""
    from understudy.cli.logs import log_to_file
    from understudy.core.tree import Branch
    from understudy.daemon.main import run_daemon
    from understudy.parent import until_parent_ends
    from understudy.supervisor import run_tree

    machine = _machine()
    config = DaemonConfig(
        _path(), machine.server, machine.key, machine.workspace_id, tasks_max=tasks_max
    )
    log_to_file(_path() / LOG)
    main = partial(run_daemon, config, Branch("daemon"))
    sys.exit(run_tree(partial(until_parent_ends, main)))


@daemon.command()
@TASKS_MAX
@json_option
def start(*, tasks_max: int, as_json: bool) -> None:
    """Start it in the background."""
    if is_running(_path()):
        give_up("it runs already: `understudy daemon status`", FAILED)
    _machine()
    command = [sys.executable, "-m", "understudy", "daemon", "run"]
    process = subprocess.Popen(
        [*command, "--max-concurrent-tasks", str(tasks_max)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + START_S
    while read_status(_path()) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            assert process.stderr is not None
            said = process.stderr.read().decode().strip() if process.poll() is not None else ""
            give_up(said or f"it did not come up; see {_path() / LOG}", FAILED)
        time.sleep(0.05)
    found = read_status(_path())
    assert found is not None
    show_json(msgspec.to_builtins(found)) if as_json else click.echo(f"It runs (pid {found.pid}).")


@daemon.command()
@json_option
def stop(*, as_json: bool) -> None:
    """Stop it. Its agents go on, and the next daemon takes them over (R7.4)."""
    found = read_status(_path())
    if found is None:
        give_up("it does not run", FAILED)
    os.kill(found.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while is_running(_path()):
        if time.monotonic() > deadline:
            give_up(f"pid {found.pid} has not stopped within {STOP_S:.0f} s", FAILED)
        time.sleep(0.05)
    if as_json:
        show_json({"stopped": True, "agents_going_on": len(found.runs)})
    else:
        going_on = f"; {len(found.runs)} agents go on" if found.runs else ""
        click.echo(f"It has stopped{going_on}.")


@daemon.command()
@json_option
def status(*, as_json: bool) -> None:
    """Whether it runs, what it runs, what waits to be reported."""
    found = read_status(_path())
    if as_json:
        show_json({"running": found is not None, **(msgspec.to_builtins(found) if found else {})})
    elif found is None:
        click.echo("It does not run: understudy daemon start")
    else:
        _show(found)
    sys.exit(0 if found else FAILED)


def _show(found: DaemonStatus) -> None:
    link = "linked to" if found.is_linked else "NOT linked to"
    click.echo(f"It runs (pid {found.pid}), {link} {found.server}.")
    click.echo(f"{found.slots - found.slots_free} of {found.slots} slots taken, "
               f"{found.reports_waiting} reports wait for the server.")  # fmt: skip
    for provider, problem in found.found.items():
        click.echo(f"  {provider}: {problem or 'works'}")
    if found.runs:
        rows = [[r.issue, r.provider, r.task_id, r.work_dir] for r in found.runs]
        show_table(["issue", "provider", "task", "directory"], rows, empty="")


@daemon.command()
@click.option("-n", "lines", default=50, show_default=True)
@click.option("-f", "--follow", is_flag=True)
def logs(*, lines: int, follow: bool) -> None:
    """What it wrote down."""
    path = _path() / LOG
    if not path.exists():
        give_up(f"no log yet at {path}", FAILED)
    arguments = ["tail", "-n", str(lines), *(["-F"] if follow else []), str(path)]
    os.execvp("tail", arguments)  # noqa: S606  # It is the program for this.
