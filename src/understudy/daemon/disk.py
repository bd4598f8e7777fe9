"""How much of this machine's disk is ours, and what lies in a directory. Reads only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR
from typing import Final

from understudy.core.struct import Struct

ENTRIES_MAX: Final = 2_000_000
BLOCK: Final = 512
CACHES: Final = ".repositories"


class DiskUse(Struct):
    """Bytes on disk, by what they are for."""

    work: int
    caches: int
    """Of repositories: the branches of agents too."""
    spools: int
    outbox: int


@dataclass
class Walked:
    """What lies below a directory; links are not followed."""

    size: int = 0
    changed_at: float = 0.0
    """The newest time of a file or directory that is not in the future, in epoch seconds."""
    repositories: list[Path] = field(default_factory=list)
    """Directories with a `.git`."""
    is_whole: bool = True
    """False where there was too much to look through."""


def walk(path: Path, now: float) -> Walked:
    found = Walked()
    for number, (entry, status) in enumerate(_entries(path)):
        if number >= ENTRIES_MAX:
            found.is_whole = False
            break
        found.size += status.st_blocks * BLOCK
        if status.st_mtime <= now:
            found.changed_at = max(found.changed_at, status.st_mtime)
        if entry.name == ".git":
            found.repositories.append(entry.parent)
    return found


def measure(home: Path, now: float) -> DiskUse:
    """Of a daemon's own directory."""
    work, caches = home / "work", home / "work" / CACHES
    cached = walk(caches, now).size
    return DiskUse(
        work=max(0, walk(work, now).size - cached),
        caches=cached,
        spools=walk(home / "runs", now).size,
        outbox=sum(file.stat().st_size for file in home.glob("outbox.db*")),
    )


def _entries(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """What vanishes meanwhile, or may not be read, is left out."""
    waiting = [path]
    while waiting:
        entry = waiting.pop()
        try:
            status = entry.lstat()
            if S_ISDIR(status.st_mode):
                waiting += [Path(each.path) for each in os.scandir(entry)]
        except OSError:
            continue
        yield entry, status
