"""What a daemon says of itself, in a file that the command line reads."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from uuid import UUID

import msgspec

from understudy.core.struct import Struct
from understudy.daemon.locks import is_locked

STATUS: Final = "status.json"
LOCK: Final = "lock"


class RunStatus(Struct):
    task_id: UUID
    issue: str | None
    provider: str
    work_dir: str


class DaemonStatus(Struct):
    pid: int
    server: str
    daemon_id: str
    version: str
    is_linked: bool
    slots: int
    slots_free: int
    reports_waiting: int
    found: dict[str, str | None]
    """Provider to what is wrong with it; None where it works."""
    runs: list[RunStatus]


def write_status(path: Path, status: DaemonStatus) -> None:
    """Whole or not at all; not flushed, since it describes a process."""
    fresh = path / f"{STATUS}.new"
    fresh.write_bytes(msgspec.json.encode(status))
    fresh.replace(path / STATUS)


def read_status(path: Path) -> DaemonStatus | None:
    """None unless a daemon is alive in this directory: its lock says so, not the file."""
    if not is_running(path):
        return None
    try:
        return msgspec.json.decode((path / STATUS).read_bytes(), type=DaemonStatus)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def is_running(path: Path) -> bool:
    return is_locked(path / LOCK)
