"""What goes wrong, and where: each fault hangs on its own site, not on a common generator.

The n-th visit of a site draws from (seed, site, n) alone. So to take one fault away leaves the
others where they are, and a failing seed can be cut down to the few that matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import TypeVar, final

import trio

from understudy.testing.faults import Kind

T = TypeVar("T")


@final
class Chance:
    """`muted` are faults by name, `kinds` the only kinds that strike; None: all. `note` hears each
    of those that do."""

    def __init__(
        self,
        seed: int,
        muted: frozenset[str] = frozenset(),
        kinds: frozenset[str] | None = None,
        note: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._note = note
        self._seed = seed
        self._muted = muted
        self._kinds = kinds
        self._visits: dict[str, int] = {}
        self.is_over = False
        self.struck: list[str] = []
        """The faults that happened, as `place/kind#n`: what `muted` takes."""

    def at(self, place: str) -> str:
        """The place in this second: what happens there often is not counted from the beginning, so
        that a fault that is taken away does not move all that follow."""
        return f"{place}@{trio.current_time():.0f}"

    def befalls(self, place: str, kind: Kind) -> bool:
        return self.strikes(f"{place}/{kind.name}", kind.rate)

    def strikes(self, site: str, probability: float) -> bool:
        if self.is_over:
            return False
        drawn, name = self._draw(site)
        if drawn >= probability or not self._may(site, name):
            return False
        self.struck.append(name)
        self._note(name)
        return True

    def _may(self, site: str, name: str) -> bool:
        is_wanted = self._kinds is None or site.rpartition("/")[2] in self._kinds
        return is_wanted and name not in self._muted

    def pick(self, site: str, options: Sequence[T]) -> T:
        return options[int(self._draw(site)[0] * len(options))]

    def _draw(self, site: str) -> tuple[float, str]:
        visit = self._visits.get(site, 0)
        self._visits[site] = visit + 1
        name = f"{site}#{visit}"
        digest = blake2b(f"{self._seed}/{name}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64, name
