"""The daemon's half of a dialogue: what a reader yields to be said is written to stdin, once.

A keeper cannot hold a dialogue, since it understands nothing; a daemon cannot hold it alone, since
it may die. So the reader decides, from the spool alone, what to say, and the keeper remembers what
was said: the n-th `Say` of a run is frame n of its stdin (frame 0 was the launch's), the keeper
logs a frame with its number before it writes it, and drops a number it has had.

The daemon dies
  before it reads a line: the agent waits for its answer; the next daemon reads the line.
  between reading and saying: the next one reads from the start, and says the same frame n.
  between saying and hearing so: it says frame n again, which the keeper drops.
  after the result, before hanging up: the agent waits, idle, until the next daemon hangs up, or
      until `orphan_s`; the result is in the spool and counts either way.
The keeper dies: its agent dies with it. What was logged and not written was said to nobody; a run
directory is never used again, so no later agent is told it.

An interrupt has no number: the keeper sends it when it must, between any two frames.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, final

import trio

from understudy.daemon.backends.backend import Event, HangUp, Interrupt, Say
from understudy.daemon.kept import KeeperGone, KeeperRefused, Kept, VitalSigns
from understudy.daemon.rundir import Standing

ANSWER_S: Final = 30.0
AGAIN_S: Final = 0.5


@final
class Dialogue:
    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self._next = 1
        self._unsaid = 0  # The keeper's next number, as far as is known: all before it was said.

    async def tell(self, event: Event) -> None:
        """Returns when the keeper has it, or when nobody is left to tell."""
        match event:
            case Say(frame):
                number, self._next = self._next, self._next + 1
                if number >= self._unsaid:
                    await self._ask_patiently(partial(self._kept.write, number, frame))
            case Interrupt(frame):
                await self._ask_patiently(partial(self._kept.interrupt_with, frame))
            case HangUp():
                await self._ask_patiently(self._kept.hang_up)
            case _:
                pass

    async def _ask_patiently(self, ask: Callable[[], Awaitable[VitalSigns]]) -> None:
        while self._kept.look() is Standing.KEPT:
            try:
                with trio.move_on_after(ANSWER_S):
                    self._unsaid = (await ask()).next_n
                    return
            except KeeperRefused:
                if not await self._may_listen():
                    return
            except KeeperGone:
                pass  # It is coming up, or going down.
            await trio.sleep(AGAIN_S)

    async def _may_listen(self) -> bool:
        """A refusal passes where a disk is full; not where stdin is closed or the end has begun."""
        try:
            with trio.move_on_after(ANSWER_S):
                signs = await self._kept.ping()
                return signs.stdin_open and signs.ending is None
        except (KeeperGone, KeeperRefused):
            pass
        return True
