"""The processes of this machine, as /proc shows them.

Without /proc (macOS) nothing is listed: a stop reaches the agent's process group and no further.
Shared with the keeper, therefore standard library only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from signal import SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM
from typing import Final, NamedTuple

MARKER: Final = "UNDERSTUDY_RUN"
PROC: Final = Path("/proc")
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


class Process(NamedTuple):
    """Pids come round again; a pid with its start (ticks since boot) does not."""

    pid: int
    start: int


class _Stat(NamedTuple):
    process: Process
    parent: int
    alive: bool


def catch_signals() -> int:
    """A descriptor that gives the number of each signal, as a byte.

    Caught, never ignored: what is ignored here (nohup) would be ignored in the agent too.
    """
    read_end, write_end = os.pipe()
    for end in (read_end, write_end):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in (SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM):
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    return read_end


def identify(pid: int) -> Process | None:
    stat = _stat(pid)
    return stat.process if stat and stat.alive else None


def descendants(root: int) -> list[Process]:
    children: dict[int, list[_Stat]] = {}
    for stat in _every_process():
        children.setdefault(stat.parent, []).append(stat)
    found, parents = [], [root]
    while parents:
        born = children.get(parents.pop(), [])
        found += [stat.process for stat in born if stat.alive]
        parents += [stat.process.pid for stat in born]
    return found


def marked(run: str) -> list[Process]:
    """Whatever inherited the run's environment, wherever in the tree it hangs by now (R7.2)."""
    mark = f"{MARKER}={run}".encode()
    return [stat.process for stat in _every_process() if stat.alive and mark in _environ(stat)]


def at_work(program: str, places: Collection[Path]) -> list[Process]:
    """Programs whose name begins so, and whose directory, arguments or environment name a place."""
    marks = [os.fsencode(place) for place in places]
    return [
        stat.process
        for stat in _every_process()
        if stat.alive
        and name(stat.process).startswith(program)
        and any(mark in trace for trace in _traces(stat) for mark in marks)
    ]


def name(process: Process) -> str:
    """The program's, without arguments: they may hold what no record should."""
    try:
        return (PROC / str(process.pid) / "comm").read_text(errors="replace").strip()
    except OSError:
        return "?"


def send(processes: Iterable[Process], number: int) -> None:
    for process in processes:
        if identify(process.pid) == process:
            try:
                os.kill(process.pid, number)
            except (ProcessLookupError, PermissionError):
                pass  # It left a moment ago; or it became another user's, and only root ends it.


def send_group(leader: int, number: int) -> None:
    """What is left to do where processes cannot be listed; the leader must not be reaped yet."""
    if not PROC.is_dir():
        try:
            os.killpg(leader, number)
        except (ProcessLookupError, PermissionError):
            pass  # It is empty.


def boot_id() -> str:
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except FileNotFoundError:
        return ""


def adopt_orphans() -> None:
    """Become the subreaper: whatever loses its parent below this process becomes its child."""
    if sys.platform == "linux":
        _prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with(parent: int) -> None:
    """In a fresh child: be killed when the parent ends, even if it ended a moment ago."""
    if sys.platform == "linux":
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _every_process() -> Iterator[_Stat]:
    if PROC.is_dir():
        for entry in os.listdir(PROC):  # noqa: PTH208  A thousand Path objects cost more than the reading.
            if entry.isdigit() and (stat := _stat(int(entry))):
                yield stat


def _stat(pid: int) -> _Stat | None:
    try:
        text = (PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    # The name stands in parentheses and may hold any byte; what follows the last one is numbers.
    fields = text.rpartition(b")")[2].split()
    state, parent, threads, start = fields[0], int(fields[1]), int(fields[17]), int(fields[19])
    # The main thread of a living process may have ended: a zombie with more threads still works.
    return _Stat(Process(pid, start), parent, alive=state not in b"ZX" or threads > 1)


def _environ(stat: _Stat) -> list[bytes]:
    return _read(stat, "environ").split(b"\0")


def _traces(stat: _Stat) -> Iterator[bytes]:
    try:
        yield os.fsencode(os.readlink(PROC / str(stat.process.pid) / "cwd"))  # noqa: PTH115  As bytes.
    except OSError:
        pass  # It has just ended, or is another user's.
    yield _read(stat, "cmdline")
    yield _read(stat, "environ")


def _read(stat: _Stat, what: str) -> bytes:
    try:
        return (PROC / str(stat.process.pid) / what).read_bytes()
    except OSError:
        return b""
