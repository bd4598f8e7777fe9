"""daemon and join: this machine as one that runs agents."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, get_args

import click
import msgspec

from understudy.cli import credentials
from understudy.cli.background import LOG, joined, path, restart, run_options, start, stop
from understudy.cli.client import (
    FAILED,
    Client,
    client,
    give_up,
    is_loopback,
    split_link,
)
from understudy.cli.confided import given_link
from understudy.cli.credentials import MachineKey
from understudy.cli.gc import in_words
from understudy.cli.limits import limit_options
from understudy.cli.output import json_option, show_json, show_table, when
from understudy.cli.unit import unit
from understudy.config import DaemonConfig, Transport
from understudy.core.limits import Limits
from understudy.daemon.status import DaemonStatus, RunStatus, linked, progress, read_status
from understudy.daemon.stopping import SIGNALS, Ending

COLUMNS: Final = ["issue", "agent", "provider", "since", "last output", "task", "directory"]
ENDINGS: Final = {
    Ending.DRAIN: "It takes nothing new, and ends with the last of its runs.",
    Ending.NOW: "It is stopping its agents, and ends when they are gone and reported.",
    Ending.RESTART: "It is about to start anew.",
}
NEAR: Final = (
    "No other machine reaches {server}: start the server with"
    " `understudy up --host ADDRESS`, an address of this machine in your network."
)


@click.command()
@click.argument("link", required=False)
@json_option
def join(link: str | None, *, as_json: bool) -> None:
    """Print the command that lets another machine run agents; there, with its LINK, do so.

    The link holds a key. With - as LINK it is asked for, or read from stdin: out of sight of `ps`
    (R9.5).
    """
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
    server, key = split_link(given_link(link))
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


@daemon.command()
@run_options
@limit_options
@click.option(
    "--transport",
    type=click.Choice(get_args(Transport)),
    default="auto",
    show_default=True,
    envvar="UNDERSTUDY_TRANSPORT",
    help="To the server: auto is a websocket, or HTTP where none gets through.",
)
def run(*, tasks_max: int, orphan_s: float, limits: Limits, transport: Transport) -> None:
    """Work in the foreground, as `up` and service managers start it."""
    import trio

    from understudy.cli.logs import log_to_file
    from understudy.core.tree import Branch
    from understudy.daemon.main import run_daemon
    from understudy.parent import until_parent_ends
    from understudy.supervisor import run_tree

    machine = joined()
    config = DaemonConfig(
        path(), machine.server, machine.key, machine.workspace_id, tasks_max, orphan_s,
        limits=limits, transport=transport,
    )  # fmt: skip
    secrets = log_to_file(path() / LOG)
    endings: list[Ending] = []

    async def main() -> None:
        with trio.open_signal_receiver(*SIGNALS) as signals:
            ending = await run_daemon(config, Branch("daemon"), signals=signals, secrets=secrets)
            endings.append(ending)

    code = run_tree(partial(until_parent_ends, main))
    if endings == [Ending.RESTART]:  # Its parent, its pid and its settings stay.
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606
    sys.exit(code)


for command in (start, restart, stop, unit):
    daemon.add_command(command)


@daemon.command()
@json_option
def status(*, as_json: bool) -> None:
    """Whether it runs, what it runs, what waits to be reported."""
    found = read_status(path())
    if as_json:
        show_json({"running": found is not None, **(_as_json(found) if found else {})})
    elif found is None:
        click.echo("It does not run: understudy daemon start")
    else:
        _show(found)
    sys.exit(0 if found else FAILED)


def _as_json(found: DaemonStatus) -> dict[str, Any]:
    shown: dict[str, Any] = msgspec.to_builtins(found)
    for run, told in zip(found.runs, shown["runs"], strict=True):
        at = progress(run)
        told |= {"since": _iso(at.since), "last_progress": _iso(at.last)}
    return shown


def _show(found: DaemonStatus) -> None:
    why = f": {found.trouble}" if found.trouble else ""
    link = linked(found) if found.is_linked else f"NOT linked to {found.server}{why}"
    click.echo(f"It runs (pid {found.pid}, version {found.version}), {link}.")
    if found.ending:
        click.echo(ENDINGS[Ending(found.ending)])
    click.echo(f"{found.slots - found.slots_free} of {found.slots} slots taken, "
               f"{found.reports_waiting} reports wait for the server.")  # fmt: skip
    for provider, problem in found.found.items():
        click.echo(f"  {provider}: {problem or 'works'}")
    if found.disk is not None:
        click.echo(in_words(found.disk))
    if found.runs:
        show_table(COLUMNS, [_row(run) for run in found.runs], empty="")


def _row(run: RunStatus) -> list[object]:
    at = progress(run)
    last = "ended, to be reported" if run.is_reported else when(_iso(at.last))
    return [
        run.issue,
        run.agent,
        run.provider,
        when(_iso(at.since)),
        last,
        run.task_id,
        run.work_dir,
    ]


def _iso(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat()


@daemon.command()
@click.option("-n", "lines", default=50, show_default=True)
@click.option("-f", "--follow", is_flag=True)
def logs(*, lines: int, follow: bool) -> None:
    """What it wrote down."""
    log = path() / LOG
    if not log.exists():
        give_up(f"no log yet at {log}", FAILED)
    arguments = ["tail", "-n", str(lines), *(["-F"] if follow else []), str(log)]
    os.execvp("tail", arguments)  # noqa: S606  # It is the program for this.
