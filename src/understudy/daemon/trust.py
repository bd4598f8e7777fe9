"""For how long the work of this machine stays its own while nobody hears of it (R4.11).

The server promises it with each registration and heartbeat. The promise counts from the moment it
was asked for, on a clock that goes on while this machine sleeps (a laptop that wakes up after an
hour has lost its movable work long ago), and is kept here with a margin for ending what runs. A
shorter promise counts at once: another machine has come that could take over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, final
from uuid import UUID

import trio

from understudy.daemon.machine import here
from understudy.wire.daemon import ClaimedTask

MARGIN_S: Final = 10.0
"""For an agent's tree to go: an interrupt, SIGTERM, SIGKILL (R7.2)."""
LOOK_S: Final = 2.0
"""A deadline of trio's does not come sooner because the machine slept: so it is looked at."""


def now() -> float:
    """trio's time, and what this machine has slept."""
    return trio.current_time() + here().slept_s()


@final
class Trust:
    """`until`: for runtimes of which a daemon that has just begun has heard nothing yet."""

    def __init__(self, until: float) -> None:
        self._until_else = until
        self._until: dict[UUID, float] = {}
        self._promised = trio.Event()

    def promise(self, asked_at: float, trust_s: Mapping[UUID, float]) -> None:
        """`asked_at`: by `now()`."""
        for runtime_id, seconds in trust_s.items():
            self._until[runtime_id] = asked_at + max(0.0, seconds - MARGIN_S)
        self._promised.set()
        self._promised = trio.Event()

    def until(self, runtime_id: UUID) -> float:
        return self._until.get(runtime_id, self._until_else)

    def is_promised(self, runtime_id: UUID) -> bool:
        return runtime_id in self._until

    def until_boot_s(self, runtime_id: UUID) -> float:
        """The same moment on the clock that keepers have too."""
        return here().boot_s() + self.until(runtime_id) - now()

    def may_be_elsewhere(self, task: ClaimedTask, *, has_minder: bool) -> bool:
        """The promise has ended, and another machine may have been given this task.

        What has a minder, a keeper that was told of promises, goes by those of earlier daemons
        until this one has been promised something.
        """
        if not task.is_movable or task.runtime_id is None:
            return False
        if has_minder and not self.is_promised(task.runtime_id):
            return False
        return self.until(task.runtime_id) <= now()

    def next_promise(self) -> trio.Event:
        return self._promised

    async def wait_promised(self, runtime_id: UUID) -> None:
        while not self.is_promised(runtime_id):
            await self._promised.wait()

    async def wait_end(self, runtime_id: UUID) -> None:
        while (left_s := self.until(runtime_id) - now()) > 0:
            with trio.move_on_after(min(left_s, LOOK_S)):
                await self._promised.wait()
