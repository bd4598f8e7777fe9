"""What the collection of old directories keeps, removes and never destroys (R8.6)."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fcntl import flock
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from understudy.daemon import collection as collection_module
from understudy.daemon import saving
from understudy.daemon.changes import snapshot_ref
from understudy.daemon.claims import claim_nowait, forget
from understudy.daemon.collection import (
    Collection,
    Deleted,
    Facts,
    Judged,
    Keep,
    Remove,
    Subject,
    decide,
)
from understudy.daemon.disk import measure, walk
from understudy.daemon.repositories import Repositories
from understudy.daemon.workspace import Order, prepare
from understudy.testing.desk import Clone, Desk
from understudy.wire.daemon import GcCheck, TaskStatus

DAY = 86400.0
NOW = 2_000_000_000.0
LONG_AGO = NOW - 30 * DAY

DONE = Subject("its issue is done", is_closed=True)
OLD = Facts(is_ours=True, subject=DONE, idle_s=9 * DAY, kept_s=7 * DAY)


# What is decided


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (Facts(is_ours=False), "it was not made by Understudy"),
        (replace(OLD, is_of_workspace=False), "it belongs to another workspace"),
        (replace(OLD, is_in_use=True), "a run is in it"),
        (replace(OLD, subject=None), "the server cannot be asked about it now"),
        (replace(OLD, subject=Subject("its issue is todo", is_closed=False)), "its issue is todo"),
        (replace(OLD, idle_s=2 * DAY), "its issue is done; touched 2 d ago, and kept for 7 d"),
        (replace(OLD, strays=("a has commits", "b is a link")), "a has commits; b is a link"),
    ],
)
def test_a_directory_that_may_be_needed_is_kept_and_it_is_said_why(
    facts: Facts, reason: str
) -> None:
    """R8.6"""
    assert decide(facts) == Keep(reason=reason)


def test_a_directory_of_a_closed_issue_goes_when_nobody_has_touched_it() -> None:
    assert decide(OLD) == Remove(reason="its issue is done, and nobody has touched it for 9 d")


FLAGS = st.booleans()


@given(
    st.builds(
        Facts,
        is_ours=FLAGS,
        is_of_workspace=FLAGS,
        is_in_use=FLAGS,
        subject=st.none() | st.builds(Subject, st.just("x"), FLAGS),
        idle_s=st.floats(0, 20 * DAY),
        kept_s=st.floats(0, 20 * DAY),
        strays=st.sampled_from([(), ("x",)]),
    )
)
def test_nothing_goes_that_any_one_fact_speaks_for(facts: Facts) -> None:
    """R8.6"""
    may_go = facts.is_ours and facts.is_of_workspace and not facts.is_in_use and not facts.strays
    is_over = facts.subject is not None and facts.subject.is_closed
    is_old = facts.idle_s >= facts.kept_s
    assert isinstance(decide(facts), Remove) == (may_go and is_over and is_old)


# What is done


@dataclass
class Yard:
    """A daemon's directory, and a server that knows the desk's issue."""

    desk: Desk
    home: Path
    issue: GcCheck | None
    is_deleted: bool = False
    asked: list[tuple[str, uuid.UUID]] = field(default_factory=list)
    tasks: dict[uuid.UUID, TaskStatus] = field(default_factory=dict)

    async def ask(self, name: str, subject: uuid.UUID) -> GcCheck | TaskStatus | None:
        await trio.lowlevel.checkpoint()
        self.asked.append((name, subject))
        if self.is_deleted:
            raise Deleted
        return self.tasks.get(subject) if name == "status" else self.issue

    def collection(self) -> Collection:
        workspace = str(self.desk.ids["workspace"])
        return Collection(self.home, self.desk.git, workspace, 7 * DAY, self.ask)

    async def go(self, *, is_dry: bool = False) -> list[Judged]:
        return (await self.collection().go(is_dry=is_dry)).judged

    async def work(self, order: Order) -> Path:
        """A run from its preparation to its end."""
        work = await prepare(order, self.desk.repositories)
        work.claim.close()
        return work.path

    def age(self, path: Path) -> None:
        """Nobody has touched anything in there for long."""
        for entry in [path, *path.rglob("*")]:
            os.utime(entry, (LONG_AGO, LONG_AGO), follow_symlinks=False)

    async def aged(self, order: Order, change: Callable[[Clone], object] = lambda _: None) -> Path:
        work = await self.work(order)
        change(self.desk.clone(work))
        self.age(work.parent)
        return work


def closed(status: str = "done") -> GcCheck:
    return GcCheck(status=status, updated_at=datetime.fromtimestamp(LONG_AGO, UTC))


@pytest.fixture
def yard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Yard:
    monkeypatch.setattr(collection_module, "_now", lambda: NOW)
    desk, home = Desk(tmp_path), tmp_path / "daemon"
    (home / "runs").mkdir(parents=True)
    desk.repositories = Repositories(home / "work", desk.git)
    return Yard(desk, home, closed())


def removed(judged: list[Judged]) -> list[str]:
    return [each.path for each in judged if each.is_removed]


def reason(judged: list[Judged]) -> str:
    (one,) = judged
    assert isinstance(one.verdict, Keep)
    return one.verdict.reason


async def test_an_old_directory_of_a_closed_issue_is_removed_and_its_branch_stays(
    yard: Yard,
) -> None:
    """R8.6"""
    user = yard.desk.repository()
    work = await yard.aged(yard.desk.order(user), lambda tree: tree.commit("a", "1"))
    assert removed(await yard.go()) == [str(work.parent)]
    assert not work.parent.exists()
    again = await yard.work(yard.desk.order(user))
    assert (again / "a").read_text() == "1"


@pytest.mark.parametrize(
    ("issue", "said"),
    [
        (None, "the server cannot be asked about it now"),
        (closed("in_review"), "its issue is in review"),
        (GcCheck(status="done", updated_at=datetime.fromtimestamp(NOW, UTC)), "kept for 7 d"),
    ],
)
async def test_while_the_server_is_away_or_the_issue_is_alive_nothing_goes(
    yard: Yard, issue: GcCheck | None, said: str
) -> None:
    """R8.6"""
    work = await yard.aged(yard.desk.order())
    yard.issue = issue
    assert said in reason(await yard.go())
    assert work.is_dir()


async def test_an_orphan_whose_issue_or_task_was_deleted_goes(yard: Yard) -> None:
    await yard.aged(yard.desk.order())
    await yard.aged(replace(yard.desk.order(), issue_id=None))
    yard.is_deleted = True
    assert len(removed(await yard.go())) == 2
    assert sorted(name for name, _ in yard.asked) == ["gc_check", "status"]


@pytest.mark.parametrize(("status", "is_gone"), [("completed", True), ("running", False)])
async def test_a_directory_without_an_issue_goes_by_its_task(
    yard: Yard, status: str, *, is_gone: bool
) -> None:
    order = replace(yard.desk.order(), issue_id=None)
    yard.tasks[order.task_id] = TaskStatus(status=status)
    await yard.aged(order)
    assert bool(removed(await yard.go())) == is_gone


async def test_a_dry_run_removes_nothing_and_says_what_would_go(yard: Yard) -> None:
    work = await yard.aged(yard.desk.order(yard.desk.repository()))
    (one,) = await yard.go(is_dry=True)
    assert isinstance(one.verdict, Remove)
    assert not one.is_removed
    assert work.is_dir()


async def test_what_a_person_touched_lately_stays(yard: Yard) -> None:
    work = await yard.aged(yard.desk.order())
    deep = work / "a/b"
    deep.mkdir(parents=True)
    (deep / "note").write_text("x")
    os.utime(deep / "note", (NOW - DAY, NOW - DAY))
    for each in (work, work / "a", deep):
        os.utime(each, (LONG_AGO, LONG_AGO))
    assert "touched 24 h ago" in reason(await yard.go())


async def test_a_directory_in_which_a_run_lives_stays(yard: Yard) -> None:
    """R8.3"""
    work = await yard.aged(yard.desk.order())
    claim = claim_nowait(work.parent)
    assert claim is not None
    with claim:
        assert reason(await yard.go()) == "a run is in it"
    assert removed(await yard.go())


async def test_a_run_that_is_not_acknowledged_keeps_its_directory_without_a_lock(
    yard: Yard,
) -> None:
    """R6.4: its keeper may be dead, and its end not yet judged."""
    order = yard.desk.order()
    await yard.aged(order)
    (yard.home / "runs" / str(order.task_id)).mkdir()
    assert reason(await yard.go()) == "a run is in it"


async def test_what_we_did_not_make_is_not_looked_at_twice(yard: Yard) -> None:
    ours = await yard.aged(yard.desk.order())
    workspace = ours.parent.parent
    (workspace / "mine").mkdir()
    (workspace / "0123456789ab").mkdir()
    copied = workspace / "copy-of-ours"
    copied.mkdir()
    (copied / "provenance.json").write_bytes((ours.parent / "provenance.json").read_bytes())
    (workspace / "abcdef012345").symlink_to(copied)
    judged = await yard.go()
    kept = {Path(each.path).name: each.verdict for each in judged if not each.is_removed}
    assert set(kept) == {"mine", "0123456789ab", "copy-of-ours", "abcdef012345"}
    assert {each.reason for each in kept.values()} == {"it was not made by Understudy"}
    assert not (workspace / "mine.lock").exists()


async def test_a_directory_of_another_workspace_stays(yard: Yard) -> None:
    await yard.aged(replace(yard.desk.order(), workspace_id=uuid.uuid4()))
    assert reason(await yard.go()) == "it belongs to another workspace"
    assert yard.asked == []


async def test_a_removal_that_was_interrupted_is_finished(yard: Yard) -> None:
    work = await yard.aged(yard.desk.order())
    left = work.parent.rename(work.parent.with_name(f"{work.parent.name}.removing-1"))
    assert removed(await yard.go()) == [str(left)]
    assert not left.exists()


async def test_one_pass_removes_no_more_than_it_may(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection_module, "REMOVALS_MAX", 1)
    for _ in range(3):
        await yard.aged(yard.desk.order())
    assert [len(removed(await yard.go())) for _ in range(4)] == [1, 1, 1, 0]
    assert len({subject for _, subject in yard.asked[:3]}) == 1


async def test_directories_that_may_not_be_written_to_go_too(yard: Yard) -> None:
    def seal(tree: Clone) -> None:
        (tree.path / "cache").mkdir()
        (tree.path / "cache/module").write_text("x")
        (tree.path / "cache").chmod(0o555)

    await yard.aged(yard.desk.order(), seal)
    assert removed(await yard.go())


# What is never destroyed


async def test_a_plain_directory_is_kept_as_a_commit(yard: Yard) -> None:
    """R8.6: there is no repository that could hold it."""
    order = yard.desk.order()
    await yard.aged(order, lambda tree: (tree.path / "report").write_text("found it"))
    assert removed(await yard.go())
    store = yard.desk.clone(yard.home / "work/.repositories" / saving.STORE)
    assert store.git("show", f"{snapshot_ref(str(order.task_id))}:report") == "found it"


async def test_a_plain_directory_too_large_for_a_commit_stays(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "PLAIN_MAX", 1 << 20)
    large = b"x" * (2 << 20)
    work = await yard.aged(yard.desk.order(), lambda tree: (tree.path / "a").write_bytes(large))
    assert reason(await yard.go()) == "it holds 2 MiB that are in no repository"
    assert (work / "a").read_bytes() == large


def clone_inside(yard: Yard, tree: Clone) -> Clone:
    user = yard.desk.repository("other")
    tree.git("clone", "--quiet", str(user.path), "inner")
    return yard.desk.clone(tree.path / "inner")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda inner: None, None),
        (lambda inner: inner.commit("a", "1"), "has commits that are on no remote"),
        (lambda inner: (inner.path / "a").write_text("1"), "has uncommitted work"),
        (lambda inner: (inner.path / ".git/HEAD").write_text("?"), "cannot be read"),
    ],
    ids=["pushed", "commits", "edits", "broken"],
)
async def test_a_repository_of_the_agents_own_stays_unless_all_is_pushed(
    yard: Yard, change: Callable[[Clone], object], said: str | None
) -> None:
    """R8.6"""
    await yard.aged(yard.desk.order(), lambda tree: change(clone_inside(yard, tree)))
    judged = await yard.go()
    assert (said is None) == bool(removed(judged))
    assert said is None or said in reason(judged)


async def test_a_directory_that_changes_while_it_is_saved_is_put_back(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R8.6: a person's editor takes no lock."""
    work = await yard.aged(yard.desk.order(yard.desk.repository()))

    async def save_and_edit(*args: Any) -> None:
        await saving.save_worktree(*args)
        (work / "README").write_text("edited after that")
        os.utime(work / "README", (NOW, NOW))

    monkeypatch.setattr(collection_module, "save_worktree", save_and_edit)
    assert reason(await yard.go()) == "somebody is at work in it"
    assert (work / "README").read_text() == "edited after that"


