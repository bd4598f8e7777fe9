"""What a daemon says of itself, in a file that the command line reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import UUID

import msgspec

from understudy.core.struct import Struct
from understudy.daemon.disk import DiskUse
from understudy.daemon.locks import is_locked
from understudy.daemon.rundir import OUT, STATE, State, UnknownFormat, read_record

if TYPE_CHECKING:
    from understudy.daemon.backends.backend import RunSpec
    from understudy.wire.daemon import ClaimedTask

STATUS: Final = "status.json"
LOCK: Final = "lock"


class RunStatus(Struct):
    task_id: UUID
    issue: str | None
    provider: str
    work_dir: str
    agent: str = ""
    run_dir: str = ""
    is_reported: bool = False
    """It has ended, and its report waits for the server."""


class DaemonStatus(Struct):
    """What has a default came later: the daemon that wrote it may be an older one."""

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
    incarnation: str = ""
    """Another one after each start, though the pid may be the same."""
    trouble: str | None = None
    """Why there is no link."""
    ending: str | None = None
    """What it was asked to end like (`stopping.Ending`), and is about."""
    is_child: bool = False
    """Of `understudy up`, which ends it with itself."""
    disk: DiskUse | None = None
    """In bytes; None until it was first looked at, a minute after its start."""
    is_over_http: bool = False
    """Linked by requests alone."""
    no_websocket: str | None = None
    """Why that is so, unless it was told to."""


class Progress(Struct):
    """When a run was started and when its agent last printed something; seconds since 1970."""

    since: float | None = None
    last: float | None = None


def progress(run: RunStatus) -> Progress:
    """From the run's directory: an agent at work is no news for the daemon's file."""
    run_dir = Path(run.run_dir)
    try:
        since = read_record(run_dir / STATE, State).started_at
        return Progress(since=since, last=max(since, (run_dir / OUT).stat().st_mtime))
    except (OSError, ValueError, UnknownFormat):
        return Progress()  # It is being prepared, or has just gone.


def status_of(task: ClaimedTask, spec: RunSpec | None, *, is_reported: bool) -> RunStatus:
    """`spec` is None until it is prepared."""
    return RunStatus(
        task_id=task.id,
        issue=task.issue.key if task.issue else None,
        provider=task.provider,
        work_dir=spec.work_dir if spec else "",
        agent=task.agent.name,
        run_dir=spec.run_dir if spec else "",
        is_reported=is_reported,
    )


def linked(status: DaemonStatus) -> str:
    """To whom it is, and how if that is not the usual way."""
    if not status.is_over_http:
        return f"linked to {status.server}"
    why = "it was told to (UNDERSTUDY_TRANSPORT)"
    if status.no_websocket:
        why = f"no websocket gets through ({status.no_websocket})"
    return f"linked to {status.server} over HTTP polling: {why}"


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
