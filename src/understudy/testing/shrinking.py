"""Of the faults that struck, the few that matter: delta debugging, by muting all others.

Faults hang on their sites, so to mute one leaves the others where they are. The histories are still
different ones, and many with fewer faults are clean by accident. So the kinds come first: a few of
them may strike wherever they do in the new history. Of what struck then, places are taken away, and
in the end single faults. What counts is that the same law is broken with fewer faults than before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
            await self._pick_kinds()
            await self._drop(_places, self._at)
            await self._drop(_faults, self._only)

    async def _pick_kinds(self) -> None:
        """Each half of them alone; each quarter alone, and all without it; then eighths.

        What was no step in a larger history may be one in a smaller: each begins with halves again.
        """
        pieces = HALVES
        while (kinds := _kinds(self.best)) and pieces // 2 < len(kinds):
            alone, without = _split(kinds, pieces)
            step = await self._first_step([self._of_kinds(each) for each in (*alone, *without)])
            pieces = HALVES if step else pieces * 2

    async def _drop(
        self, parts: Callable[[Outcome], Names], trial: Callable[[Names], Trial]
    ) -> None:
        """Half of the parts, then quarters, then eighths, until none can be spared."""
        pieces = HALVES
        while (names := parts(self.best)) and pieces // 2 < len(names):
            _, without = _split(names, pieces)
            step = await self._first_step([trial(each) for each in without])
            pieces = max(HALVES, pieces - 1) if step else pieces * 2

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
    """In the order of the table, where those that are alike stand together; then the others."""
    struck = set(map(kind, outcome.faults))
    return (*filter(struck.__contains__, faults.ALL), *sorted(struck - faults.ALL.keys()))


def _places(outcome: Outcome) -> Names:
    return tuple(sorted(set(map(place, outcome.faults))))


def _faults(outcome: Outcome) -> Names:
    return tuple(outcome.faults)


def _split(names: Names, pieces: int) -> tuple[list[Names], list[Names]]:
    """Pieces as even as can be, the last first, since what is long ago seldom matters; and what is
    left without each."""
    pieces = min(pieces, len(names))
    cuts = [len(names) * number // pieces for number in range(pieces + 1)]
    alone = [names[start:end] for start, end in pairwise(cuts)][::-1]
    return alone, [tuple(name for name in names if name not in piece) for piece in alone]