class Vandal:
    """Does to a worktree what agents do, and remembers what must not be lost."""

    def __init__(self, desk: Desk, tree: Clone, dice: Random) -> None:
        self.desk, self.tree, self.dice = desk, tree, dice
        self.number = 0
        self.commits: set[str] = set()

    def act(self) -> str:
        acts = [
            *(self.edit, self.stage, self.commit, self.detach, self.branch, self.stash),
            *(self.amend, self.reset, self.conflict, self.delete, self.link, self.rebase),
        ]
        act = self.dice.choice(acts)
        act()
        self.commits.add(self.tree.git("rev-parse", "HEAD"))
        return act.__name__

    def fresh(self) -> str:
        self.number += 1
        return f"file-{self.number}"

    def edit(self) -> None:
        name = self.dice.choice(["README", self.fresh()])
        (self.tree.path / name).write_text(f"{self.dice.random()}\n")

    def stage(self) -> None:
        self.edit()
        self.tree.git("add", "--all")

    def commit(self) -> None:
        self.tree.git("add", "--all")
        self.tree.git("commit", "--quiet", "--allow-empty", "-m", self.fresh())

    def detach(self) -> None:
        self.tree.git("checkout", "--quiet", "--detach")
        self.commit()

    def branch(self) -> None:
        self.tree.git("checkout", "--quiet", "-b", self.fresh())

    def stash(self) -> None:
        self.commit()
        (self.tree.path / "README").write_text(f"{self.dice.random()}\n")
        self.tree.git("stash", "--quiet", "--include-untracked")
        self.commits.add(self.tree.git("rev-parse", "stash@{0}"))

    def amend(self) -> None:
        self.tree.git("commit", "--quiet", "--amend", "--allow-empty", "-m", self.fresh())

    def reset(self) -> None:
        self.commit()
        self.commits.add(self.tree.git("rev-parse", "HEAD"))
        self.tree.git("reset", "--quiet", "--hard", "HEAD~1")

    def conflict(self) -> None:
        self.commit()
        here = self.tree.git("rev-parse", "HEAD")
        self.tree.git("checkout", "--quiet", "--detach", "HEAD~1")
        (self.tree.path / "README").write_text(f"{self.dice.random()}\n")
        self.commit()
        self.commits.add(self.tree.git("rev-parse", "HEAD"))
        try:
            self.tree.git("merge", "--quiet", here)
        except AssertionError:
            pass  # Left as it is, as agents do.

    def rebase(self) -> None:
        self.commit()
        self.tree.git("rebase", "--quiet", "--force-rebase", "HEAD~1")

    def delete(self) -> None:
        (self.tree.path / "README").unlink(missing_ok=True)

    def link(self) -> None:
        (self.tree.path / self.fresh()).symlink_to("/nowhere")

    def contents(self) -> set[str]:
        """Of the files that git would take: what a snapshot must hold."""
        listed = self.tree.git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
        files = [self.tree.path / name for name in listed.split("\0") if name]
        there = [str(file) for file in files if file.is_file() and not file.is_symlink()]
        return set(self.tree.git("hash-object", *there).splitlines()) if there else set()


