"""One bare cache per repository, one worktree per task (R8.5).

A cache is `{root}/.repositories/<slug>-<hash>.git`. The remote's branches are its
`refs/remotes/origin/*`; its own `refs/heads/*` are the branches of agents, which no fetch touches.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final, final

import trio

from understudy.daemon.claims import claim_nowait
from understudy.daemon.files import replace_file
from understudy.daemon.git import Git, GitFailed, redact
from understudy.daemon.origins import BadOrigin, Origin, config_lines, digest, parse_origin
from understudy.daemon.stale_locks import (
    cache_of,
    clear_locks,
    is_locked,
    locks_in,
    own_git_dirs,
    shared_locks_in,
)

CONFIG: Final = "understudy.config"
CREDENTIALS: Final = "understudy.credentials"
BRANCHES: Final = "+refs/heads/*:refs/remotes/origin/*"
BASE: Final = "refs/origin/HEAD"
NO_BASE: Final = "couldn't find remote ref HEAD"
OWNER: Final = "understudyowner"
CONTENDED_S: Final = 0.05

IDENTITY: Final = {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "Understudy"), ("EMAIL", "understudy@localhost"))
}

ADVICE: Final = (
    (("No space left", "Disk quota"), "Free some disk space; the task is tried again."),
    (
        ("could not read Username", "could not read Password", "Authentication failed"),
        "Give this machine access: `git ls-remote {url}` must work there without a question.",
    ),
    (
        ("Permission denied", "Host key verification", "returned error: 403"),
        "Give this machine access: `git ls-remote {url}` must work there without a question.",
    ),
    (
        ("Could not resolve", "Failed to connect", "Connection", "gave no answer", "timed out"),
        "Check this machine's network; the task is tried again.",
    ),
    (
        ("not found", "does not exist", "not appear to be a git repository"),
        "Check the address; a directory must be a git repository (`git init`).",
    ),
    ((".lock': File exists", "config: File exists"), "If no git is running, remove that lock."),
    (("not on PATH",), "Install git, then restart the daemon."),
)
ADVICE_ELSE: Final = "Try `git ls-remote {url}` on this machine."


class PrepareFailed(Exception):
    """The message is for people: what could not be prepared, what git said, what to do next."""


class _Unusable(Exception):
    """A phrase that follows the repository's name."""


@dataclass(frozen=True)
class Line:
    """One agent's work on one issue: later tasks continue it."""

    branch: str
    owner: str
    """Who may continue it. A branch's name alone does not say: workspaces share caches."""
    task: str

    def names(self) -> Iterator[str]:
        yield self.branch
        yield f"{self.branch}-{digest(self.owner, 6)}"
        yield f"{self.branch}-{self.task}"


@dataclass(frozen=True)
class Worktree:
    branch: str
    base_commit: str | None
    """None: the repository has no commit yet."""


@dataclass(frozen=True)
class _Cached:
    """What a cache holds, read once under its lock."""

    heads: Mapping[str, str]
    remote: Mapping[str, str]
    owners: Mapping[str, str]
    attached: frozenset[str]
    base: str | None


