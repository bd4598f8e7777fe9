"""Of the faults that struck, the few that matter: delta debugging, by muting all others.

Faults hang on their sites, so to mute one leaves the others where they are. The histories are still
different ones: what counts is that the same law is broken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias, final

import msgspec
import trio

from understudy.testing.trial import Conduct, Outcome, Trial, kind, law

BOUND_S: Final = 60.0
TAILS: Final = (4, 16, 48)
"""So many last faults before the violation are tried first: what is long ago seldom matters."""

Faults: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class Shrunk:
    outcome: Outcome
    repeats: bool
    """Whether the law was broken a second time; if not, the history has a source besides its seed,
    or the time was up before the answer came."""
    tries: int


async def shrink(
    trial: Trial, found: Outcome, lanes: Sequence[Conduct], *, bound_s: float = BOUND_S
) -> Shrunk:
    """The history with the fewest faults that was found in `bound_s`; tries run on all lanes."""
    search = _Search(trial, found, lanes)
    with trio.move_on_after(bound_s):
        await search.run()
    return Shrunk(search.best, search.repeats, len(search.known))


@final
@dataclass
class _Search:
    trial: Trial
    best: Outcome
    lanes: Sequence[Conduct]
    repeats: bool = False
    known: dict[Faults, Outcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.law = law(self.best.violations[0])

    async def run(self) -> None:
        everything: Faults = tuple(self.best.faults)
        self.repeats = await self._first_broken([everything]) is not None
        if self.repeats:
            await self._drop_kinds()
            struck: Faults = tuple(self.best.faults)
            tails = [struck[-size:] for size in TAILS if size < len(struck)]
            await self._first_broken([(), *tails])
            await self._narrow()
            await self._spare()

    async def _drop_kinds(self) -> None:
        """Half of the kinds, then quarters, then one by one: most have nothing to do with it."""
        size = len(set(map(kind, self.best.faults))) // 2
        while size:
            struck: Faults = tuple(self.best.faults)
            kinds = sorted(set(map(kind, struck)))
            chunks = [set(kinds[start : start + size]) for start in range(0, len(kinds), size)]
            without = [tuple(f for f in struck if kind(f) not in chunk) for chunk in chunks]
            if await self._first_broken(without) is None:
                size //= 2

    async def _narrow(self) -> None:
        """From the front, one by one, the faults that those behind them cannot do without.

        With k of n that matter, k searches among n; ddmin's ever smaller pieces take twice as long.
        """
        needed: Faults = ()
        rest = tuple(self.best.faults)
        while rest and await self._first_broken([needed]) is None:
            rest = await self._shortest_tail(needed, rest)
            needed, rest = (*needed, rest[0]), rest[1:]

    async def _shortest_tail(self, needed: Faults, rest: Faults) -> Faults:
        """With what is needed already. Only if it is all of `rest`, it has not been tried."""
        breaks, holds = 0, len(rest)
        while holds - breaks > 1:
            width, parts = holds - breaks, len(self.lanes) + 1
            cuts = sorted({breaks + max(1, width * part // parts) for part in range(1, parts)})
            tails = {needed + rest[cut:]: cut for cut in reversed(cuts)}
            broken = await self._first_broken(list(tails))
            breaks = breaks if broken is None else tails[broken]
            holds = min([cut for cut in cuts if cut > breaks], default=holds)
        return rest[breaks:]

    async def _spare(self) -> None:
        """Until there is none left that can be spared."""
        while True:
            struck = tuple(self.best.faults)
            without = [struck[:index] + struck[index + 1 :] for index in range(len(struck))]
            if await self._first_broken(without) is None:
                return

    async def _first_broken(self, candidates: Sequence[Faults]) -> Faults | None:
        """The first of them under which the law is broken; as many at once as there are lanes."""
        for start in range(0, len(candidates), len(self.lanes)):
            batch = candidates[start : start + len(self.lanes)]
            await self._try_all(batch)
            for only in filter(self._is_broken, batch):
                self.best = min(
                    self.best, self.known[only], key=lambda outcome: len(outcome.faults)
                )
                return only
        return None

    def _is_broken(self, only: Faults) -> bool:
        """A world that lets others strike is no step forward, whatever it broke."""
        outcome = self.known[only]
        is_no_longer = len(outcome.faults) <= len(only)
        return is_no_longer and self.law in map(law, outcome.violations)

    async def _try_all(self, candidates: Sequence[Faults]) -> None:
        async with trio.open_nursery() as nursery:
            for conduct, only in zip(self.lanes, candidates, strict=False):
                nursery.start_soon(self._try, conduct, only)

    async def _try(self, conduct: Conduct, only: Faults) -> None:
        if only not in self.known:
            trial = msgspec.structs.replace(self.trial, only=only, with_log=True)
            self.known[only] = await conduct(trial)
