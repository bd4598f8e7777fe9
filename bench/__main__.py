"""`make bench`: Understudy's speed, as ratios within one run. Nothing is asserted."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

import click
import msgspec
import trio

from bench import idle, lifecycles, machine, past, report, round_trips, starts, stream
from bench.installation import durable_server
from understudy.store.binaries import find_binaries


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    trip_rounds: int
    trip_s: float
    plain_starts: int
    repository_starts: int
    life_rounds: int
    life_s: int
    past_tasks: int
    past_rounds: int
    stream_mb: int
    idle_s: float
    keepers: int


FULL: Final = Extent(
    trip_rounds=9,
    trip_s=0.2,
    plain_starts=40,
    repository_starts=15,
    life_rounds=3,
    life_s=3,
    past_tasks=1_000_000,
    past_rounds=2000,
    stream_mb=100,
    idle_s=60,
    keepers=10,
)
QUICK: Final = Extent(
    trip_rounds=3,
    trip_s=0.1,
    plain_starts=8,
    repository_starts=0,
    life_rounds=1,
    life_s=2,
    past_tasks=50_000,
    past_rounds=500,
    stream_mb=10,
    idle_s=15,
    keepers=1,
)


@click.command()
@click.option("--quick", is_flag=True, help="Within a minute, and rougher.")
@click.option("--json", "as_json", is_flag=True, help="Also one JSON object, as the last line.")
def main(*, quick: bool, as_json: bool) -> None:
    """Print how fast Understudy is on this machine."""
    extent, began = QUICK if quick else FULL, time.perf_counter()
    _show(_machine())
    with durable_server() as server:
        trips = round_trips.measure(server, rounds=extent.trip_rounds, trip_s=extent.trip_s)
        _show(report.round_trips(trips, extent.trip_rounds))
        started = trio.run(
            partial(
                starts.measure,
                server,
                plain=extent.plain_starts,
                in_repository=extent.repository_starts,
            )
        )
        _show(report.starts(started))
        lived = trio.run(
            partial(lifecycles.measure, server, rounds=extent.life_rounds, run_s=extent.life_s)
        )
        _show(report.lifecycles(lived, extent.life_rounds))
        remembered = trio.run(
            partial(past.measure, server, tasks=extent.past_tasks, rounds=extent.past_rounds)
        )
        _show(report.past(remembered, extent.past_tasks, extent.past_rounds))
        streamed = trio.run(partial(stream.measure, server, mb=extent.stream_mb))
        _show(stream.sentences(streamed))
        rested = trio.run(
            partial(idle.measure, server, runtimes=10, idle_s=extent.idle_s, keepers=extent.keepers)
        )
        _show(idle.sentences(rested))
    _show([f"Took {time.perf_counter() - began:.0f} s; the load is {machine.load():.1f} now."])
    if as_json:
        found = {"round_trips": trips, "starts": started, "lifecycles": lived}
        found["past"], found["stream"], found["idle"] = remembered, streamed, rested
        print(msgspec.json.encode({"cores": machine.cores(), **found}).decode())


def _machine() -> Iterable[str]:
    yield f"{machine.cores()} cores, {platform.platform()}, Python {platform.python_version()}"
    yield f"PostgreSQL {find_binaries().version}, durable (fsync and synchronous_commit on)"
    yield f"Load before we began: {machine.load():.1f}. Compare ratios, not runs."


def _show(lines: Iterable[str]) -> None:
    print("\n".join(lines), end="\n\n", flush=True)


if __name__ == "__main__":
    main(prog_name="python -m bench")
