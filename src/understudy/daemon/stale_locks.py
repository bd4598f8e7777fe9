"""git's lock files whose git was killed (R8.4): while one of them is there no commit is possible.

They are listed first, and who lives is looked at second. Whoever made a lock of the list had begun
before that look; so where no git is at work then, nobody holds any of them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio

from understudy.daemon import processes
from understudy.daemon.machine import here

logger = logging.getLogger(__name__)

AGAIN_S: Final = 0.1
SUFFIX: Final = ".lock"


@dataclass(frozen=True)
class Site:
    """Where locks are looked for, and who would be there if one of them were held."""

    find: Callable[[], Iterator[Path]]
    places: tuple[Path, ...]
    """A git whose directory, arguments or environment name one of these may hold a lock."""
    run: str | None = None
    """A process of this run may, too, whatever it is."""


def own_git_dirs(work: Path) -> Iterator[Path]:
    """Of the worktree that `work` is, and of repositories that its agent has made in it."""
    work = work.resolve()
    if (git_dir := _linked(work)) is not None:
        yield git_dir
    for git_dir in (work / ".git", *work.glob("*/.git")):
        if git_dir.is_dir() and git_dir.resolve() == git_dir:
            yield git_dir


def cache_of(work: Path) -> Path | None:
    """None where it is no worktree."""
    git_dir = _linked(work.resolve())
    return git_dir and git_dir.parent.parent


def _linked(work: Path) -> Path | None:
    """The git directory of a worktree, if that says that it is this one's."""
    try:
        git_dir = work / (work / ".git").read_text().removeprefix("gitdir: ").strip()
        is_mutual = _told_back(git_dir / "gitdir") == work / ".git"
    except (OSError, UnicodeDecodeError):
        return None
    return git_dir.resolve() if is_mutual else None


def _told_back(gitdir: Path) -> Path:
    """The `.git` of the worktree that one of its cache's directories is for."""
    return (gitdir.parent / gitdir.read_text().strip()).resolve()


def locks_in(git_dir: Path, work: Path, run: str) -> Site:
    return Site(partial(_below, git_dir), (git_dir, work.resolve()), run)


def shared_locks_in(cache: Path) -> Site:
    """Of what all its worktrees share. Ask, and clear, only under the cache's lock."""
    worktrees = [_told_back(each).parent for each in cache.glob("worktrees/*/gitdir")]
    return Site(partial(_shared, cache), (cache.resolve(), *worktrees))


async def is_locked(site: Site) -> bool:
    return bool(await here().aside(partial(_list, site)))


async def clear_locks(site: Site, *, within_s: float) -> None:
    """Waits so long for a git that is still at work; what may be held then stays, and is named."""
    if not processes.PROC.is_dir():
        return  # Who lives cannot be seen: nothing is proved.
    waited_until = trio.current_time() + within_s
    while listed := await here().aside(partial(_list, site)):
        alive = _alive(site)
        if not alive:
            _remove(listed)
            return
        if trio.current_time() >= waited_until:
            named = ", ".join(map(str, listed))
            logger.warning("%s stays: %s may hold it", named, processes.name(alive[0]))
            return
        await trio.sleep(AGAIN_S)


def _alive(site: Site) -> list[processes.Process]:
    found = processes.at_work("git", site.places)
    return found + (here().marked(site.run) if site.run else [])


def _list(site: Site) -> dict[Path, int]:
    """With their inodes."""
    listed = {}
    for path in site.find():
        with suppress(FileNotFoundError):  # Its git has just let go of it.
            listed[path] = path.lstat().st_ino
    return listed


def _remove(listed: dict[Path, int]) -> None:
    for path, inode in listed.items():
        with suppress(FileNotFoundError):
            if path.lstat().st_ino == inode:
                path.unlink()
                logger.warning("%s was left by a git that was killed; removed", path)


def _below(directory: Path) -> Iterator[Path]:
    """Links are not followed. No ref may be named like a lock, so each of them is one."""
    for parent, directories, files in os.walk(directory):
        if "HEAD" in files and "objects" in directories:
            directories.remove("objects")
        yield from (Path(parent, name) for name in files if name.endswith(SUFFIX))


def _shared(cache: Path) -> Iterator[Path]:
    yield from cache.glob(f"*{SUFFIX}")
    yield from _below(cache / "refs")
