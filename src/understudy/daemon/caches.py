"""Which cache of a repository may go (R8.6): one that holds nothing but what its remote has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from understudy.daemon.disk import CACHES
from understudy.daemon.git import Git, GitFailed
from understudy.daemon.repositories import CONFIG

NAMED: Final = re.compile(r".+-[0-9a-f]{12}\.git(\.removing-\d+)?")


def caches(root: Path) -> Iterator[Path]:
    """Those of removals that were interrupted too; not the store of what is in no repository."""
    there = (root / CACHES).iterdir() if (root / CACHES).is_dir() else iter(())
    for path in sorted(there):
        if NAMED.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            yield path


async def need_of(git: Git, cache: Path) -> str | None:
    """What needs it, as a phrase. Commits count wherever anybody may still look for them: on
    branches and tags, in the stash, where a HEAD stands or has stood."""
    if not (cache / CONFIG).is_file():
        return "it was not made by Understudy"
    if (worktree := _worktree(cache)) is not None:
        return f"a worktree of it is there: {worktree}"
    loose = ["rev-list", "--max-count=1", "--ignore-missing", "--all", "--reflog"]
    loose += ["--not", "--remotes", "--glob=refs/origin"]
    try:
        if await git("for-each-ref", "--count=1", "refs/understudy", cwd=cache):
            return "it keeps what directories held that were removed, at refs/understudy/"
        if await git(*loose, cwd=cache):
            return "it has commits that are on no remote"
    except GitFailed as failure:
        return f"it cannot be read: {failure.said}"
    return None


def _worktree(cache: Path) -> str | None:
    """One whose directory is there, or that somebody has locked because its disk is not."""
    for entry in sorted(cache.glob("worktrees/*")):
        told = (entry / "gitdir").read_text().strip() if (entry / "gitdir").is_file() else ""
        if not told or (entry / told).exists() or (entry / "locked").exists():
            return told.removesuffix("/.git") or entry.name
    return None
