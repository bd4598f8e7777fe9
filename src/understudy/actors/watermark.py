"""A number that only grows, and a way to wait for it: how readers hear that there is more.

It belongs to no incarnation. An actor that crashes leaves no reader waiting on a channel nobody
holds any more; the next incarnation raises the same mark.
"""

from __future__ import annotations

import trio


class Watermark:
    def __init__(self) -> None:
        self.value = -1
        self._risen = trio.Event()

    def raise_to(self, value: int) -> None:
        """A lower value changes nothing."""
        if value > self.value:
            self.value = value
            self._risen.set()
            self._risen = trio.Event()

    async def wait_above(self, value: int) -> int:
        """Return the mark once it is above `value`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while self.value <= value:
            await self._risen.wait()
        return self.value
