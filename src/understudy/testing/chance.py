"""What goes wrong, and where: each fault hangs on its own site, not on a common generator.

The n-th visit of a site draws from (seed, site, n) alone. So to take one fault away leaves the
others where they are, and a failing seed can be cut down to the few that matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar, final

T = TypeVar("T")


@final
class Chance:
    def __init__(self, seed: int, muted: frozenset[str] = frozenset()) -> None:
        self._seed = seed
        self._muted = muted
        self._visits: Counter[str] = Counter()
        self.is_over = False
        self.struck: list[str] = []
        """The faults that happened, as `site#n`: what `muted` takes."""

    def strikes(self, site: str, probability: float) -> bool:
        drawn, name = self._draw(site)
        if self.is_over or drawn >= probability or name in self._muted:
            return False
        self.struck.append(name)
        return True

    def pick(self, site: str, options: Sequence[T]) -> T:
        return options[int(self._draw(site)[0] * len(options))]

    def _draw(self, site: str) -> tuple[float, str]:
        name = f"{site}#{self._visits[site]}"
        self._visits[site] += 1
        digest = blake2b(f"{self._seed}/{name}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64, name