@pytest.mark.parametrize("round_", range(12))
async def test_a_collection_destroys_no_work_whatever_state_an_agent_left(
    yard: Yard, request: pytest.FixtureRequest, round_: int
) -> None:
    """R8.6: what was in the directory is reachable from a ref."""
    dice = Random(request.config.getoption("--seed") + round_)
    user = yard.desk.repository()
    order = yard.desk.order(user)
    work = await yard.work(order)
    tree = yard.desk.clone(work)
    vandal = Vandal(yard.desk, tree, dice)
    vandal.commit()
    history = [vandal.act() for _ in range(dice.randrange(1, 6))]
    contents = vandal.contents()
    cache = yard.desk.clone(
        Path(tree.git("rev-parse", "--path-format=absolute", "--git-common-dir"))
    )
    yard.age(work.parent)
    assert removed(await yard.go()) == [str(work.parent)]
    cache.git("worktree", "prune")
    listed = cache.git("rev-list", "--all", "--objects").splitlines()
    reachable = {line.split(" ")[0] for line in listed}
    if cache.has("refs/stash"):  # The older ones are its past, which is the cache's own.
        reachable |= set(cache.git("rev-list", "--walk-reflogs", "refs/stash").splitlines())
    assert vandal.commits <= reachable, history
    assert contents <= reachable, history


