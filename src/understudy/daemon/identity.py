"""Who this machine is to the server, and which of its daemons has the name.

A disk can be copied with all that is on it, and then two machines have one name. Each process
writes down that it comes after those before it, and tells the server so: of two that both run,
neither comes after the other, and the one that starts first after the copy was made has the name
for as long as it is heard (R6.2).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, final

from understudy.core.restarts import CannotStart
from understudy.daemon.files import replace_file
from understudy.daemon.locks import take_lock
from understudy.daemon.machine import new_id
from understudy.daemon.status import LOCK

NAME: Final = "daemon_id"
PROCESSES: Final = "incarnations"
KEPT_MAX: Final = 20
"""Of processes that were never answered: they come and go while there is no server."""

TAKEN: Final = (
    "another machine ({}) has registered with this machine's identity: one is a copy of the other."
    " Here, stop the daemon, remove {}/daemon_id and start it, and this is a machine of its own"
)
TAKEN_S: Final = 30.0
"""Until it is asked again whether the other one is still there."""


@final
class Identity:
    """Of one process. Raises `CannotStart` where it cannot be written down."""

    def __init__(self, path: Path) -> None:
        self.daemon_id: Final = _name(path / NAME)
        self.incarnation: Final = new_id().hex
        self._file = path / PROCESSES
        earlier = self._file.read_text().split() if self._file.exists() else None
        self.after = earlier
        """None: whoever has the name was there before anybody wrote this down."""
        try:
            self._write([*(earlier or [])[:1], *(earlier or [])[1:][-KEPT_MAX:], self.incarnation])
        except OSError as error:
            raise CannotStart(f"{self._file} cannot be written: {error}") from error

    def registered(self) -> None:
        """The server knows this process: whoever knows an earlier one alone is a copy."""
        if self.after != []:
            with suppress(OSError):  # A full disk: then a few more are known than have to be.
                self._write([self.incarnation])
            self.after = []

    def _write(self, incarnations: list[str]) -> None:
        replace_file(self._file, "\n".join(incarnations))


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """One daemon for each directory; the lock goes with the process, however it ends."""
    lock = take_lock(path / LOCK)
    if lock is None:
        raise CannotStart(f"a daemon runs in {path} already: `understudy daemon status` shows it")
    try:
        yield
    finally:
        os.close(lock)


def _name(path: Path) -> str:
    """Stable across restarts: the server tells machines apart by it."""
    if not path.exists():
        replace_file(path, str(new_id()))
    return path.read_text().strip()
