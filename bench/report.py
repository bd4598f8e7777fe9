"""The figures as a plain table, with what limits them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isnan
from typing import Final

from bench import machine
from bench.cost import MILLI, Run
from bench.lifecycles import Lifecycles
from bench.past import Move, Times
from bench.round_trips import Compared
from bench.starts import STEPS, Starts
from bench.trips.orders import BATCH, Trip

TRIP_NAMES: Final[dict[Trip, str]] = {
    "select": "select $1::int",
    "update": "update .. returning",
    "rows": "fetch 100 rows",
    "transaction": "transaction {update}",
    "batch": f"pipeline of {BATCH} updates",
}
BUSY: Final = 0.8
"""A core that works for four fifths of the time is what the others wait for."""


def round_trips(found: dict[Trip, dict[str, Compared]], rounds: int) -> Iterable[str]:
    names = list(next(iter(found.values())))
    yield f"Store round trips: us, one connection, medians of {rounds} interleaved rounds."
    yield "x: against synchronous psycopg in the same round. CPU is the client's own."
    yield ""
    yield from table(
        ["", "", *names], [line for trip in found for line in _trip(trip, found[trip])]
    )


def _trip(trip: Trip, by_driver: dict[str, Compared]) -> list[list[str]]:
    found = by_driver.values()
    return [
        [TRIP_NAMES[trip], "wall", *(f"{c.wall_us:.0f} x{c.wall_ratio:.2f}" for c in found)],
        ["", "CPU", *(f"{c.cpu_us:.0f} x{c.cpu_ratio:.2f}" for c in found)],
    ]


def starts(found: dict[str, Starts]) -> Iterable[str]:
    yield "From assign to the agent's process: ms since the request was sent, idle, one by one."
    yield "p99 of so few runs is close to the worst of them."
    for name, each in found.items():
        yield ""
        steps = each.steps
        rows = [
            [quantile, *(f"{getattr(steps[step], quantile):.0f}" for step in STEPS)]
            for quantile in ("p50", "p99")
        ]
        yield from table([f"{name}, {each.runs} runs", *STEPS], rows)
    yield ""
    yield "enqueued, claimed, accepted, completed: the rows' own times. answered: the HTTP request."
    yield "accepted: the directory is prepared; a keeper starts. process: `date` runs."


def lifecycles(found: Lifecycles, rounds: int) -> Iterable[str]:
    yield f"Lifecycles per second: claim, start, one message, complete; medians of {rounds} rounds."
    yield "CPU: ms per lifecycle. busy: cores at work, of the server and of all together."
    yield ""
    head = ["", "per s", "of pgbench 1", "of its best", "p50 ms", "p99 ms"]
    head += ["PostgreSQL", "server", "driver", "server busy", "all busy"]
    by_pgbench = {f"pgbench, {n} clients": run for n, run in found.pgbench.items()}
    by_websocket = {f"websocket, {n} runs at once": run for n, run in found.websocket.items()}
    rates = [run.per_s for run in found.pgbench.values()]
    rows = [_run(name, run, rates) for name, run in (by_pgbench | by_websocket).items()]
    yield from table(head, rows)
    yield ""
    if found.why_no_pgbench:
        yield f"No ratio: {found.why_no_pgbench}."
    best = max(found.websocket.values(), key=lambda run: run.per_s)
    yield f"What limits the websocket at its best: {bottleneck(best, machine.cores())}."


def past(found: dict[Move, Times], tasks: int, rounds: int) -> Iterable[str]:
    yield f"The same moves with nothing behind them and with {tasks:,} finished tasks: us,"
    yield f"medians of {rounds} in each database, taken in turns."
    yield ""
    rows = [
        [move, f"{times.young_us:.0f}", f"{times.old_us:.0f}", f"x{times.ratio:.2f}"]
        for move, times in found.items()
    ]
    yield from table(["", "empty", "long past", "ratio"], rows)


def _run(name: str, run: Run, pgbench: list[float]) -> list[str]:
    ratios = [f"x{run.per_s / rate:.2f}" for rate in (pgbench[0], max(pgbench))] if pgbench else []
    return [
        name,
        f"{run.per_s:.0f}",
        *(ratios or ["", ""]),
        f"{run.p50_ms:.1f}",
        f"{run.p99_ms:.1f}",
        *map(_ms, (run.postgres_ms, run.server_ms, run.driver_ms)),
        _ms(_busy(run, run.server_ms)),
        _ms(_busy(run, run.cpu_ms)),
    ]


def bottleneck(run: Run, cores: int) -> str:
    """In words, from who was busy."""
    server, together = _busy(run, run.server_ms), _busy(run, run.cpu_ms)
    if isnan(together):
        return "unknown, the kernel does not say what processes cost"
    shares = ", ".join(
        f"{name} {part / run.cpu_ms:.0%}"
        for name, part in (
            ("PostgreSQL", run.postgres_ms),
            ("server", run.server_ms),
            ("fake daemon", run.driver_ms),
        )
    )
    if server > BUSY:
        return f"the server's one thread, busy {server:.0%} of the time (CPU: {shares})"
    if together > BUSY * cores:
        return f"the CPU, {together:.1f} of {cores} cores busy ({shares})"
    return f"waiting, for commits or others: {together:.1f} of {cores} cores busy ({shares})"


def _busy(run: Run, cpu_ms: float) -> float:
    return cpu_ms * run.per_s / MILLI


def _ms(value: float) -> str:
    return "-" if isnan(value) else f"{value:.2f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip()