# Caches of repositories


async def one_cache(yard: Yard, *, is_dry: bool = False) -> Judged:
    """What becomes of the only one, which nobody has used for long."""
    [cache] = (yard.home / "work/.repositories").glob("*.git")
    yard.age(cache)
    done = await yard.collection().go(is_dry=is_dry)
    [one] = done.caches
    assert one.path == str(cache)
    assert one.is_removed is not cache.exists()
    return one


async def without_directory(
    yard: Yard, change: Callable[[Clone], object] = lambda _: None
) -> Clone:
    user = yard.desk.repository()
    await yard.aged(yard.desk.order(user), change)
    [cache] = (yard.home / "work/.repositories").glob("*.git")
    os.utime(cache, (NOW, NOW))
    await yard.go()
    return user


async def test_a_cache_that_nothing_needs_goes_with_its_lock(yard: Yard) -> None:
    """R8.6"""
    user = await without_directory(yard)
    assert not (await one_cache(yard, is_dry=True)).is_removed
    gone = await one_cache(yard)
    assert gone.is_removed
    assert gone.size > 0
    assert "nothing needs it, and nobody has used it for" in gone.verdict.reason
    assert [path.name for path in (yard.home / "work").rglob("*.lock")] == []
    again = await yard.work(yard.desk.order(user))
    assert (again / "README").exists()


