"""How a daemon ends, and what becomes of its agents (R7.4).

Asked by a signal: that reaches a daemon of any version, needs no file, and a service manager can
send it. SIGTERM and Ctrl-C are not here: they cancel the whole tree at any moment, and the agents
go on under their keepers, as they do when the daemon is killed.
"""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Callable
from enum import StrEnum
from typing import Final, final

import trio

logger = logging.getLogger(__name__)

NOW_S: Final = 25.0
"""An agent is gone within 14 s (`Kept.end`); the rest is for the reports to arrive."""


class Ending(StrEnum):
    DRAIN = "drain"  # nothing new is taken; when the last run is reported
    NOW = "now"  # the agents are stopped and reported first
    RESTART = "restart"  # at once, to begin again in the same process; the agents go on


SIGNALS: Final = {
    signal.SIGUSR1: Ending.DRAIN,
    signal.SIGQUIT: Ending.NOW,
    signal.SIGUSR2: Ending.RESTART,
}


@final
class Stopping:
    """Asked more than once, the newest wish counts, except that what was stopped stays so."""

    def __init__(self, *, is_idle: Callable[[], bool]) -> None:
        self.ending: Ending | None = None
        self._is_idle = is_idle
        self._over = trio.Event()
        self._patience = trio.CancelScope()

    @property
    def takes_nothing(self) -> bool:
        return self.ending is not None

    def ask(self, ending: Ending) -> None:
        logger.info("asked to end: %s", ending)
        if self.ending is not Ending.NOW:
            self.ending = ending
        match self.ending:
            case Ending.RESTART:
                self._over.set()
            case Ending.NOW if self._patience.deadline == math.inf:
                self._patience.deadline = trio.current_time() + NOW_S
        self.look()

    def look(self) -> None:
        """Something has ended: perhaps it was the last."""
        if self.takes_nothing and self._is_idle():
            self._over.set()

    async def wait_over(self) -> Ending:
        with self._patience:
            await self._over.wait()
        if self._patience.cancelled_caught:
            logger.warning("not everything was ended and reported in %.0f s", NOW_S)
        assert self.ending is not None
        return self.ending
