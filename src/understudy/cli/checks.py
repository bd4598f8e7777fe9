"""What `understudy doctor` looks at on this machine. Nothing here changes anything."""

from __future__ import annotations

import os
import re
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from understudy.config import Home
from understudy.core.words import span
from understudy.daemon.locks import is_locked
from understudy.daemon.rundir import Standing, look
from understudy.daemon.status import LOCK, linked, read_status
from understudy.version import VERSION

GIB: Final = 1 << 30
DISK_MIN: Final = GIB
DISK_FEW: Final = 5 * GIB
INODES_MIN: Final = 10_000
FILES_MIN: Final = 1024
GIT_MIN: Final = (2, 29)
"""`fetch --no-write-fetch-head`"""
GIT_S: Final = 10.0
STALE_S: Final = 3600.0
"""No git command of ours takes so long."""
WEBSOCKETS: Final = (
    "nothing is lost by it, but tasks come up to 10 s later: let what stands in between pass"
    " websockets to /api/daemon/ws; the daemon tries again by itself, and when it is restarted"
)
PROC_SYS: Final = Path("/proc/sys")
INOTIFY: Final = {
    "fs/inotify/max_user_watches": 65_536,
    "fs/inotify/max_user_instances": 128,
}
"""What agents start (test runners, bundlers) watches files, for all of them together."""


class State(StrEnum):
    OK = "ok"
    NOTE = "note"  # works, for now
    BROKEN = "broken"


@dataclass(frozen=True)
class Finding:
    check: str
    state: State
    found: str
    repair: str | None = None


def ok(check: str, found: str) -> Finding:
    return Finding(check, State.OK, found)


def note(check: str, found: str, repair: str) -> Finding:
    return Finding(check, State.NOTE, found, repair)


def broken(check: str, found: str, repair: str) -> Finding:
    return Finding(check, State.BROKEN, found, repair)


def permissions(home: Home) -> Iterator[Finding]:
    """R9.5: keys, reports and what agents do are their owner's alone."""
    name, wrong = "permissions", False
    for path, mode in ((home.credentials, 0o600), (home.daemon, 0o700)):
        if not path.exists():
            continue
        status = path.stat()
        if status.st_uid != os.geteuid():
            wrong = True
            yield broken(name, f"{path} belongs to another account", f"chown {os.geteuid()} {path}")
        elif status.st_mode & 0o077:
            wrong = True
            yield broken(name, f"other accounts can read {path}", f"chmod {mode:o} {path}")
    if not wrong:
        yield ok(name, f"what is in {home.path} is yours alone")


def disk(home: Home) -> Iterator[Finding]:
    place = home.path
    while not place.exists():
        place = place.parent
    free, status = shutil.disk_usage(place).free, os.statvfs(place)
    said = f"{free / GIB:.1f} GiB free at {place}"
    repair = "make room: its largest directory is usually `daemon/work`"
    if status.f_files and status.f_favail < INODES_MIN:
        yield broken("disk", f"only {status.f_favail} files can be made at {place}", repair)
    if free < DISK_MIN:
        yield broken("disk", said, repair)
    elif free < DISK_FEW:
        yield note("disk", said, repair)
    else:
        yield ok("disk", said)


def git() -> Iterator[Finding]:
    install = f"install git {'.'.join(map(str, GIT_MIN))} or later"
    if shutil.which("git") is None:
        yield broken("git", "there is no git on PATH", install)
        return
    try:
        said = subprocess.run(
            ["git", "--version"], capture_output=True, timeout=GIT_S, check=True, text=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        yield broken("git", f"`git --version` failed: {error}", install)
        return
    version = re.search(r"(\d+)\.(\d+)", said)
    is_new = version is not None and (int(version[1]), int(version[2])) >= GIT_MIN
    yield ok("git", said) if is_new else broken("git", f"{said} is too old", install)


def limits() -> Iterator[Finding]:
    few = False
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= files < FILES_MIN:
        few = True
        yield note("limits", f"a process may open {files} files", f"ulimit -n {FILES_MIN}")
    for name, least in INOTIFY.items():
        found = _number(PROC_SYS / name)
        if found is not None and found < least:
            few = True
            key = name.replace("/", ".")
            yield note("limits", f"{key} is {found}", f"sudo sysctl {key}={least}")
    if not few:
        yield ok("limits", f"{files} open files; files can be watched")


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None  # Another kernel.


def daemon(home: Home) -> Iterator[Finding]:
    found = read_status(home.daemon)
    if found is None and is_locked(home.daemon / LOCK):
        said = f"a process holds {home.daemon / LOCK} and says nothing of itself"
        yield broken(
            "daemon", said, f"`fuser {home.daemon / LOCK}` names it; kill it: agents go on"
        )
    elif found is None:
        yield broken("daemon", "it does not run", "understudy daemon start")
    elif not found.is_linked:
        said = f"no link to {found.server}: {found.trouble or 'no answer yet'}"
        yield broken("daemon", said, "see `understudy daemon logs`; it goes on trying")
    elif found.version != VERSION:
        said = f"it runs version {found.version}, installed is {VERSION}"
        yield note("daemon", said, "understudy daemon restart")
    elif found.no_websocket:
        yield note("daemon", f"pid {found.pid}, {linked(found)}", WEBSOCKETS)
    else:
        yield ok("daemon", f"pid {found.pid}, {linked(found)}")


def runs(home: Home, now: float) -> Iterator[Finding]:
    """`now`: seconds since 1970."""
    entries = list((home.daemon / "runs").glob("*"))
    kept = [entry for entry in entries if look(entry) is Standing.KEPT]
    if kept and not is_locked(home.daemon / LOCK):
        said = f"{len(kept)} agents work without a daemon, and will be stopped"
        yield broken("runs", said, "understudy daemon start")
    else:
        yield ok("runs", f"{len(kept)} agents at work")
    for aside in entries:
        if ".aside-" in aside.name:
            said = f"{aside} could not be read and was set aside"
            yield note("runs", said, "look at it, then remove it")
    for lock in _git_locks(home.daemon / "work" / ".repositories"):
        age_s = now - lock.stat().st_mtime
        if age_s > STALE_S:
            said = f"git left {lock} behind {span(age_s, round)} ago"
            yield broken("locks", said, f"rm {lock}")


def _git_locks(caches: Path) -> Iterator[Path]:
    for pattern in ("*.git/*.lock", "*.git/refs/**/*.lock", "*.git/worktrees/*/*.lock"):
        yield from caches.glob(pattern)


def outbox(home: Home) -> Iterator[Finding]:
    """What waits; a daemon at work keeps the file to itself, and has it in its status."""
    found = read_status(home.daemon)
    waiting = found.reports_waiting if found else _waiting(home.daemon / "outbox.db")
    if not waiting:
        yield ok("outbox", "no report waits for the server")
    else:
        repair = "it is sent with the next link" if found else "understudy daemon start"
        yield note("outbox", f"{waiting} reports wait for the server", repair)


def _waiting(path: Path) -> int:
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=1)) as database:
            return int(database.execute("select count(*) from report").fetchone()[0])
    except sqlite3.Error:
        return 0  # There is none yet, or a daemon has just taken it.
