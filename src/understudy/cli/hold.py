"""One `up` for each home, its children counted in.

The lock belongs to an open file that the server and the daemon inherit: after a `kill -9` of `up`
it is free when the last of them has ended, a moment later.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from understudy.config import Home
from understudy.core.restarts import CannotStart
from understudy.daemon import processes

LOCK: Final = "up.lock"
PATIENCE_S: Final = 30.0
POLL_S: Final = 0.05


@asynccontextmanager
async def hold(home: Home) -> AsyncIterator[int]:
    """The descriptor to hand on to children. Raises `CannotStart`."""
    home.create()
    lock = os.open(home.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        await _take(lock, home.path)
        os.truncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        yield lock
    finally:
        os.close(lock)


async def _take(lock: int, path: Path) -> None:
    with trio.move_on_after(PATIENCE_S):
        while not _try_take(lock):
            holder = os.pread(lock, 32, 0).decode()
            if holder.isdigit() and processes.identify(int(holder)):
                raise CannotStart(f"`understudy up` runs in {path} already (pid {holder})")
            await trio.sleep(POLL_S)
        return
    raise CannotStart(f"what an earlier `understudy up` started in {path} does not end")


def _try_take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
