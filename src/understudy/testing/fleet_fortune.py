"""What a simulated fleet meets: when people work, what they ask for, how long it takes, what fails.

Times are seconds of the virtual clock, whose first midnight is a Thursday's. The rates of failures
are those of `faults.py`, here taken as times per machine (node, database) and day.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, final

from understudy.testing import faults

HOUR_S: Final = 3600.0
DAY_S: Final = 24 * HOUR_S
WEEK: Final = 7
FIRST_WEEKDAY: Final = 3
"""Of `virtual.EPOCH`; Monday is 0."""
SATURDAY: Final = 5

MEDIAN_S: Final = 600.0
SIGMA: Final = math.log(7200 / MEDIAN_S) / 2.326
"""So that one run of a hundred takes two hours."""
PREPARING_S: Final = 4.0
RHYTHM: Final = (
    0.02, 0.02, 0.02, 0.02, 0.02, 0.02, 0.1, 0.4, 0.9, 1.0, 1.0, 1.0,
    0.6, 0.8, 1.0, 1.0, 1.0, 0.9, 0.5, 0.2, 0.1, 0.1, 0.05, 0.05,
)  # fmt: skip
"""How busy people are, by the hour."""
WEEKEND: Final = 0.1
ALWAYS_ON: Final = 0.2
"""Of the machines: they stand in a rack. The others are laptops."""
REASONS: Final = (
    (0.05, "agent_error"),
    (0.02, "provider_overloaded"),
    (0.01, "provider_network"),
    (0.01, "no_result"),
)
MACHINE_KINDS: Final = (
    faults.DAEMON_KILLED,
    faults.ASLEEP,
    faults.ASLEEP_LONG,
    faults.PARTITION,
    faults.POWER_CUT,
    faults.KEEPER_KILLED,
    faults.AGENT_KILLED,
)


@dataclass(frozen=True)
class Hours:
    """When a machine is on: around the clock, or from `opens_s` to `closes_s` on working days."""

    opens_s: float
    closes_s: float
    is_always_on: bool

    def next_change(self, now: float) -> tuple[bool, float]:
        """Whether it is on, and until when."""
        if self.is_always_on:
            return True, math.inf
        day = now // DAY_S
        opens_at, closes_at = day * DAY_S + self.opens_s, day * DAY_S + self.closes_s
        if is_working_day(now) and now < closes_at:
            return (True, closes_at) if now >= opens_at else (False, opens_at)
        day += 1
        while not is_working_day(day * DAY_S):
            day += 1
        return False, day * DAY_S + self.opens_s


def is_working_day(now: float) -> bool:
    return (now // DAY_S + FIRST_WEEKDAY) % WEEK < SATURDAY


def busyness(now: float) -> float:
    """At most 1."""
    busy = RHYTHM[int(now % DAY_S // HOUR_S)]
    return busy if is_working_day(now) else busy * WEEKEND


def hours(dice: Random) -> Hours:
    opens_s = dice.uniform(7, 10) * HOUR_S
    return Hours(opens_s, opens_s + dice.uniform(8, 11) * HOUR_S, dice.random() < ALWAYS_ON)


def next_arrival(now: float, per_day: float, dice: Random) -> float:
    """Of a Poisson process with people's rhythm: what would come in their rest does not."""
    most_per_s = per_day / (sum(RHYTHM) * HOUR_S)
    while True:
        now += dice.expovariate(most_per_s)
        if dice.random() < busyness(now):
            return now


def work_s(dice: Random) -> float:
    return dice.lognormvariate(math.log(MEDIAN_S), SIGMA)


def preparing_s(dice: Random) -> float:
    return dice.lognormvariate(math.log(PREPARING_S), 1.0)


def reason(dice: Random) -> str | None:
    """How a run fails that no fault befalls; None: it succeeds."""
    drawn = dice.random()
    for share, slug in REASONS:
        if (drawn := drawn - share) < 0:
            return slug
    return None


@final
@dataclass(frozen=True)
class Blow:
    """What strikes, when, and for how many seconds."""

    kind: faults.Kind
    at: float
    lasts_s: float


def next_blow(now: float, kinds: Sequence[faults.Kind], dice: Random) -> Blow:
    """`now` may be time on a clock that stands while the machine is off."""
    per_day = sum(kind.rate for kind in kinds)
    at = now + dice.expovariate(per_day / DAY_S)
    kind = dice.choices(kinds, [kind.rate for kind in kinds])[0]
    return Blow(kind, at, _lasts_s(kind, dice))


def _lasts_s(kind: faults.Kind, dice: Random) -> float:
    if kind is faults.DAEMON_KILLED and dice.random() < faults.DAEMON_LATE.rate:
        return dice.uniform(60, 1200)
    shortest_s, longest_s = LASTS_S.get(kind.name, (0.0, 0.0))
    return math.exp(dice.uniform(math.log(shortest_s), math.log(longest_s))) if longest_s else 0.0


LASTS_S: Final = {
    faults.DAEMON_KILLED.name: (1, 10),
    faults.ASLEEP.name: (30, 1800),
    faults.ASLEEP_LONG.name: (HOUR_S, 8 * HOUR_S),
    faults.PARTITION.name: (10, 1800),
    faults.POWER_CUT.name: (60, 600),
    faults.NODE_KILLED.name: (2, 120),
    faults.NODE_WITHOUT_DATABASE.name: (5, 160),
    faults.DATABASE_RESTART.name: (2, 30),
}
"""The shortest and the longest, all orders of magnitude between them alike."""