async def test_a_cache_stays_while_a_directory_needs_it(yard: Yard) -> None:
    yard.issue = closed("in_review")
    work = await yard.work(yard.desk.order(yard.desk.repository()))
    assert (await one_cache(yard)).verdict == Keep(reason=f"a worktree of it is there: {work}")


async def test_a_cache_that_was_used_lately_stays(yard: Yard) -> None:
    await without_directory(yard)
    [cache] = (await yard.collection().go()).caches
    assert cache.verdict == Keep(reason="used 0 s ago, and kept for 7 d")


def leave_file(tree: Clone) -> None:
    (tree.path / "draft").write_text("uncommitted")


def tag(tree: Clone) -> None:
    tree.commit("a", "1")
    tree.git("tag", "mine")
    tree.git("reset", "--quiet", "--hard", "HEAD~1")


def stash(tree: Clone) -> None:
    (tree.path / "README").write_text("other")
    tree.git("stash", "--quiet")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tree: tree.commit("a", "1"), "it has commits that are on no remote"),
        (tag, "it has commits that are on no remote"),
        (stash, "it has commits that are on no remote"),
        (leave_file, "it keeps what directories held that were removed, at refs/understudy/"),
    ],
)
async def test_a_cache_with_work_of_its_own_stays(
    yard: Yard, change: Callable[[Clone], object], said: str
) -> None:
    """R8.6: nothing unpushed is ever deleted."""
    await without_directory(yard, change)
    assert (await one_cache(yard)).verdict == Keep(reason=said)


