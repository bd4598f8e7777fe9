"""torture: whole installations under faults, in virtual time, from seeds that replay them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from understudy.cli.fleet import fleet_options, run_fleet


@dataclass(frozen=True, kw_only=True)
class Options:
    seeds: int
    minutes: float | None
    first: int | None
    seed: int | None
    kinds: tuple[str, ...] | None
    jobs: int | None
    is_twice: bool
    is_patient: bool
    with_trace: bool
    replay: Path | None
    keep: bool
    as_json: bool
    world: str | None


def _split(context: click.Context, option: click.Parameter, value: str | None) -> Any:
    return None if value is None else tuple(filter(None, value.split(",")))


@click.command()
@click.option("--seeds", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--minutes", type=click.FloatRange(min=0), help="As many seeds as fit; not --seeds.")
@click.option("--first", type=click.IntRange(min=0), help="The first seed; else a fresh one.")
@click.option("--seed", type=click.IntRange(min=0), help="This one alone.")
@click.option("--faults", "kinds", callback=_split, help="KIND,KIND…: these alone strike.")
@click.option("--jobs", type=click.IntRange(min=1), help="Processes; else one for each core.")
@click.option("--twice", "is_twice", is_flag=True, help="Each seed in two processes; compare.")
@click.option("--all", "is_patient", is_flag=True, help="Do not stop at the first violation.")
@click.option("--trace", "with_trace", is_flag=True, help="With --seed: its whole history.")
@click.option(
    "--replay",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The history of a file: torture-SEED.json, or a regression's.",
)
@click.option("--keep", is_flag=True, help="Make the failing seed a regression of this project.")
@click.option("--json", "as_json", is_flag=True, help="The last line is one object.")
@click.option("--world", hidden=True, help="Another module than ours.")
@fleet_options
def torture(**chosen: Any) -> None:
    """Server nodes, daemons, agents and a real PostgreSQL in virtual time, attacked at every step.

    A seed decides all of it, and replays it. At a violation the faults are cut down to the few that
    matter. The exit code is 1 at a violation, 130 after Ctrl-C, and 0 only if all is well.

    With --fleet it answers what a fleet of that size waits for, and costs the database.
    """
    if (code := run_fleet(chosen)) is not None:
        sys.exit(code)
    import trio

    from understudy.cli.torturer import Torturer

    options = Options(**chosen)
    if options.with_trace and options.seed is None:
        raise click.UsageError("--trace shows one history: say --seed")
    sys.exit(trio.run(Torturer(options).run))
