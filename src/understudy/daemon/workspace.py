"""The directory of a run: found again, taken over from an earlier run, or made (R8.3, R8.4).

    {root}/{workspace}/{task id, last 12 hex}/provenance.json   whose it is; written last
    {root}/{workspace}/{task id, last 12 hex}/work/             where the agent works
    {root}/{workspace}/{task id, last 12 hex}.lock              held while a run lives there

Nothing here deletes, resets or cleans. What cannot be used is left where it is, or renamed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Final
from uuid import UUID

import msgspec

from understudy.daemon.briefs import BadSkill, Brief, write_brief
from understudy.daemon.claims import Claim, claim_nowait
from understudy.daemon.files import replace_file
from understudy.daemon.git import GitFailed, redact
from understudy.daemon.origins import slugged
from understudy.daemon.repositories import (
    Line,
    PrepareFailed,
    Repositories,
    head_of,
    is_worktree,
)

logger = logging.getLogger(__name__)

FORMAT: Final = 1
PROVENANCE: Final = "provenance.json"
WORK: Final = "work"


class WorkDirBusy(Exception):
    """This very task has a run that is alive: look after that one, and start no other."""


@dataclass(frozen=True, kw_only=True)
class Order:
    workspace_id: UUID
    task_id: UUID
    agent_id: UUID
    agent_name: str
    issue_id: UUID | None
    issue_key: str | None
    provider: str
    brief: Brief
    created_at: datetime
    repository: str | None = None
    prior_work_dir: str | None = None


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Whose directory this is; it exists once the directory is prepared."""

    format: int = FORMAT
    workspace_id: UUID
    task_id: UUID
    agent_id: UUID
    issue_id: UUID | None
    repository: str | None
    branch: str | None
    base_commit: str | None
    created_at: datetime


@dataclass(frozen=True)
class WorkDir:
    path: Path
    branch: str | None
    base_commit: str | None
    """Where HEAD stood when the task began; None where there was no commit."""
    brief: Path
    """What the agent is to read; a prompt has to name only `LAST_RESORT`."""
    is_reused: bool
    """The directory of `prior_work_dir`: only there may its session be resumed (R5.9)."""
    claim: Claim
    """To be inherited by the keeper, and closed here once it has it."""


async def prepare(order: Order, repositories: Repositories) -> WorkDir:
    """Find or make the task's directory; it is claimed from here on.

    The same task finds its own directory again, as it left it. Raises `WorkDirBusy`, or
    `PrepareFailed` with a sentence for people.
    """
    try:
        claim, home = _claim_own(repositories.root, order)
        try:
            return await _prepare(order, repositories, claim, home)
        except BaseException:
            claim.close()
            raise
    except OSError as error:
        raise PrepareFailed(
            f"The directory of task {order.task_id} could not be prepared: {error}. "
            f"Check space and permissions under {repositories.root}; the task is tried again."
        ) from error
    except BadSkill as bad:
        raise PrepareFailed(f"Agent {order.agent_name}: {bad}. Correct the skill.") from None
    except GitFailed as failure:
        raise PrepareFailed(f"git failed in the task's directory: {failure.said}") from failure


async def _prepare(order: Order, repositories: Repositories, claim: Claim, home: Path) -> WorkDir:
    found = read_provenance(home)
    is_reused = False
    if found is not None and await _is_usable(home, found, repositories):
        await repositories.free(home / WORK, str(found.task_id))
    else:
        prior = await _claim_prior(order, repositories, claim)
        is_reused = prior is not None
        if prior is not None:
            home = prior
            found = await _take_over(order, repositories, home)
        else:
            found = await _make(order, repositories, home)
    path = home / WORK
    brief = await write_brief(repositories.git, path, order.provider, order.brief)
    logger.info("task %s: prepared %s, branch %s", order.task_id, path, found.branch)
    return WorkDir(path, found.branch, found.base_commit, brief, is_reused, claim)


def _claim_own(root: Path, order: Order) -> tuple[Claim, Path]:
    """The task's lock is held wherever it works: a second run of it is refused here."""
    workspace = root / str(order.workspace_id)
    workspace.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in (order.task_id.hex[-12:], order.task_id.hex):
        home = workspace / name
        claim = claim_nowait(home)
        found = read_provenance(home)
        if found is None or found.task_id == order.task_id:
            if claim is None:
                raise WorkDirBusy(f"{home} is in use by a run of task {order.task_id}")
            return claim, home
        if claim is not None:
            claim.close()  # Taken over by a later task, or an id that ends in the same digits.
    raise PrepareFailed(f"The directories for task {order.task_id} belong to other tasks.")


