"""What `understudy torture --fleet` does: a fleet in virtual time, and its figures in tables."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from understudy.cli.output import show_table

if TYPE_CHECKING:
    from understudy.testing.fleet import Fleet
    from understudy.testing.fleet_answer import Answer, Times


F = TypeVar("F", bound=Callable[..., Any])
OPTIONS: Final = (
    click.option(
        "--fleet", "machines", type=click.IntRange(min=1), help="Of so many machines: its figures."
    ),
    click.option(
        "--days", type=click.FloatRange(min=0, min_open=True), help="With --fleet; else 1."
    ),
    click.option(
        "--tasks-per-day",
        type=click.FloatRange(min=0, min_open=True),
        help="With --fleet: on a working day, in all; else 10 for each machine.",
    ),
    click.option("--nodes", type=click.IntRange(min=1), help="With --fleet; else 2."),
    click.option(
        "--workspaces",
        type=click.IntRange(min=1),
        help="With --fleet; else one for every 50 machines.",
    ),
)


def fleet_options(command: F) -> F:
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def run_fleet(chosen: dict[str, Any]) -> int | None:
    """The exit code, if `--fleet` was chosen. Its options are taken out of `chosen`."""
    names = ("machines", "days", "tasks_per_day", "nodes", "workspaces")
    wanted = {name: value for name in names if (value := chosen.pop(name)) is not None}
    if "machines" not in wanted:
        if wanted:
            raise click.UsageError("--days, --nodes and the like are for a fleet: say --fleet")
        return None
    from understudy.testing.fleet import Fleet

    if chosen["seed"] is not None:
        wanted["seed"] = chosen["seed"]
    return _run(Fleet(**wanted), as_json=chosen["as_json"])


def _run(fleet: Fleet, *, as_json: bool) -> int:
    import msgspec

    from understudy.cli.client import FAILED
    from understudy.testing.fleet import measure
    from understudy.testing.postgres import throwaway_database, throwaway_server

    began = time.monotonic()

    def tell(part: float, tasks: int) -> None:
        past_s = time.monotonic() - began
        left_s = past_s / part - past_s
        click.echo(f"{part:4.0%}: {tasks} tasks, {past_s:.0f} s, {left_s:.0f} s to go", err=True)

    with throwaway_server() as server, throwaway_database(server) as dsn:
        answer = measure(dsn, fleet, tell)
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(answer)))
    else:
        show(answer)
    return FAILED if answer.violations else 0


def show(answer: Answer) -> None:
    click.secho(
        f"{answer.machines} machines in {answer.workspaces} workspaces, {answer.nodes} nodes,"
        f" {answer.days:g} days from seed {answer.seed}: {answer.tasks} runs of {answer.asked}"
        f" tasks in {answer.wall_s:.0f} s (time x {answer.times_real:.0f})",
        bold=True,
    )
    _show_counts("how runs ended", answer.ends)
    _show_times("queueing, until", answer.queueing_s)
    _show_times("recovery from", answer.recovery_s)
    _show_counts("lost to a fault, without a next attempt", answer.unrecovered)
    _show_counts("faults", answer.faults)
    _show_counts("statements", answer.statements.by_name)
    _show_facts(answer)
    for violation in answer.violations:
        click.secho(f"violated: {violation}", fg="red")
    click.echo("\nwhat is coarser than in a real fleet:")
    for sentence in answer.coarse:
        click.echo(f"  {sentence}")


def _show_facts(answer: Answer) -> None:
    said, agent, full = answer.statements, answer.busiest_agent, answer.agent_at_limit
    machine = answer.busiest_machine
    click.echo(
        f"statements: {said.per_s:g} a second, {said.peak_minute_per_s:g} in the busiest minute,"
        f" {said.per_task:g} for each run"
    )
    click.echo(
        f"busiest agent: {agent.name}, {agent.part:.0%} of its limit on average;"
        f" {full.name} is at its limit {full.part:.0%} of the time"
    )
    click.echo(
        f"busiest machine: {machine.name}, {machine.part:.0%} of its slots while it is on;"
        f" all: {answer.machines_busy:.0%}"
    )
    click.echo(f"laws checked: {'; '.join(answer.laws)}: {len(answer.violations)} violations")


def _show_times(name: str, found: Mapping[str, Times]) -> None:
    rows = [
        (what, each.count, *(f"{s:,.1f} s" for s in (each.p50, each.p90, each.p99, each.max)))
        for what, each in found.items()
    ]
    show_table([name, "runs", "p50", "p90", "p99", "max"], rows, empty=f"{name}: none")


def _show_counts(name: str, found: Mapping[str, int]) -> None:
    rows = [(what, f"{count:,}") for what, count in found.items()]
    show_table([name, "how many"], rows, empty=f"{name}: none")
