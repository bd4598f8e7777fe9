"""Of the faults that struck, the few that matter: delta debugging, by muting all others.

Faults hang on their sites, so to mute one leaves the others where they are. The histories are still
different ones, and many with fewer faults are clean by accident. So the kinds come first: a few of
them may strike wherever they do in the new history. Of what struck then, places are taken away, and
in the end single faults. What counts is that the same law is broken with fewer faults than before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, TypeAlias, final

import msgspec
import trio

from understudy.testing import faults
from understudy.testing.trial import Conduct, Outcome, Trial, kind, law, place

BOUND_S: Final = 60.0
HALVES: Final = 2

Names: TypeAlias = tuple[str, ...]


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
    search = _Search(msgspec.structs.replace(trial, with_log=True), found, lanes)
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
    known: dict[Trial, Outcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.law = law(self.best.violations[0])

    async def run(self) -> None:
        everything, nothing = self._only(_faults(self.best)), self._only(())
        await self._try_all([everything, nothing][: len(self.lanes)])
        self.repeats = self._breaks(everything)
        if self.repeats and not await self._first_step([nothing]):
            await self._reduce(_kinds, self._of_kinds)
            await self._reduce(_places, self._at)
            await self._reduce(_faults, self._only)

    async def _reduce(
        self, parts: Callable[[Outcome], Names], trial: Callable[[Names], Trial]
    ) -> None:
        """Each half of the parts alone; all without each quarter; all without each eighth."""
        pieces = HALVES
        while (names := parts(self.best)) and pieces // 2 < len(names):
            alone = [*_split(names, pieces)]
            without = [tuple(n for n in names if n not in piece) for piece in alone]
            tries = [trial(each) for each in (alone if pieces == HALVES else without)]
            pieces = max(HALVES, pieces - 1) if await self._first_step(tries) else pieces * 2

    def _of_kinds(self, kinds: Names) -> Trial:
        return msgspec.structs.replace(self.trial, kinds=kinds)

    def _at(self, places: Names) -> Trial:
        return self._only(tuple(each for each in self.best.faults if place(each) in places))

    def _only(self, names: Names) -> Trial:
        return msgspec.structs.replace(self.trial, only=names)

    async def _first_step(self, candidates: Sequence[Trial]) -> bool:
        """Whether one breaks the law with fewer faults; as many at once as there are lanes."""
        for start in range(0, len(candidates), len(self.lanes)):
            batch = candidates[start : start + len(self.lanes)]
            await self._try_all(batch)
            broken = [self.known[trial] for trial in batch if self._breaks(trial)]
            shortest = min([self.best, *broken], key=lambda outcome: len(outcome.faults))
            if shortest is not self.best:
                self.best = shortest
                return True
        return False

    def _breaks(self, trial: Trial) -> bool:
        return self.law in map(law, self.known[trial].violations)

    async def _try_all(self, candidates: Sequence[Trial]) -> None:
        async with trio.open_nursery() as nursery:
            for conduct, trial in zip(self.lanes, candidates, strict=False):
                nursery.start_soon(self._try, conduct, trial)

    async def _try(self, conduct: Conduct, trial: Trial) -> None:
        if trial not in self.known:
            self.known[trial] = await conduct(trial)


def _kinds(outcome: Outcome) -> Names:
    """In the order of the table, where those that are alike stand together."""
    order = [*faults.ALL]
    struck = set(map(kind, outcome.faults))
    return tuple(sorted(struck, key=lambda name: order.index(name) if name in order else -1))


def _places(outcome: Outcome) -> Names:
    return tuple(sorted(set(map(place, outcome.faults))))


def _faults(outcome: Outcome) -> Names:
    return tuple(outcome.faults)


def _split(names: Names, pieces: int) -> Iterator[Names]:
    """As even as can be, the last first: what is long ago seldom matters."""
    pieces = min(pieces, len(names))
    cuts = [len(names) * number // pieces for number in range(pieces + 1)]
    for start, end in reversed([*pairwise(cuts)]):
        yield names[start:end]
