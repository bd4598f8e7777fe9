"""Remove the directories that nobody needs any more, and say why each of the others stays (R8.6).

A directory goes when its issue is closed or deleted, and nobody has touched it for a while, and no
run is in it; and only after what it alone held was kept elsewhere (`saving.py`). Where anything is
not known, it stays: when the server is away nothing is removed. The cache of a repository goes when
no directory needs it and its remote has all that it holds (`caches.py`).
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final, TypeAlias, TypeVar, TypeVarTuple, Unpack, final
from uuid import UUID

import trio

from understudy.core.struct import Struct
from understudy.core.words import span
from understudy.daemon.caches import caches, need_of
from understudy.daemon.claims import claim_nowait, forget
from understudy.daemon.disk import CACHES, DiskUse, Walked, measure, walk
from understudy.daemon.git import Git, GitFailed
from understudy.daemon.locks import is_locked
from understudy.daemon.machine import here
from understudy.daemon.origins import BadOrigin
from understudy.daemon.record import read_orders, runs_in
from understudy.daemon.repositories import Repositories
from understudy.daemon.saving import Unsaved, save_plain, save_worktree, unpushed
from understudy.daemon.workspace import PROVENANCE, WORK, Provenance, read_provenance
from understudy.wire.daemon import GcCheck, TaskStatus

logger = logging.getLogger(__name__)

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

ASK_S: Final = 10.0
REMOVALS_MAX: Final = 50
"""In one pass; the next one goes on."""
NAMED: Final = re.compile(r"[0-9a-f]{12}|[0-9a-f]{32}")
REMOVING: Final = re.compile(r".*\.removing-\d+")
CLOSED: Final = frozenset({"done", "cancelled"})
ENDED: Final = frozenset({"completed", "failed", "cancelled"})
MODE: Final = 0o700


class Verdict(Struct):
    reason: str


class Keep(Verdict):
    pass


class Remove(Verdict):
    pass


@dataclass(frozen=True)
class Subject:
    """What a directory was made for, as the server knows it. `touched_at`: epoch seconds."""

    sentence: str
    is_closed: bool
    touched_at: float = 0.0


@dataclass(frozen=True)
class Facts:
    """About one directory. `subject` is None where the server cannot be asked."""

    is_ours: bool
    is_of_workspace: bool = True
    is_in_use: bool = False
    subject: Subject | None = None
    idle_s: float = 0.0
    kept_s: float = 0.0
    strays: tuple[str, ...] = ()
    """What lies in it that cannot be kept elsewhere, as phrases."""


def decide(facts: Facts) -> Keep | Remove:
    subject = facts.subject
    if not facts.is_ours:
        return Keep(reason="it was not made by Understudy")
    if not facts.is_of_workspace:
        return Keep(reason="it belongs to another workspace")
    if facts.is_in_use:
        return Keep(reason="a run is in it")
    if subject is None:
        return Keep(reason="the server cannot be asked about it now")
    if not subject.is_closed:
        return Keep(reason=subject.sentence)
    idle = span(facts.idle_s, int)
    if facts.idle_s < facts.kept_s:
        kept = span(facts.kept_s, round)
        return Keep(reason=f"{subject.sentence}; touched {idle} ago, and kept for {kept}")
    if facts.strays:
        return Keep(reason="; ".join(facts.strays))
    return Remove(reason=f"{subject.sentence}, and nobody has touched it for {idle}")


class Judged(Struct):
    path: str
    size: int
    """Bytes on disk."""
    verdict: Keep | Remove
    is_removed: bool = False


class Pass(Struct):
    judged: list[Judged]
    """Of work directories."""
    caches: list[Judged]
    disk: DiskUse


class Deleted(Exception):
    """The server knows it no more."""


Ask: TypeAlias = Callable[[str, UUID], Awaitable[GcCheck | TaskStatus | None]]
"""The call `gc_check` or `status`; None where it has no answer now. Raises `Deleted`."""


@final
@dataclass
class Collection:
    """`home` is the daemon's own directory; `kept_s` as in `Limits`."""

    home: Path
    git: Git
    workspace_id: str
    kept_s: float
    ask: Ask
    _subjects: dict[UUID, Subject | None] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.home / "work"

    async def go(self, *, is_dry: bool = False) -> Pass:
        """One pass: bounded in what it removes."""
        self._subjects.clear()
        judged = await self._go(_directories(self.root), self._judge, is_dry=is_dry)
        cached = await self._go(caches(self.root), self._judge_cache, is_dry=is_dry)
        if not is_dry:
            _forget_locks(self.root)
        disk = await _in_thread(measure, self.home, _now())
        return Pass(judged=judged, caches=cached, disk=disk)

    async def _go(
        self, paths: Iterator[Path], judge: Callable[[Path], Awaitable[Judged]], *, is_dry: bool
    ) -> list[Judged]:
        judged = list[Judged]()
        for path in paths:
            one = await judge(path)
            removed = sum(each.is_removed for each in judged)
            if isinstance(one.verdict, Remove) and not is_dry and removed < REMOVALS_MAX:
                one = await self._remove(one)
            judged.append(one)
        return judged

    async def _judge(self, path: Path) -> Judged:
        walked = await _in_thread(walk, path, _now())
        if REMOVING.fullmatch(path.name):
            verdict: Keep | Remove = Remove(reason="its removal was interrupted")
        else:
            verdict = decide(await self._facts(path, walked))
        return Judged(path=str(path), size=walked.size, verdict=verdict)

    async def _judge_cache(self, cache: Path) -> Judged:
        walked = await _in_thread(walk, cache, _now())
        idle_s = max(0.0, _now() - walked.changed_at)
        idle = span(idle_s, int)
        if REMOVING.fullmatch(cache.name):
            verdict: Keep | Remove = Remove(reason="its removal was interrupted")
        elif (need := await need_of(self.git, cache)) is not None:
            verdict = Keep(reason=need)
        elif idle_s < self.kept_s:
            verdict = Keep(reason=f"used {idle} ago, and kept for {span(self.kept_s, round)}")
        else:
            verdict = Remove(reason=f"nothing needs it, and nobody has used it for {idle}")
        return Judged(path=str(cache), size=walked.size, verdict=verdict)

    async def _facts(self, path: Path, walked: Walked) -> Facts:
        found = _provenance(path)
        if found is None:
            return Facts(is_ours=False)
        facts = Facts(
            is_ours=True,
            is_of_workspace=str(found.workspace_id) == self.workspace_id,
            is_in_use=self._is_named(path, found) or is_locked(_lock(path)),
            kept_s=self.kept_s,
        )
        if facts.is_in_use or not facts.is_of_workspace:
            return facts
        subject = await self._subject(found)
        if subject is None or not subject.is_closed:
            return replace(facts, subject=subject)
        idle_s = max(0.0, _now() - max(walked.changed_at, subject.touched_at))
        facts = replace(facts, subject=subject, idle_s=idle_s)
        if idle_s < self.kept_s:
            return facts
        return replace(facts, strays=await self._strays(path, found, walked))

    def _is_named(self, path: Path, found: Provenance) -> bool:
        """Until its end is acknowledged a run has a directory of its own, which names this one."""
        runs = self.home / "runs"
        if not runs.exists():
            return False
        places = {order.spec.work_dir for order in read_orders(runs)}
        return found.task_id in runs_in(runs) or str(path / WORK) in places

    async def _subject(self, found: Provenance) -> Subject | None:
        about = found.issue_id or found.task_id
        if about not in self._subjects:
            self._subjects[about] = await self._asked(found)
        return self._subjects[about]

    async def _asked(self, found: Provenance) -> Subject | None:
        name, noun = ("gc_check", "issue") if found.issue_id else ("status", "task")
        answer: GcCheck | TaskStatus | None = None
        try:
            with trio.move_on_after(ASK_S):
                answer = await self.ask(name, found.issue_id or found.task_id)
        except Deleted:
            return Subject(f"its {noun} was deleted", is_closed=True)
        return None if answer is None else _subject_of(answer)

    async def _strays(self, path: Path, found: Provenance, walked: Walked) -> tuple[str, ...]:
        phrases = [] if walked.is_whole else ["it holds more files than can be looked through"]
        phrases += _foreign(path)
        for repository in walked.repositories:
            is_worktree = found.branch is not None and repository == path / WORK
            if not is_worktree and (phrase := await unpushed(self.git, repository)):
                phrases.append(phrase)
        return tuple(phrases)

    async def _remove(self, one: Judged) -> Judged:
        path = Path(one.path)
        try:
            if REMOVING.fullmatch(path.name):
                await _in_thread(_remove_tree, path)
            elif path.parent.name == CACHES:
                await self._remove_cache(path)
            else:
                await self._save_and_remove(path)
        except Unsaved as unsaved:
            return _kept(one, str(unsaved))
        except GitFailed as failure:
            return _kept(one, f"git cannot keep what is in it: {failure.said}")
        except OSError as error:
            return _kept(one, f"it could not be removed: {error}")
        logger.info("%s was removed: %s", path, one.verdict.reason)
        return Judged(path=one.path, size=one.size, verdict=one.verdict, is_removed=True)

    async def _save_and_remove(self, path: Path) -> None:
        claim = claim_nowait(path)
        if claim is None:
            raise Unsaved("a run is in it")
        with claim:
            found = _provenance(path)
            before = await _in_thread(walk, path, _now())
            if found is None or self._is_named(path, found) or self._is_fresh(before):
                raise Unsaved("it was taken over just now")
            if (path / WORK).is_dir():
                await self._save(path / WORK, found)
            gone = _rename(path)
            after = await _in_thread(walk, gone, _now())
            if (after.changed_at, after.size) != (before.changed_at, before.size):
                gone.rename(path)
                raise Unsaved("somebody is at work in it")
            await _in_thread(_remove_tree, gone)

    async def _remove_cache(self, cache: Path) -> None:
        """Where its remote, asked now, still has everything."""
        claim = claim_nowait(cache)
        if claim is None:
            raise Unsaved("it is in use")
        with claim:
            if self._is_fresh(await _in_thread(walk, cache, _now())):
                raise Unsaved("it was used just now")
            try:
                await Repositories(self.root, self.git).refresh(cache)
            except (GitFailed, BadOrigin) as failure:
                raise Unsaved(f"its remote cannot be asked whether it has all: {failure}") from None
            if (need := await need_of(self.git, cache)) is not None:
                raise Unsaved(need)
            await _in_thread(_remove_tree, _rename(cache))

    def _is_fresh(self, walked: Walked) -> bool:
        return _now() - walked.changed_at < self.kept_s

    async def _save(self, work: Path, found: Provenance) -> None:
        if found.branch is not None:
            await save_worktree(self.git, work, str(found.task_id))
        else:
            await save_plain(self.git, self.root, work, str(found.task_id))