async def _claim_prior(order: Order, repositories: Repositories, claim: Claim) -> Path | None:
    """None: nothing to take over, or a run is alive in it."""
    home = _prior_home(order, repositories.root)
    held = claim_nowait(home) if home and home.is_dir() else None
    if home is None or held is None:
        return None
    with held:
        found = read_provenance(home)
        if not _is_kin(order, found) or not await _is_usable(home, found, repositories):
            return None
        claim.absorb(held)
    return home


def _prior_home(order: Order, root: Path) -> Path | None:
    """Only what `prepare` can have made is considered, whatever the server says."""
    if order.prior_work_dir is None or order.issue_id is None:
        return None
    path = Path(order.prior_work_dir)
    home = root / str(order.workspace_id) / path.parent.name
    return home if path == home / WORK else None


def _is_kin(order: Order, found: Provenance | None) -> bool:
    wanted = (order.workspace_id, order.agent_id, order.issue_id, _repository(order))
    return found is not None and wanted == (
        found.workspace_id,
        found.agent_id,
        found.issue_id,
        found.repository,
    )


async def _is_usable(home: Path, found: Provenance | None, repositories: Repositories) -> bool:
    work = home / WORK
    if found is None or work.is_symlink() or not work.is_dir():
        return False
    is_plain = found.branch is None and not (work / ".git").exists()
    return is_plain or await is_worktree(repositories.git, work)


async def _take_over(order: Order, repositories: Repositories, home: Path) -> Provenance:
    """As the earlier run left it, commits, edits and all (R8.6); but for the locks of its git."""
    earlier = read_provenance(home)
    assert earlier is not None, "claimed as ours a moment ago"
    await repositories.free(home / WORK, str(earlier.task_id))
    if earlier.task_id == order.task_id:
        return earlier
    head = await head_of(repositories.git, home / WORK) if earlier.branch else None
    return _write_provenance(home, order, branch=earlier.branch, base_commit=head)


async def _make(order: Order, repositories: Repositories, home: Path) -> Provenance:
    _clear(home, needs_work=order.repository is None)
    if order.repository is None:
        return _write_provenance(home, order, branch=None, base_commit=None)
    made = await repositories.add_worktree(order.repository, home / WORK, _line(order))
    return _write_provenance(home, order, branch=made.branch, base_commit=made.base_commit)


def _clear(home: Path, *, needs_work: bool) -> None:
    """Set aside an interrupted preparation, or a worktree without its cache: nobody's to delete."""
    if home.exists() and any(home.iterdir()):
        names = (home.with_name(f"{home.name}.aside-{number}") for number in count(1))
        home.rename(next(name for name in names if not name.exists()))
    home.mkdir(mode=0o700, exist_ok=True)
    if needs_work:
        (home / WORK).mkdir()


def _line(order: Order) -> Line:
    thing = order.issue_key or order.task_id.hex[-12:]
    return Line(
        branch=f"understudy/{slugged(order.agent_name)}/{slugged(thing)}",
        owner=f"{order.workspace_id}/{order.agent_id}/{order.issue_id or order.task_id}",
        task=order.task_id.hex[-12:],
    )


def _repository(order: Order) -> str | None:
    return order.repository and redact(order.repository)


def _write_provenance(
    home: Path, order: Order, *, branch: str | None, base_commit: str | None
) -> Provenance:
    provenance = Provenance(
        workspace_id=order.workspace_id,
        task_id=order.task_id,
        agent_id=order.agent_id,
        issue_id=order.issue_id,
        repository=_repository(order),
        branch=branch,
        base_commit=base_commit,
        created_at=order.created_at,
    )
    replace_file(home / PROVENANCE, msgspec.json.encode(provenance).decode())
    return provenance


def read_provenance(home: Path) -> Provenance | None:
    """None where there is none that we can read: then the directory is not ours to use."""
    try:
        found = msgspec.json.decode((home / PROVENANCE).read_bytes(), type=Provenance)
    except (FileNotFoundError, NotADirectoryError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return found if found.format == FORMAT else None
