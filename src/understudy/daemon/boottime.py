"""The clock that goes on while this machine sleeps; `time.monotonic` and trio's stand still then.

Shared with the keeper, therefore standard library only.
"""

from __future__ import annotations

import time
from typing import Final

CLOCK: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Where there is no CLOCK_BOOTTIME, on a Mac, CLOCK_MONOTONIC is that clock."""


def boot_s() -> float:
    """Seconds since this machine was started: the same for all its processes."""
    return time.clock_gettime(CLOCK)


AHEAD_S: Final = boot_s() - time.monotonic()


def slept_s() -> float:
    """For how long the machine slept since this process began, in whole seconds: the two clocks are
    read one after the other, which must not look like sleep."""
    return float(round(boot_s() - time.monotonic() - AHEAD_S))