@final
class Repositories:
    def __init__(self, root: Path, git: Git) -> None:
        self.root = root
        self.git = git
        self._caches = root / ".repositories"
        self._moments = count()
        self._fetched_at: dict[Path, int] = {}

    async def add_worktree(self, url: str, path: Path, line: Line) -> Worktree:
        """Check the line's branch out into `path`, which must not exist. Raises `PrepareFailed`.

        A new branch starts at the remote's HEAD; one that exists, here or at the remote, is
        continued. git refuses to check a branch out twice: where another directory still has it,
        the new one gets a branch with a suffix that starts from the other's last commit.
        """
        try:
            origin = parse_origin(url)
            _refuse_missing(origin)
            return await self._add_worktree(origin, path, line)
        except (BadOrigin, _Unusable) as unusable:
            raise PrepareFailed(f"Repository {redact(url)}: {unusable}") from None
        except GitFailed as failure:
            raise PrepareFailed(_explain(url, failure)) from failure

    async def _add_worktree(self, origin: Origin, path: Path, line: Line) -> Worktree:
        cache = self._caches / f"{origin.slug}.git"
        asked_at = next(self._moments)
        async with _alone(cache):
            if self._fetched_at.get(cache, -1) < asked_at:  # No fetch has begun since.
                started_at = next(self._moments)
                await self._clear_shared(cache)
                await self._open(cache, origin)
                await self._fetch(cache, origin)
                self._fetched_at[cache] = started_at
            return await self._attach(cache, path, line)

    async def free(self, work: Path, run: str) -> None:
        """Remove the locks of a git that was killed with `run`, the last that had its home here.

        The caller has claimed the directory. A `.git` that leads elsewhere is left alone.
        """
        within_s = self.git.config.patience_s
        for git_dir in own_git_dirs(work):
            await clear_locks(locks_in(git_dir, work, run), within_s=within_s)
        cache = cache_of(work)
        is_ours = cache is not None and cache.parent == self._caches.resolve()
        if cache and is_ours and await is_locked(shared_locks_in(cache)):
            async with _alone(cache):
                await self._clear_shared(cache)

    async def refresh(self, cache: Path) -> None:
        """See what its remote has by now. The caller has claimed it. Raises `GitFailed`."""
        url = await self.git("config", "--get", "remote.origin.url", cwd=cache)
        await self._fetch(cache, parse_origin(url))

    async def _clear_shared(self, cache: Path) -> None:
        await clear_locks(shared_locks_in(cache), within_s=self.git.config.patience_s)

    async def _open(self, cache: Path, origin: Origin) -> None:
        if not (cache / CONFIG).exists():
            await self.git("init", "--bare", "--quiet", "--template=", str(cache), cwd=self._caches)
            await self.git("config", "include.path", CONFIG, cwd=cache)
        # Asked outside of any repository: the answer is the user's own name, never ours.
        name = await self.git.ask("config", "--get", "user.email", cwd=self._caches)
        _configure(cache, origin, lend_identity=name is None)

    async def _fetch(self, cache: Path, origin: Origin) -> None:
        fetch = ["fetch", "--quiet", "--prune", "--update-shallow"]
        fetch += ["--no-write-fetch-head", *_upload_pack(origin), "origin", BRANCHES]
        env = await self.git.ssh(cwd=cache)
        within_s = self.git.config.network_s
        try:
            await self.git(*fetch, f"+HEAD:{BASE}", cwd=cache, env=env, within_s=within_s)
        except GitFailed as failure:
            if NO_BASE not in failure.said:
                raise
            # Its HEAD names a branch that does not exist: no commit yet, or another default.
            await self.git("update-ref", "-d", BASE, cwd=cache)
            await self.git(*fetch, cwd=cache, env=env, within_s=within_s)

    async def _attach(self, cache: Path, path: Path, line: Line) -> Worktree:
        git = self.git
        await git("worktree", "prune", cwd=cache)
        cached = await self._read(cache)
        name, kin = _choose(line, cached)
        add = ["worktree", "add", "--quiet"]
        if name in cached.heads:
            await self._fast_forward(cache, name, cached)
            await git(*add, str(path), name, cwd=cache)
        else:
            await git("config", f"branch.{name}.{OWNER}", line.owner, cwd=cache)
            start = kin or cached.remote.get(name) or cached.base
            if start is None:
                await self._add_unborn(cache, path, name)
            else:
                await git(*add, "-b", name, str(path), start, cwd=cache)
        return Worktree(name, await head_of(git, path))

    async def _add_unborn(self, cache: Path, path: Path, name: str) -> None:
        """A worktree of an empty repository; git before 2.42 makes one only from a commit."""
        tree = await self.git("mktree", cwd=cache)
        commit = await self.git("commit-tree", tree, "-m", "Nothing", cwd=cache, env=IDENTITY)
        add = ["worktree", "add", "--quiet", "--detach", "--no-checkout"]
        await self.git(*add, str(path), commit, cwd=cache)
        await self.git("symbolic-ref", "HEAD", f"refs/heads/{name}", cwd=path)

    async def _fast_forward(self, cache: Path, name: str, cached: _Cached) -> None:
        """Take in what somebody pushed onto the agent's branch, unless the two have diverged."""
        ours, theirs = cached.heads[name], cached.remote.get(name)
        ancestor = ["merge-base", "--is-ancestor", ours]
        if theirs is not None and await self.git.ask(*ancestor, theirs, cwd=cache) is not None:
            await self.git("update-ref", f"refs/heads/{name}", theirs, ours, cwd=cache)

    async def _read(self, cache: Path) -> _Cached:
        listed = await self.git("for-each-ref", "--format=%(refname) %(objectname)", cwd=cache)
        refs = dict(line.split(" ") for line in listed.splitlines())
        remote = _below("refs/remotes/origin/", refs)
        owners = await self.git.ask("config", "--get-regexp", rf"\.{OWNER}$", cwd=cache)
        trees = await self.git("worktree", "list", "--porcelain", cwd=cache)
        return _Cached(
            heads=_below("refs/heads/", refs),
            remote=remote,
            owners=_owners(owners or ""),
            attached=frozenset(
                line.removeprefix("branch refs/heads/")
                for line in trees.splitlines()
                if line.startswith("branch ")
            ),
            base=refs.get(BASE) or _default_branch(remote),
        )


