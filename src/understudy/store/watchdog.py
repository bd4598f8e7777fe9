"""The process that starts the embedded PostgreSQL, and stops it when nobody uses it any more.

Run as a script by `embedded.py`, outside the virtual environment's reach (`python -I -S`): the
standard library only. Being a process of its own it outlives whoever started it, and it waits for
kernel locks, which are freed even by `kill -9`.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

USERS: Final = "users.lock"
SERVER: Final = "server.lock"
WATCHDOG: Final = "watchdog.lock"
DATA: Final = "data"
FAST_S: Final = 60.0
NUDGE_S: Final = 0.02
ENVIRONMENT: Final = {"PATH": os.defpath, "LC_ALL": "C"}  # Our secrets are not for the server.


def open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def try_lock(lock: int, operation: int) -> bool:
    try:
        fcntl.flock(lock, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Postmaster(NamedTuple):
    pid: int
    socket_directory: Path
    is_ready: bool


def read_postmaster(directory: Path) -> Postmaster | None:
    """What `postmaster.pid` says, which may be stale. None if there is none, or half of one."""
    try:
        lines = (directory / DATA / "postmaster.pid").read_text().splitlines()
        return Postmaster(int(lines[0]), Path(lines[4]), "ready" in "".join(lines[7:]))
    except (FileNotFoundError, IndexError, ValueError):
        return None


def main(directory: Path, *start: str) -> None:
    """Guard the server that runs, or the one to start: `start` is a lock to hand on, a command."""
    if os.fork():
        return  # The starter waits for this process and then has no child to reap.
    users, server, watchdog = (open_lock(directory / name) for name in (USERS, SERVER, WATCHDOG))
    _become_owner_of(directory / DATA)
    child = _start(int(start[0]), start[1:]) if start else None
    if not try_lock(watchdog, fcntl.LOCK_EX):
        return  # Another one is on guard.
    threading.Thread(target=_leave_with, args=(child, server, watchdog), daemon=True).start()
    fcntl.flock(users, fcntl.LOCK_EX)  # Granted when the last user is gone, however it went.
    _stop_server(directory)


def _become_owner_of(data: Path) -> None:
    """Root guards with the server's rights: it must not signal what a file of theirs names."""
    if os.geteuid() == 0:
        owner = data.stat()
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


def _start(lock: int, command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Every process of the server inherits the lock: it is free when the last of them is gone."""
    child = subprocess.Popen(command, pass_fds=[lock], env=ENVIRONMENT)
    os.close(lock)
    return child


def _leave_with(child: subprocess.Popen[bytes] | None, server: int, watchdog: int) -> NoReturn:
    if child is not None:
        child.wait()
    fcntl.flock(server, fcntl.LOCK_SH)  # Shared: to look whether the server lives hinders nobody.
    # Before the other locks: who takes one of those next may count on posting its own watchdog.
    fcntl.flock(watchdog, fcntl.LOCK_UN)
    os._exit(0)


def _stop_server(directory: Path) -> NoReturn:
    """Ask until it is gone, which ends this process. A server just born has no pid to read yet."""
    impatient_at = time.monotonic() + FAST_S
    while True:
        kind = signal.SIGINT if time.monotonic() < impatient_at else signal.SIGQUIT
        if postmaster := read_postmaster(directory):
            try:
                os.kill(postmaster.pid, kind)
            except ProcessLookupError:
                pass  # Its children notice, and let go of the lock.
        time.sleep(NUDGE_S)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