async def test_a_commit_whose_directory_a_person_removed_keeps_the_cache(yard: Yard) -> None:
    """R8.6: where a HEAD stood is all that is left of it."""
    tree = yard.desk.clone(await yard.work(yard.desk.order(yard.desk.repository())))
    tree.git("checkout", "--quiet", "--detach")
    tree.commit("a", "1")
    tree.git("checkout", "--quiet", "--detach", "HEAD~1")
    shutil.rmtree(tree.path.parent)
    said = "it has commits that are on no remote"
    assert (await one_cache(yard)).verdict == Keep(reason=said)


async def test_a_cache_whose_remote_has_lost_the_work_or_is_away_stays(yard: Yard) -> None:
    """R8.6: the remote is asked before, not remembered."""

    def push(tree: Clone) -> None:
        tree.commit("a", "1")
        tree.git("push", "--quiet", "origin", "HEAD:refs/heads/theirs")

    user = await without_directory(yard, push)
    hidden = user.path.rename(yard.desk.directory / "hidden")
    assert "its remote cannot be asked" in (await one_cache(yard)).verdict.reason
    hidden.rename(user.path)
    user.git("branch", "--quiet", "-D", "theirs")
    said = "it has commits that are on no remote"
    assert (await one_cache(yard)).verdict == Keep(reason=said)


async def test_a_cache_in_use_and_what_is_no_cache_of_ours_stay(yard: Yard) -> None:
    await without_directory(yard)
    [cache] = (yard.home / "work/.repositories").glob("*.git")
    (cache.parent / "mine").mkdir()
    claim = claim_nowait(cache)
    assert claim is not None
    with claim:
        assert (await one_cache(yard)).verdict == Keep(reason="it is in use")
    (cache / "understudy.config").unlink()
    assert (await one_cache(yard)).verdict == Keep(reason="it was not made by Understudy")


async def test_a_removal_of_a_cache_that_was_interrupted_is_finished(yard: Yard) -> None:
    await without_directory(yard)
    [cache] = (yard.home / "work/.repositories").glob("*.git")
    yard.age(cache)
    left = cache.rename(cache.with_name(f"{cache.name}.removing-1"))
    [one] = (await yard.collection().go()).caches
    assert one.is_removed
    assert not left.exists()


def test_a_lock_file_that_is_removed_lets_nobody_in_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R8.3: who had opened it before has no claim of a file that is not there any more."""
    directory = tmp_path / "d"
    collector = claim_nowait(directory)
    assert collector is not None

    def lock(file: int, how: int) -> None:
        if collector.descriptors:
            forget(directory, collector)
        flock(file, how)

    with monkeypatch.context() as patched:
        patched.setattr("fcntl.flock", lock)
        claim = claim_nowait(directory)
        patched.undo()
    assert claim is not None
    with claim:
        assert claim_nowait(directory) is None


# How much there is


def test_disk_use_is_told_by_what_it_is_for(tmp_path: Path) -> None:
    for name, size in (("work/w/d/f", 40_000), ("work/.repositories/c", 80_000), ("runs/r/out", 9)):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x" * size)
    (tmp_path / "outbox.db").write_bytes(b"x" * 100)
    used = measure(tmp_path, NOW)
    assert used.work >= 40_000
    assert used.caches >= 80_000 > used.spools > 0
    assert used.outbox == 100


def test_a_time_in_the_future_keeps_no_directory_for_ever(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    os.utime(tmp_path / "a", (NOW + DAY, NOW + DAY))
    os.utime(tmp_path, (LONG_AGO, LONG_AGO))
    assert walk(tmp_path, NOW).changed_at == LONG_AGO
