"""Locks on files, which say who lives: the kernel frees them when their holder ends, however.

Shared with the keeper, therefore standard library only.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Final

MODE: Final = 0o600
PATIENCE_S: Final = 1.0


def take_lock(path: Path) -> int | None:
    """The descriptor that holds it, or None: a rival does.

    Patiently, since who only looks (`is_locked`) holds it for microseconds, a rival for life.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT, MODE)
    give_up_at = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() >= give_up_at:
                os.close(file)
                return None
            time.sleep(0.01)


def is_locked(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(file)