def _directories(root: Path) -> Iterator[Path]:
    """Of all tasks, those of removals that were interrupted too."""
    workspaces = root.iterdir() if root.is_dir() else iter(())
    for workspace in sorted(workspaces):
        if workspace.is_dir() and not workspace.name.startswith("."):
            yield from sorted(each for each in workspace.iterdir() if each.is_dir())


def _provenance(path: Path) -> Provenance | None:
    """None for what we did not make, or somebody has copied or set aside."""
    found = None if path.is_symlink() or not NAMED.fullmatch(path.name) else read_provenance(path)
    return found if found and str(found.workspace_id) == path.parent.name else None


def _foreign(path: Path) -> Iterator[str]:
    for entry in sorted(path.iterdir()):
        if entry.name == WORK and entry.is_symlink():
            yield f"{entry} is a link"
        elif entry.name not in {WORK, PROVENANCE, f"{PROVENANCE}.new"}:
            yield f"{entry} was put there by somebody else"


def _subject_of(answer: GcCheck | TaskStatus) -> Subject:
    match answer:
        case GcCheck(status=status, updated_at=updated_at):
            sentence = f"its issue is {status.replace('_', ' ')}"
            return Subject(sentence, status in CLOSED, updated_at.timestamp())
        case TaskStatus(status=status):
            return Subject(f"its task is {status}", status in ENDED)


