"""Put all that only a directory holds where its removal cannot reach it (R8.6).

What is in no commit, and the commits that no branch and no remote has, are kept at
`refs/understudy/<task>`: in the cache of the repository, or, for a directory without one, in a
store of their own. What cannot be kept raises, and the directory stays.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from understudy.daemon.changes import snapshot, snapshot_ref
from understudy.daemon.disk import CACHES
from understudy.daemon.git import Git, GitFailed
from understudy.daemon.repositories import IDENTITY, head_of

STORE: Final = "without-repository.git"
PLAIN_MAX: Final = 100 << 20
STOOD_MAX: Final = 1000
NO_COMMIT: Final = "0" * 40


class Unsaved(Exception):
    """A phrase: what is in the directory alone, and cannot be kept elsewhere."""


async def save_worktree(git: Git, work: Path, task_id: str) -> None:
    """Where HEAD has stood here counts too: an agent may have stepped off its branch. Raises
    `GitFailed`."""
    await snapshot(git, work, task_id)
    git_dir = Path(await git("rev-parse", "--absolute-git-dir", cwd=work))
    loose = await _loose(git, work, _stood(git_dir))
    if not loose:
        return
    ref = snapshot_ref(task_id)
    earlier = await git.ask("rev-parse", "--quiet", "--verify", ref, cwd=work)
    parents = [*([earlier] if earlier else []), *loose]
    tree = await git("rev-parse", f"{parents[0]}^{{tree}}", cwd=work)
    words = [word for parent in parents for word in ("-p", parent)]
    message = f"Commits of task {task_id} that no branch has"
    commit = await git("commit-tree", tree, *words, "-m", message, cwd=work, env=IDENTITY)
    await git("update-ref", ref, commit, earlier or "", cwd=work)


def _stood(git_dir: Path) -> list[str]:
    """The commits that the worktree's HEAD was at, and those that an interrupted rebase put by."""
    files = ("logs/HEAD", "ORIG_HEAD", "rebase-merge/autostash", "rebase-merge/orig-head",
             "rebase-apply/autostash", "rebase-apply/orig-head", "MERGE_HEAD", "CHERRY_PICK_HEAD",
             "MERGE_AUTOSTASH")  # fmt: skip
    texts = [(git_dir / name).read_text() for name in files if (git_dir / name).is_file()]
    words = [word for text in texts for line in text.splitlines() for word in line.split()[:2]]
    known = dict.fromkeys(word for word in words if len(word) == len(NO_COMMIT))
    known.pop(NO_COMMIT, None)
    return list(known)


async def _loose(git: Git, work: Path, stood: list[str]) -> list[str]:
    """Of these commits and HEAD, those that no ref reaches, without what others of them reach."""
    head = await head_of(git, work)
    asked = [*dict.fromkeys([*([head] if head else []), *reversed(stood[-STOOD_MAX:])])]
    if not asked:
        return []
    refs = ["--not", "--branches", "--remotes", "--tags", "--glob=refs/understudy"]
    listed = await git("rev-list", "--ignore-missing", *asked, *refs, cwd=work)
    unreached = set(listed.splitlines())
    loose = [commit for commit in asked if commit in unreached]
    if not loose:
        return []
    return (await git("merge-base", "--independent", *loose, cwd=work)).splitlines()


async def save_plain(git: Git, root: Path, work: Path, task_id: str) -> None:
    """Raises `Unsaved` for more than a store of texts should hold, or `GitFailed`."""
    store = root / CACHES / STORE
    if not store.exists():
        store.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        await git("init", "--bare", "--quiet", "--template=", str(store), cwd=root)
    index = store / f"index-{task_id}"
    env = {"GIT_DIR": str(store), "GIT_WORK_TREE": str(work), "GIT_INDEX_FILE": str(index)}
    try:
        await _refuse_large(git, work, env)
        await git("add", "--all", cwd=work, env=env)
        tree = await git("write-tree", cwd=work, env=env)
    finally:
        index.unlink(missing_ok=True)
    ref = snapshot_ref(task_id)
    earlier = await git.ask("rev-parse", "--quiet", "--verify", ref, cwd=store)
    if earlier and tree == await git("rev-parse", f"{earlier}^{{tree}}", cwd=store):
        return
    words = ["-p", earlier] if earlier else []
    message = f"The directory of task {task_id}"
    commit = await git("commit-tree", tree, *words, "-m", message, cwd=store, env=IDENTITY)
    await git("update-ref", ref, commit, earlier or "", cwd=store)


async def _refuse_large(git: Git, work: Path, env: dict[str, str]) -> None:
    listed = await git("ls-files", "--others", "--exclude-standard", "-z", cwd=work, env=env)
    size = sum((work / name).lstat().st_size for name in listed.split("\0") if name)
    if size > PLAIN_MAX:
        raise Unsaved(f"it holds {size >> 20} MiB that are in no repository")


async def unpushed(git: Git, repository: Path) -> str | None:
    """What a repository holds that none of its remotes has, as a phrase."""
    try:
        if await git("status", "--porcelain", cwd=repository):
            return f"{repository} has uncommitted work"
        loose = ["rev-list", "--max-count=1", "--all", "--not", "--remotes"]
        if await git(*loose, cwd=repository):
            return f"{repository} has commits that are on no remote"
    except GitFailed as failure:
        return f"{repository} cannot be read: {failure.said}"
    return None
