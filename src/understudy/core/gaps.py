"""Which ids of a sequence are final, though their transactions commit in any order.

A missing id belongs to a transaction that is still open, or to one that was rolled back. At the
moment a gap is met, all ids below the newest visible one have been drawn by transactions that have
begun; once every transaction that had begun then has ended, what is still missing will never come.
Pure; `store/events.py` reads what this decides on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Gap:
    """`seen` was visible when the gap was met; no transaction from `next_new` on had begun then."""

    seen: int
    next_new: int


@dataclass
class Finality:
    """`cursor`: all ids up to it are delivered, or will never be."""

    cursor: int
    gap: Gap | None = None

    def settle(self, ids: Sequence[int], *, oldest_open: int, next_new: int) -> int:
        """Move the cursor over `ids`, the visible ones behind it in order, as far as is final."""
        if self.gap is not None and oldest_open >= self.gap.next_new:
            self.cursor, self.gap = max(self.cursor, self.gap.seen), None
        before = self.cursor
        for each in ids:
            if each > self.cursor + 1:
                break
            self.cursor = max(self.cursor, each)
        if not ids or self.cursor >= ids[-1]:
            self.gap = None
        elif self.gap is None or self.cursor > before:
            self.gap = Gap(seen=ids[-1], next_new=next_new)
        return self.cursor
