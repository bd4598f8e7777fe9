"""The runtimes of one provider in one workspace: they share a queue, and take turns at looking.

A claim looks at the whole queue, whoever makes it: its answer says for whom something is left. So
at a change one of them looks, and others only if that look left something for them: what a task
costs the database does not depend on how many machines there are. Nobody's word is needed for
good: `POLL_S` after the last look somebody looks again (R3.9).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, TypeAlias, final
from uuid import UUID

import trio

from understudy.actors.presence import Presence

POLL_S: Final = 30.0
"""The fallback behind every wake-up: a lost one delays a task by at most this."""
PATIENCE_S: Final = 2.0
"""A look that has no answer by then is made by another, too, as soon as anybody is heard."""

Left: TypeAlias = frozenset[UUID | None]
"""For whom something can be claimed; None: for each of them."""
FOR_ANYBODY: Final[Left] = frozenset({None})


@final
class Place:
    """`changes` counts what became claimable; at `look_at` somebody looks, come what may."""

    def __init__(self) -> None:
        self.changes = 0
        self.look_at = trio.current_time() + POLL_S
        self._known_since = -1
        self._left = FOR_ANYBODY
        self._line: dict[UUID, Presence] = {}

    def join(self, runtime_id: UUID, presence: Presence) -> None:
        self._line[runtime_id] = presence

    def leave(self, runtime_id: UUID) -> None:
        self._line.pop(runtime_id, None)

    def changed(self) -> None:
        self.changes += 1

    def looked(self, changes: int, left: Left) -> None:
        """What was left by a claim that began when there had been so many changes.

        A change is committed before it is counted: what is counted later may be missing there.
        """
        if changes >= self._known_since:
            self._known_since, self._left = changes, left
            self.look_at = trio.current_time() + POLL_S

    def looks(self) -> None:
        """A look that finds no answer, or not soon, is not the last one."""
        self.look_at = min(self.look_at, trio.current_time() + PATIENCE_S)

    def has_nothing_for(self, runtime_id: UUID) -> bool:
        """R3.9: told by the last look, and nothing has changed since."""
        is_new = self._known_since == self.changes and trio.current_time() < self.look_at
        return is_new and not self._left & {None, runtime_id}

    def in_line(self, *, spares_barred: bool) -> Iterator[UUID]:
        """Who may be asked to look, in this order.

        Whoever could take nothing when it looked last comes last, and then alone: a person may have
        lifted that since, but to ask them all at each change would cost as much as they are many.
        """
        now = trio.current_time()
        waiting = [each for each in self._line.items() if each[1].may_look(self.changes)]
        yield from (each for each, presence in waiting if presence.barred_until <= now)
        if not spares_barred:
            barred = (each for each in waiting if each[1].barred_until > now)
            yield from (each for each, _ in sorted(barred, key=_is_broken))

    def to_the_end(self, runtime_id: UUID) -> None:
        """So that tasks are spread, and one that does not look delays one change alone."""
        if runtime_id in self._line:
            self._line[runtime_id] = self._line.pop(runtime_id)


def _is_broken(each: tuple[UUID, Presence]) -> bool:
    return each[1].barred_until == math.inf
