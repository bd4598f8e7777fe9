"""What stands in a run directory, and in which order it is read.

Shared with the keeper, therefore standard library only.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from understudy.daemon.locks import is_locked

FORMAT: Final = 1  # of the records and of what a keeper answers; a field with a default is no news
RECORD_AGAIN_S: Final = 1.0

SPEC: Final = "spec.json"  # what to run: by the daemon, before the keeper starts
LOCK: Final = "lock"  # held by the keeper for life
STATE: Final = "state.json"  # who runs: written before the agent is started, and again after
OUT: Final = "out"  # the agent's stdout
ERR: Final = "err"  # the agent's stderr
FRAMES: Final = "in.jsonl"  # every frame written to the agent's stdin, numbered
CONTROL: Final = "ctl"  # the keeper's socket
EXIT: Final = "exit.json"  # how it ended: written when the whole tree is gone
LOG: Final = "keeper.log"  # the keeper's last words, should it crash

KEPT: Final = "kept"  # what a keeper says when its state, or the failure to start, is on disk


class UnknownFormat(Exception):
    """The record was written by a newer version of Understudy."""


class Standing(StrEnum):
    UNBORN = "unborn"  # no agent was ever started here; to start one is safe
    KEPT = "kept"
    OVER = "over"
    LOST = "lost"  # the keeper was killed: lock free, no exit


class Why(StrEnum):
    """The keeper's own reasons to end a run; a daemon that asks for a stop adds its own."""

    EXITED = "exited"
    DONE = "done"  # its result was out, and it did not leave by itself
    MAX_TIME = "max_time"
    ORPHANED = "orphaned"
    DISTRUSTED = "runtime_offline"  # as the daemon itself would say, were it there
    SPOOL_FULL = "spool_full"
    KEEPER_SIGTERM = "keeper_sigterm"
    SPAWN_FAILED = "spawn_failed"


class Spec(NamedTuple):
    run: str  # the task's id: marks every process of the run, through its environment
    argv: list[str]
    cwd: str
    env: dict[str, str]  # complete: the agent inherits nothing else
    stdin: str | None = None  # frame 0
    close_stdin: bool = False  # after frame 0
    interrupt: str | None = None  # the frame that asks the agent to stop; without one, the signal
    interrupt_signal: int = signal.SIGINT
    done: str | None = None  # a regular expression: a line of stdout that matches ends the run
    linger_s: float = 10.0  # for the agent to leave by itself after that line (R9.3)
    grace_s: float = 2.0  # after the interrupt, and again after SIGTERM: together within 6 s (R7.2)
    max_s: float | None = None
    orphan_s: float = 1800.0  # without a word from any daemon (R8.2)
    trusted_until: float | None = None  # by boot_s(): then another machine may be given it (R4.11)
    spool_max: int = 1 << 30  # bytes of out and err together


class State(NamedTuple):
    run: str
    boot_id: str
    started_at: float  # seconds since 1970, for people
    keeper_pid: int
    keeper_start: int  # ticks since boot: with the pid and the boot id it names one process
    agent_pid: int | None = None
    agent_start: int | None = None


class Exit(NamedTuple):
    run: str
    why: str
    started_at: float
    ended_at: float
    code: int | None = None
    signal: int | None = None
    error: str | None = None  # of spawn_failed
    out_bytes: int = 0
    err_bytes: int = 0
    swept: list[str] = []  # noqa: RUF012  NamedTuple has no default_factory; nobody changes it
    left: list[str] = []  # noqa: RUF012  what not even SIGKILL ended


Record = TypeVar("Record", Spec, State, Exit)


def write_record(path: Path, record: Spec | State | Exit) -> None:
    """Atomic and durable: after a crash the file is whole, or it is the old one."""
    fresh = path.with_name(path.name + ".new")
    fresh.touch(0o600)
    with fresh.open("w") as file:
        file.write(json.dumps({"format": FORMAT, **record._asdict()}))
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
    sync_directory(path.parent)


def write_exit(run_dir: Path, record: Exit) -> None:
    """What the agent has said is on disk before its end is: an exit with half a spool would make a
    failure of a success."""
    for name in (OUT, ERR):
        _sync_file(run_dir / name)
    write_record(run_dir / EXIT, record)


def _sync_file(path: Path) -> None:
    file = os.open(path, os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def write_exit_patiently(record: Exit, patience_s: float) -> None:
    """Into the working directory. A full disk may find room again; then it raises `OSError`."""
    give_up_at = time.monotonic() + patience_s
    while True:
        try:
            write_exit(Path(), record)
            return
        except OSError as error:
            with suppress(OSError):  # The log may lie on the same full disk.
                sys.stderr.write(f"cannot write the exit: {error}\n")
            if time.monotonic() > give_up_at:
                raise
            time.sleep(RECORD_AGAIN_S)


def read_record(path: Path, kind: type[Record]) -> Record:
    """Of an older version too: what it did not know has a default. Raises `UnknownFormat`."""
    fields: dict[str, Any] = json.loads(path.read_bytes())
    if fields["format"] > FORMAT:
        raise UnknownFormat(f"{path.name} has format {fields['format']}, we know {FORMAT}")
    return kind(**{name: fields[name] for name in kind._fields if name in fields})


def sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def look(run_dir: Path) -> Standing:
    """Read in the order that cannot lie while a keeper starts or ends beside us.

    A keeper takes the lock, writes its state, writes its exit, lets go of the lock. So who finds a
    state and then a free lock has missed the whole life of that keeper, and its exit with it.
    """
    born = (run_dir / STATE).exists()
    held = is_locked(run_dir / LOCK)
    if (run_dir / EXIT).exists():
        return Standing.OVER
    if held:
        return Standing.KEPT
    return Standing.LOST if born else Standing.UNBORN
