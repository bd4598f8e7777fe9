"""One daemon's connection, as its runtimes' actors see it: room for tasks, and a way to send."""

from __future__ import annotations

import trio

from understudy.wire.daemon import ClaimedTask
from understudy.wire.frames import FromServer, TasksPushed

FRAMES_MAX = 256


class Link:
    """Credit is shared by all runtimes of the daemon (R3.10, `wire/frames.py`).

    Whoever claims for this link first reserves the slots, so that two runtimes never count on the
    same one while they wait for the database.
    """

    def __init__(self) -> None:
        self.send, self.frames = trio.open_memory_channel[FromServer](FRAMES_MAX)
        self._granted = 0
        self._pushed = 0
        self._reserved = 0
        self._settled = trio.Event()
        self.is_open = True
        self.is_credited = False
        """A daemon that grants no credit is told that there may be work, and claims it."""

    def grant(self, total: int) -> None:
        """The daemon's word: slots granted since the link was opened. It never falls."""
        self.is_credited = True
        self._granted = max(self._granted, total)

    async def reserve(self, slots_max: int) -> int:
        """Set aside up to so many free slots.

        Waits while what is free is set aside by another runtime: it may need none of it.
        """
        while self._free() <= 0 and self._reserved:
            await self._settled.wait()
        slots = max(0, min(slots_max, self._free())) if self.is_open else 0
        self._reserved += slots
        return slots

    def settle(self, reserved: int, *, used: int) -> None:
        """End a reservation of which `used` slots were filled."""
        self._reserved -= reserved
        self._pushed += used
        self._settled.set()
        self._settled = trio.Event()

    @property
    def may_have_room(self) -> bool:
        """Slots that are set aside may be free again in a moment."""
        return self.is_open and self._granted > self._pushed

    @property
    def free(self) -> int:
        """Slots that nobody has set aside."""
        return max(0, self._free())

    def _free(self) -> int:
        return self._granted - self._pushed - self._reserved

    def push(self, frame: FromServer) -> None:
        """Hand a frame to the connection; one that cannot keep up with its frames is closed."""
        try:
            self.send.send_nowait(frame)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            self.close()

    def push_tasks(self, tasks: list[ClaimedTask]) -> None:
        """What does not arrive is claimed again once its lease has run out (R3.4, R3.8)."""
        if tasks:
            self.push(TasksPushed(payload=tasks))

    def close(self) -> None:
        self.is_open = False
        self.send.close()
