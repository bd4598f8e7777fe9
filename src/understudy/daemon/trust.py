"""For how long the work of this machine stays its own while nobody hears of it (R4.11).

The server promises it with each registration and heartbeat. The promise counts from the moment it
was asked for, on trio's clock, and is kept here with a margin for ending what runs. A shorter
promise counts at once: another machine has come that could take over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, final
from uuid import UUID

import trio

from understudy.wire.daemon import ClaimedTask

MARGIN_S: Final = 10.0
"""For an agent's tree to go: an interrupt, SIGTERM, SIGKILL (R7.2)."""


@final
class Trust:
    """`until`: for runtimes of which a daemon that has just begun has heard nothing yet."""

    def __init__(self, until: float) -> None:
        self._until_else = until
        self._until: dict[UUID, float] = {}
        self._promised = trio.Event()

    def promise(self, asked_at: float, trust_s: Mapping[UUID, float]) -> None:
        for runtime_id, seconds in trust_s.items():
            self._until[runtime_id] = asked_at + max(0.0, seconds - MARGIN_S)
        self._promised.set()
        self._promised = trio.Event()

    def until(self, runtime_id: UUID) -> float:
        return self._until.get(runtime_id, self._until_else)

    def may_be_elsewhere(self, task: ClaimedTask) -> bool:
        """The promise has ended, and another machine may have been given this task."""
        return (
            task.is_movable
            and task.runtime_id is not None
            and self.until(task.runtime_id) <= trio.current_time()
        )

    async def wait_end(self, runtime_id: UUID) -> None:
        while (until := self.until(runtime_id)) > trio.current_time():
            with trio.move_on_at(until):
                await self._promised.wait()