async def head_of(git: Git, path: Path) -> str | None:
    return await git.ask("rev-parse", "--quiet", "--verify", "HEAD", cwd=path)


async def is_worktree(git: Git, path: Path) -> bool:
    """False once its cache, or its own `.git`, is gone."""
    try:
        await git("rev-parse", "--git-dir", cwd=path)
    except GitFailed as failure:
        if failure.status is None:
            raise
        return False
    return True


@asynccontextmanager
async def _alone(cache: Path) -> AsyncIterator[None]:
    cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Another process may hold it, and cannot set an Event of ours.
    while (claim := claim_nowait(cache)) is None:  # noqa: ASYNC110
        await trio.sleep(CONTENDED_S)
    with claim:
        yield


def _choose(line: Line, cached: _Cached) -> tuple[str, str | None]:
    """The branch to use, and the commit a new one continues from."""
    kin = None
    for name in line.names():
        if name not in cached.heads and name not in cached.attached:
            return name, kin
        if cached.owners.get(name) == line.owner:
            if name not in cached.attached:
                return name, None
            kin = cached.heads.get(name, kin)
    raise _Unusable(
        f"every branch for {line.branch} is checked out in some directory. "
        "Free one with `git worktree remove`."
    )


def _default_branch(remote: Mapping[str, str]) -> str | None:
    """What to start from where the remote's HEAD says nothing."""
    names = [name for name in remote if name != "HEAD" and not name.startswith("understudy/")]
    if not names:
        return None
    for name in ("main", "master"):
        if name in names:
            return remote[name]
    if len(names) > 1:
        raise _Unusable(
            f"its HEAD names no branch that exists, and it has several: {', '.join(names[:5])}. "
            "Say which: `git symbolic-ref HEAD refs/heads/<branch>` there."
        )
    return remote[names[0]]


def _below(prefix: str, refs: Mapping[str, str]) -> dict[str, str]:
    return {ref.removeprefix(prefix): to for ref, to in refs.items() if ref.startswith(prefix)}


def _owners(listed: str) -> dict[str, str]:
    suffix = f".{OWNER}"
    pairs = (line.split(" ", 1) for line in listed.splitlines())
    return {key.removeprefix("branch.").removesuffix(suffix): owner for key, owner in pairs}


def _configure(cache: Path, origin: Origin, *, lend_identity: bool) -> None:
    (cache / "info").mkdir(exist_ok=True)
    credentials = cache / CREDENTIALS
    lines = config_lines(origin, credentials)
    if lend_identity:  # An agent that cannot commit would only say "please tell me who you are".
        lines += "[user]\nname = Understudy\nemail = understudy@localhost\n"
    if origin.credential is not None:
        replace_file(credentials, origin.credential)
    replace_file(cache / CONFIG, lines)


def _upload_pack(origin: Origin) -> list[str]:
    """The other side of a local fetch is a git of its own, which our settings do not reach."""
    return ["--upload-pack=git -c safe.directory='*' upload-pack"] if origin.path else []


def _refuse_missing(origin: Origin) -> None:
    if origin.path is not None and not origin.path.is_dir():
        raise _Unusable(
            "there is no such directory on this machine. Create it, or correct the address."
        )


def _explain(url: str, failure: GitFailed) -> str:
    shown = redact(url)
    advice = next(
        (advice for signs, advice in ADVICE if any(sign in failure.said for sign in signs)),
        ADVICE_ELSE,
    ).format(url=shown)
    return f"Repository {shown} could not be prepared. git said: {failure.said} -- {advice}"
