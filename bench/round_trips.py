"""Store round trips: our driver against synchronous psycopg and asyncio + asyncpg.

Each driver lives in a process of its own, so that none pays for what another imports. They take
turns, trip by trip, and a ratio compares two neighbours in the same round: what else the machine
does changes slowly compared to that.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import Final

import msgspec
import psycopg

from bench.installation import ROOT
from bench.trips.orders import TABLES, TRIPS, Order, Timing, Trip
from understudy.store.embedded import EmbeddedServer

FLOOR: Final = "psycopg"
DRIVERS: Final[Mapping[str, tuple[str, ...]]] = {
    FLOOR: ("bench.trips.with_psycopg",),
    "understudy": ("bench.trips.with_understudy", "connection"),
    "its pool": ("bench.trips.with_understudy", "pool"),
    "asyncpg": ("bench.trips.with_asyncpg",),
}
WARM_UP_S: Final = 0.05


@dataclass(frozen=True)
class Compared:
    """Medians over the rounds; a ratio is the median of each round's ratio to psycopg."""

    wall_us: float
    cpu_us: float
    wall_ratio: float
    cpu_ratio: float


def measure(
    server: EmbeddedServer, *, rounds: int, trip_s: float
) -> dict[Trip, dict[str, Compared]]:
    server.ensure_database("round_trips")
    dsn = server.dsn("round_trips")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(TABLES)
    timings: dict[tuple[Trip, str], list[Timing]] = {}
    with ExitStack() as stack:
        drivers = {
            name: stack.enter_context(_driver(dsn, number, name))
            for number, name in enumerate(DRIVERS)
        }
        for trip, process in product(TRIPS, drivers.values()):
            _ask(process, Order(trip, WARM_UP_S))
        for _ in range(rounds):
            for trip, (name, process) in product(TRIPS, drivers.items()):
                timings.setdefault((trip, name), []).append(_ask(process, Order(trip, trip_s)))
    return {
        trip: {name: _compared(timings[trip, name], timings[trip, FLOOR]) for name in DRIVERS}
        for trip in TRIPS
    }


@contextmanager
def _driver(dsn: str, number: int, name: str) -> Iterator[subprocess.Popen[bytes]]:
    module, *more = DRIVERS[name]
    process = subprocess.Popen(
        [sys.executable, "-m", module, dsn, str(number), *more],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        yield process  # Leaving closes its stdin, which ends it.


def _ask(process: subprocess.Popen[bytes], order: Order) -> Timing:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(msgspec.json.encode(order) + b"\n")
    process.stdin.flush()
    return msgspec.json.decode(process.stdout.readline(), type=Timing)


def _compared(own: list[Timing], floor: list[Timing]) -> Compared:
    pairs = list(zip(own, floor, strict=True))
    return Compared(
        wall_us=median(each.wall_us for each in own),
        cpu_us=median(each.cpu_us for each in own),
        wall_ratio=median(one.wall_us / other.wall_us for one, other in pairs),
        cpu_ratio=median(one.cpu_us / other.cpu_us for one, other in pairs),
    )
