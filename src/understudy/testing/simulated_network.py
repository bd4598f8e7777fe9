"""What befalls connections in a simulated world: drawn for each when it is made."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from math import inf
from typing import Final, Literal, final

import trio

from understudy.testing import faults
from understudy.testing.chance import Chance
from understudy.testing.network import (
    Answer,
    Attempt,
    ConnectFault,
    Crossing,
    Cut,
    Delay,
    Faults,
    Refuse,
    Vanish,
    WireFault,
)
from understudy.testing.streams import Direction

CROSSINGS: Final = (1, 2, 3, 4, 6, 9, 14, 25, 50, 100, 200)
"""Before which a fault strikes, counted in both directions."""
KEPT_BYTES: Final = (0, 1, 10, 100, 1000)
LATE_S: Final = (0.25, 1.0, 5.0, 20.0, 45.0, 70.0)
LATENCY_S: Final = 0.01

Way = Literal["up", "down", "both"]


@dataclass
class Partition:
    """Bytes are lost, or wait for its end as TCP sends them again."""

    way: Way
    until: float
    is_patient: bool


@dataclass
class Plan:
    """Of one connection."""

    crossings: int = 0
    faults: dict[int, WireFault] = field(default_factory=dict)
    vanishes: dict[Direction, int] = field(default_factory=dict)
    """From which crossing on nothing gets through that way."""
    refusal: Answer | None = None
    loses_answer: bool = False


@final
class Weather(Faults):
    """`partitions`: by the name of the machine that is cut off."""

    def __init__(self, chance: Chance) -> None:
        self._chance = chance
        self._plans = defaultdict[int, Plan](Plan)
        self.partitions: dict[str, Partition] = {}

    def on_connect(self, attempt: Attempt) -> ConnectFault | None:
        site = self._chance.at(f"{attempt.client}>{attempt.host}")
        if self._partition(attempt.client) is not None:
            return Vanish()
        if self._chance.befalls(site, faults.REFUSED):
            return Refuse()
        if self._chance.befalls(site, faults.VANISHED):
            return Vanish()
        return None

    def on_crossing(self, crossing: Crossing) -> WireFault | None:
        plan = self._plans[crossing.connection_id]
        if plan.crossings == 0:
            self._draw(plan, crossing.attempt)
        plan.crossings += 1
        if (cut := self._partition(crossing.attempt.client)) is not None and (
            cut.way in {"both", crossing.direction}
        ):
            return Delay(cut.until - trio.current_time()) if cut.is_patient else Vanish()
        return None if self._chance.is_over else self._planned(plan, crossing)

    def _planned(self, plan: Plan, crossing: Crossing) -> WireFault | None:
        if crossing.direction == "up" and plan.crossings == 1 and plan.refusal is not None:
            return plan.refusal
        if crossing.direction == "down" and plan.loses_answer:
            return Cut()
        if plan.crossings >= plan.vanishes.get(crossing.direction, inf):
            return Vanish()
        return plan.faults.get(plan.crossings)

    def _draw(self, plan: Plan, attempt: Attempt) -> None:
        site = self._chance.at(f"{attempt.client}>{attempt.host}")
        befalls, pick = self._chance.befalls, self._chance.pick
        if befalls(site, faults.DELAYED):
            for _ in range(3):
                plan.faults[pick(f"{site}/when", CROSSINGS)] = Delay(pick(f"{site}/late", LATE_S))
        if befalls(site, faults.CUT):
            plan.faults[pick(f"{site}/when", CROSSINGS)] = Cut(pick(f"{site}/kept", KEPT_BYTES))
        halves: tuple[tuple[Direction, faults.Kind], ...] = (
            ("up", faults.HALF_OPEN_UP),
            ("down", faults.HALF_OPEN_DOWN),
        )
        for direction, half in halves:
            if befalls(site, half):
                plan.vanishes[direction] = pick(f"{site}/when", CROSSINGS)
        plan.loses_answer = befalls(site, faults.LOST_ANSWER)
        for status, refused in (
            (502, faults.BAD_GATEWAY),
            (503, faults.UNAVAILABLE),
            (429, faults.TOO_MANY),
        ):
            if befalls(site, refused):
                plan.refusal = Answer(status)

    def _partition(self, client: str) -> Partition | None:
        cut = self.partitions.get(client)
        if cut is not None and cut.until > trio.current_time():
            return cut
        return None

    def cut_off(self, name: str, way: Way, seconds: float, *, is_patient: bool) -> None:
        until = inf if seconds == inf else trio.current_time() + seconds
        self.partitions[name] = Partition(way, until, is_patient)
