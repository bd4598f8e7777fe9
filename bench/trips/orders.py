"""How a driver's process is told what to measure: a line of JSON in, a line of JSON out."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Final, Literal, get_args

import msgspec

Trip = Literal["select", "update", "rows", "transaction", "batch"]
TRIPS: Final[tuple[Trip, ...]] = get_args(Trip)
BATCH: Final = 100

TABLES: Final = """
create table counters (id int primary key, n int not null) with (fillfactor = 50);
insert into counters select id, 0 from generate_series(0, 999) id;
create table people as
  select id, gen_random_uuid() as key, 'Person ' || id as name, clock_timestamp() as seen_at,
         id * 1000::bigint as score
  from generate_series(1, 100) id;
analyze;
"""

SELECT: Final = "select $1::int"
UPDATE: Final = "update counters set n = n + $1::int where id = $2::int returning n"
ROWS: Final = "select id, key, name, seen_at, score from people where id > $1::int"


class Order(msgspec.Struct):
    trip: Trip
    seconds: float


class Timing(msgspec.Struct):
    """Of one round trip; `cpu_us` is this process alone."""

    wall_us: float
    cpu_us: float


class Stopwatch:
    def __init__(self) -> None:
        self._times = 0
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()

    def count(self, seconds: float) -> Iterator[int]:
        """Count until the time is up, from 0; at least once."""
        times = 0
        while not times or time.perf_counter() - self._wall_s < seconds:
            yield times
            times += 1
        self._times = times

    def timing(self) -> Timing:
        times, wall_s = self._times, time.perf_counter() - self._wall_s
        cpu_s = time.process_time() - self._cpu_s
        return Timing(wall_s / times * 1e6, cpu_s / times * 1e6)


def orders() -> Iterator[Order]:
    """Until the other end hangs up. Blocks: nothing else runs in this process meanwhile."""
    for line in sys.stdin:
        yield msgspec.json.decode(line, type=Order)


def answer(timing: Timing) -> None:
    print(msgspec.json.encode(timing).decode(), flush=True)


def rows_of(driver: int) -> Sequence[int]:
    """A hundred rows of its own: no two drivers touch the same page's versions of a row."""
    return range(driver * BATCH, (driver + 1) * BATCH)
