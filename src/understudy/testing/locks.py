"""What the kernel takes back from a process that is killed, in a world that has all of them in one.

Its tasks are frozen, so nothing in it closes anything; and what it locked must be free.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, final

from understudy.testing.disk import Connection, replaced


@final
class Locks:
    """Locks of files (flock) and databases, by the process that took them.

        with locks.installed():
            lock = take_lock(path)  # in a task of the process
            locks.release(process)

    `current_process` tells whose task runs; None is nobody's, and is not recorded.
    """

    def __init__(self, current_process: Callable[[], object | None]) -> None:
        self._current_process = current_process
        self._owners: dict[int, tuple[object, int]] = {}
        """Of a descriptor, with the inode it stands for."""
        self._connections: list[tuple[object, sqlite3.Connection]] = []

    @contextmanager
    def installed(self) -> Iterator[None]:
        with ExitStack() as stack:
            for module, name, hook in (
                (fcntl, "flock", self._locking),
                (os, "close", self._closing),
                (sqlite3, "connect", self._connecting),
            ):
                stack.enter_context(replaced(module, name, hook(getattr(module, name))))
            yield

    def inherit(self, process: object, descriptors: Iterable[int]) -> list[int]:
        """Copies for a child, which share the lock: it is free when the last of them is closed."""
        copies = [os.dup(descriptor) for descriptor in descriptors]
        for copy in copies:
            self._record(copy, process)
        return copies

    def release(self, process: object) -> None:
        """The descriptors stay open, on nothing: who closes one later, closes just that."""
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in self.held_by(process):
            os.dup2(nothing, descriptor, inheritable=False)
            del self._owners[descriptor]
        os.close(nothing)
        for owner, connection in self._connections:
            if owner is process:
                _abandon(connection)
        self._connections = [each for each in self._connections if each[0] is not process]

    def held_by(self, process: object) -> list[int]:
        """The descriptors of its locks, for who looks for leaks."""
        mine = {fd: inode for fd, (owner, inode) in self._owners.items() if owner is process}
        return sorted(fd for fd, inode in mine.items() if _inode(fd) == inode)

    def _record(self, descriptor: int, process: object) -> None:
        inode = _inode(descriptor)
        assert inode is not None
        self._owners[descriptor] = (process, inode)

    def _locking(self, real: Callable[[Any, int], None]) -> Callable[..., None]:
        def flock(file: Any, operation: int) -> None:  # noqa: ANN401
            real(file, operation)
            process = self._current_process()
            if operation & fcntl.LOCK_EX and process is not None:
                self._record(file if isinstance(file, int) else file.fileno(), process)

        return flock

    def _closing(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def close(descriptor: int) -> None:
            self._owners.pop(descriptor, None)
            real(descriptor)

        return close

    def _connecting(
        self, real: Callable[..., sqlite3.Connection]
    ) -> Callable[..., sqlite3.Connection]:
        def connect(*arguments: object, **named: object) -> sqlite3.Connection:
            connection = real(*arguments, **named)
            if (process := self._current_process()) is not None:
                self._connections.append((process, connection))
            return connection

        return connect


def _inode(descriptor: int) -> int | None:
    try:
        return os.fstat(descriptor).st_ino
    except OSError:
        return None


def _abandon(connection: sqlite3.Connection) -> None:
    if isinstance(connection, Connection):
        connection.die()
    else:
        connection.close()
