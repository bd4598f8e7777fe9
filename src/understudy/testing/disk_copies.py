"""A simulated machine's disk, copied to another machine: only the files, nothing that runs."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree

from understudy.daemon.status import LOCK, STATUS


def copy_disk(of: Path, to: Path) -> Path:
    """Both machines know their files by one path; here they are two, and so the copy names its
    own."""
    copytree(of, to, ignore=lambda _, names: {LOCK, STATUS} & set(names), symlinks=True)
    for path in to.rglob("*.json"):
        path.write_text(path.read_text().replace(str(of), str(to)))
    return to
