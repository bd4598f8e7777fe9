"""What a run leaves in its worktree: kept, counted, and handed to the user's own repository."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from understudy.daemon.git import Git, GitFailed
from understudy.daemon.origins import local_path
from understudy.daemon.repositories import BASE, IDENTITY, head_of

SHORTSTAT: Final = re.compile(r"(\d+) (file|insertion|deletion)")

RECEIVE_PACK: Final = (
    "git -c safe.directory='*' -c core.hooksPath=/dev/null -c receive.denyCurrentBranch=refuse"
    " -c receive.denyNonFastForwards=true -c receive.autogc=false receive-pack"
)


@dataclass(frozen=True)
class Changes:
    commits: int
    files: int
    insertions: int
    deletions: int
    uncommitted: int
    """Files changed or new, and in no commit."""

    def __str__(self) -> str:
        parts = [f"{_count(self.commits, 'commit')}, {_count(self.files, 'file')} changed"]
        parts[0] += f" (+{self.insertions} -{self.deletions})"
        if self.uncommitted:
            parts.append(f"{_count(self.uncommitted, 'file')} left uncommitted")
        return "; ".join(parts)


def snapshot_ref(task_id: str) -> str:
    return f"refs/understudy/{task_id}"


async def snapshot(git: Git, path: Path, task_id: str) -> str | None:
    """Keep uncommitted work, ignored files aside, as a commit at `snapshot_ref` (R8.6).

    None when there is none. The worktree, its index and its branch stay as they are; an earlier
    snapshot of the task becomes a parent of the new one. What cannot be kept raises `GitFailed`,
    after everything else was: whoever wanted to destroy something must not. A repository inside
    the worktree is kept as the commit it stands at.
    """
    head = await head_of(git, path)
    ref = snapshot_ref(task_id)
    earlier = await git.ask("rev-parse", "--quiet", "--verify", ref, cwd=path)
    git_dir = await git("rev-parse", "--absolute-git-dir", cwd=path)
    with _borrowed_index(Path(git_dir)) as env:
        refusal = await _add_all(git, path, env)
        tree = await git("write-tree", cwd=path, env=env)
    if tree == await _tree_of(git, path, head):
        commit = None
    elif earlier and [tree, head] == [
        await _tree_of(git, path, earlier),
        await _parent(git, path, ref),
    ]:
        commit = earlier
    else:
        parents = [word for parent in (head, earlier) if parent for word in ("-p", parent)]
        message = f"Uncommitted work of task {task_id}"
        commit = await git("commit-tree", tree, *parents, "-m", message, cwd=path, env=IDENTITY)
        await git("update-ref", ref, commit, earlier or "", cwd=path)
    if refusal is not None:
        raise refusal
    return commit


async def describe_changes(git: Git, path: Path, base: str | None) -> Changes:
    """From `base` (None: from nothing) to HEAD, and what is in neither. Raises `GitFailed`."""
    head = await head_of(git, path)
    commits, stat = "0", ""
    if head is not None:
        start = base or await _empty_tree(git, path)
        since = [f"{base}..{head}"] if base else [head]
        commits = await git("rev-list", "--count", *since, cwd=path)
        stat = await git("diff-tree", "-r", "--shortstat", start, head, cwd=path)
    status = ["status", "--porcelain", "-z", "--no-renames", "--untracked-files=all"]
    uncommitted = await git(*status, cwd=path)
    counted = {what: int(number) for number, what in SHORTSTAT.findall(stat)}
    return Changes(
        commits=int(commits),
        files=counted.get("file", 0),
        insertions=counted.get("insertion", 0),
        deletions=counted.get("deletion", 0),
        uncommitted=uncommitted.count("\0"),
    )


async def publish(git: Git, path: Path, branch: str) -> str | None:
    """Put HEAD as `branch` into the repository it came from, if that is on this machine.

    Never by force, never onto a branch that is checked out there, never with its hooks. What went
    wrong comes back as a sentence: the work is safe where it is, and the run stays a success.
    """
    origin = local_path(await git("config", "--get", "remote.origin.url", cwd=path))
    head = await head_of(git, path)
    if origin is None or head is None or await _is_upstream(git, path, head):
        return None
    fetch = f"`git -C {origin} fetch {path} HEAD:{branch}`"
    if _is_foreign(origin):
        # Objects that root writes there would keep the owner from writing beside them.
        return f"{origin} belongs to another user; {branch} was not put there. Fetch it: {fetch}."
    push = ["push", "--quiet", "--no-verify", "--no-signed", "--no-follow-tags"]
    push += ["--recurse-submodules=no", f"--receive-pack={RECEIVE_PACK}"]
    try:
        await git(*push, "origin", f"HEAD:refs/heads/{branch}", cwd=path)
    except GitFailed as failure:
        return f"{branch} was not put into {origin}. git said: {failure.said} -- Fetch it: {fetch}."
    return None


async def _add_all(git: Git, path: Path, env: Mapping[str, str]) -> GitFailed | None:
    try:
        await git("add", "--all", "--ignore-errors", cwd=path, env=env)
    except GitFailed as failure:
        if failure.status is None:
            raise
        return failure
    return None


@contextmanager
def _borrowed_index(git_dir: Path) -> Iterator[dict[str, str]]:
    """A copy of the index: it knows which files have not changed, and may be spoilt."""
    index = git_dir / f"understudy-index-{os.getpid()}"
    if (git_dir / "index").exists():
        shutil.copy2(git_dir / "index", index)
    try:
        yield {"GIT_INDEX_FILE": str(index)} | IDENTITY
    finally:
        index.unlink(missing_ok=True)


async def _tree_of(git: Git, path: Path, commit: str | None) -> str:
    if commit is None:
        return await _empty_tree(git, path)
    return await git("rev-parse", f"{commit}^{{tree}}", cwd=path)


async def _parent(git: Git, path: Path, commit: str) -> str | None:
    return await git.ask("rev-parse", "--quiet", "--verify", f"{commit}^1", cwd=path)


async def _empty_tree(git: Git, path: Path) -> str:
    return await git("hash-object", "-t", "tree", os.devnull, cwd=path)


async def _is_upstream(git: Git, path: Path, head: str) -> bool:
    if await git.ask("rev-parse", "--quiet", "--verify", BASE, cwd=path) is None:
        return False
    return await git.ask("merge-base", "--is-ancestor", head, BASE, cwd=path) is not None


def _is_foreign(origin: Path) -> bool:
    try:
        return origin.stat().st_uid != os.geteuid()
    except FileNotFoundError:
        return False  # git says it better.


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