def _kept(one: Judged, reason: str) -> Judged:
    return Judged(path=one.path, size=one.size, verdict=Keep(reason=reason))


def _lock(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _forget_locks(root: Path) -> None:
    """Of directories that are gone."""
    for lock in root.glob("*/*.lock"):
        directory = lock.with_suffix("")
        if directory.exists() or (claim := claim_nowait(directory)) is None:
            continue
        with claim:
            if not directory.exists():
                forget(directory, claim)


def _rename(path: Path) -> Path:
    """So that no run finds half of it."""
    names = (path.with_name(f"{path.name}.removing-{number}") for number in count(1))
    return path.rename(next(name for name in names if not name.exists()))


def _remove_tree(path: Path) -> None:
    """With directories that may not be written to, as some package managers leave them."""
    path.chmod(MODE)
    for directory, names, _ in os.walk(path):
        for inner in (Path(directory, name) for name in names):
            if not inner.is_symlink():
                inner.chmod(MODE)
    shutil.rmtree(path)


async def _in_thread(function: Callable[[Unpack[Ts]], R], *args: *Ts) -> R:
    """What it reads can be read again, and what it removes goes on being removed later."""
    return await here().aside(partial(function, *args))


def _now() -> float:
    return here().epoch_s()  # Files and issues are dated by the wall clock.
