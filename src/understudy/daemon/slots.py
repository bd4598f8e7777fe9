"""How many runs at once (R9.6): free slots are the server's credit, a run holds one to its end."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID


class Slots:
    """Holders are runs; `freed` hears of each one that is over."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.freed: Callable[[UUID], None] = lambda _: None
        self._held: set[UUID] = set()

    @property
    def free(self) -> int:
        """Never below zero: runs found again after a restart are kept whatever their number."""
        return max(0, self.total - len(self._held))

    @property
    def is_idle(self) -> bool:
        return not self._held

    def holds(self, task_id: UUID) -> bool:
        return task_id in self._held

    def take(self, task_id: UUID) -> None:
        self._held.add(task_id)

    def release(self, task_id: UUID) -> None:
        if task_id in self._held:
            self._held.discard(task_id)
            self.freed(task_id)
