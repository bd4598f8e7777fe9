"""The command line. Each command imports what it needs: `understudy version` waits for nothing."""

from __future__ import annotations

from importlib import import_module
from typing import Final, final

import click

GROUPS: Final = {
    "up": "understudy.cli.serving",
    "serve": "understudy.cli.serving",
    "daemon": "understudy.cli.machine",
    "join": "understudy.cli.machine",
    "doctor": "understudy.cli.doctor",
    "gc": "understudy.cli.gc",
    "login": "understudy.cli.people",
    "agent": "understudy.cli.people",
    "issue": "understudy.cli.issues",
    "task": "understudy.cli.tasks",
    "why": "understudy.cli.why",
    "runtime": "understudy.cli.runtimes",
    "tree": "understudy.cli.people",
    "demo": "understudy.cli.demo",
    "torture": "understudy.cli.torture",
}


@final
class Lazy(click.Group):
    """Each command's module is imported when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*GROUPS, "version"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in GROUPS:
            command = getattr(import_module(GROUPS[cmd_name]), cmd_name)
            assert isinstance(command, click.Command)
            return command
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """From this table, not from the modules: help is quick too."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, HELP[name]) for name in self.list_commands(ctx)])


HELP: Final = {
    "up": "The board, a database and a daemon on this machine.",
    "serve": "A server node alone.",
    "daemon": "The daemon that runs agents here: start, stop, restart, status, logs, unit.",
    "join": "Let this machine, or another one, run agents for a server.",
    "doctor": "What is wrong on this machine, and how to repair it.",
    "gc": "Remove the work directories that nobody needs any more; --explain says why.",
    "login": "A link for the browser; or log this command line in.",
    "agent": "create, list",
    "issue": "create, list, show, assign, comment, move, rerun, cancel, watch",
    "task": "list, show, logs, cancel",
    "why": "Why a task is where it is, and what would change that.",
    "runtime": "list, ping, remove: the machines and the agent CLIs they offer",
    "tree": "What the server runs: actors, restarts, mailboxes.",
    "demo": "Three runs, the daemon killed in the middle, nothing lost.",
    "torture": "Whole installations under faults, in virtual time; a seed replays each.",
    "version": "The version that is installed.",
}


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """A runtime for AI coding agents: never loses a run, never runs one twice, says why."""


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def version(*, as_json: bool) -> None:
    """The version that is installed."""
    from understudy.version import VERSION

    click.echo(f'{{"version": "{VERSION}"}}' if as_json else f"understudy {VERSION}")
