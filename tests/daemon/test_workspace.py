from __future__ import annotations

import shutil
import subprocess
import uuid
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import trio

from understudy.daemon.git import GitConfig
from understudy.daemon.repositories import PrepareFailed
from understudy.daemon.workspace import Order, WorkDir, WorkDirBusy, prepare
from understudy.testing.desk import Clone, Desk, alive


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


async def run(desk: Desk, order: Order) -> WorkDir:
    """A run from its preparation to its end."""
    work = await prepare(order, desk.repositories)
    work.claim.close()
    return work


async def test_a_directory_is_named_by_the_end_of_its_tasks_id(desk: Desk) -> None:
    """R8.3"""
    order = desk.order()
    work = await run(desk, order)
    home = desk.directory / "root" / str(order.workspace_id) / order.task_id.hex[-12:]
    assert work.path == home / "work"
    assert (work.branch, work.base_commit, work.is_reused) == (None, None, False)


async def test_a_worktree_stands_ready_on_its_branch(desk: Desk) -> None:
    """R2.6, R8.5"""
    user = desk.repository()
    work = await run(desk, desk.order(user))
    assert work.branch == "understudy/nia/und-7"
    assert work.base_commit == user.git("rev-parse", "HEAD")
    assert (work.path / "README").read_text() == "hello\n"


async def test_only_we_may_read_what_an_agent_works_on(desk: Desk) -> None:
    work = await run(desk, desk.order())
    assert work.path.parent.stat().st_mode & 0o077 == 0


async def test_a_redelivered_task_finds_its_directory_as_it_left_it(desk: Desk) -> None:
    """R8.3"""
    user = desk.repository()
    order = desk.order(user)
    first = await run(desk, order)
    tree = desk.clone(first.path)
    tree.commit("work", "1")
    (first.path / "edit").write_text("x")
    user.commit("elsewhere", "2")
    again = await run(desk, order)
    assert (again.path, again.branch) == (first.path, first.branch)
    assert again.base_commit == first.base_commit, "the task's commits still count as its own"
    assert (first.path / "edit").read_text() == "x"


async def test_the_next_task_of_agent_and_issue_goes_on_in_the_prior_directory(desk: Desk) -> None:
    """R8.4, R8.6"""
    user = desk.repository()
    prior = await run(desk, desk.order(user))
    head = desk.clone(prior.path).commit("work", "1")
    (prior.path / "edit").write_text("uncommitted")
    order = desk.order(user, prior=prior.path)
    work = await run(desk, order)
    assert work.path == prior.path
    assert work.is_reused
    assert work.base_commit == head
    assert (work.path / "edit").read_text() == "uncommitted"
    desk.clone(work.path).commit("more", "1")
    again = await run(desk, order)
    assert (again.path, again.base_commit) == (prior.path, head)


async def test_a_task_that_took_a_directory_over_owns_it(desk: Desk) -> None:
    """R8.4: the earlier task, should it come again, does not work beside its successor."""
    earlier = desk.order()
    prior = await run(desk, earlier)
    await run(desk, desk.order(prior=prior.path))
    again = await run(desk, earlier)
    assert again.path.parent.name == earlier.task_id.hex


@pytest.mark.parametrize("field", ["workspace_id", "agent_id", "issue_id", "repository"])
async def test_a_directory_of_other_work_is_not_taken_over(desk: Desk, field: str) -> None:
    """R8.4"""
    user, other = desk.repository(), desk.repository("other")
    prior = await run(desk, desk.order(user))
    changed = str(other.path) if field == "repository" else uuid.uuid4()
    order = replace(desk.order(user, prior=prior.path), **{field: changed})  # type: ignore[arg-type]
    work = await run(desk, order)
    assert work.path != prior.path
    assert not work.is_reused


async def test_a_task_without_an_issue_takes_nothing_over(desk: Desk) -> None:
    order = replace(desk.order(), issue_id=None, issue_key=None)
    prior = await run(desk, order)
    other = replace(order, task_id=uuid.uuid4(), prior_work_dir=str(prior.path))
    assert (await run(desk, other)).path != prior.path


@pytest.mark.parametrize("damage", ["gone", "no provenance", "torn provenance", "newer", "link"])
async def test_a_directory_that_is_not_provably_ours_is_not_taken_over(
    desk: Desk, damage: str
) -> None:
    """R8.4"""
    prior = await run(desk, desk.order())
    provenance = prior.path.parent / "provenance.json"
    match damage:
        case "gone":
            shutil.rmtree(prior.path.parent)
        case "no provenance":
            provenance.unlink()
        case "torn provenance":
            provenance.write_bytes(provenance.read_bytes()[:-9])
        case "newer":
            fields = msgspec.json.decode(provenance.read_bytes())
            provenance.write_bytes(msgspec.json.encode(fields | {"format": 2}))
        case _:
            shutil.rmtree(prior.path)
            prior.path.symlink_to(desk.directory / "home")
    work = await run(desk, desk.order(prior=prior.path))
    assert work.path != prior.path


async def test_only_directories_under_our_root_are_taken_over(desk: Desk) -> None:
    """The server names `prior_work_dir`; it does not choose where agents work."""
    prior = await run(desk, desk.order())
    copy = desk.directory / "elsewhere"
    shutil.copytree(prior.path.parent, copy)
    for path in (copy / "work", prior.path / "..", prior.path.parent / "x/../work"):
        assert (await run(desk, desk.order(prior=path))).path != path
    assert (await run(desk, desk.order(prior=copy / "work"))).path != copy / "work"


async def test_a_directory_with_a_live_run_is_not_taken_over(desk: Desk) -> None:
    """R8.3"""
    prior = await prepare(desk.order(), desk.repositories)
    with prior.claim:
        work = await run(desk, desk.order(prior=prior.path))
    assert work.path != prior.path


async def test_a_keeper_holds_the_claim_when_its_daemon_is_gone(desk: Desk) -> None:
    """R8.1, R8.3: the claim goes with the descriptors, not with the process that took it."""
    order = desk.order()
    work = await prepare(order, desk.repositories)
    keeper = await trio.lowlevel.open_process(
        ["cat"], stdin=subprocess.PIPE, pass_fds=work.claim.descriptors
    )
    assert keeper.stdin is not None
    work.claim.close()
    with pytest.raises(WorkDirBusy, match=str(order.task_id)):
        await prepare(order, desk.repositories)
    await keeper.stdin.aclose()
    await keeper.wait()
    assert (await run(desk, order)).path == work.path


async def test_a_failed_preparation_lets_go_of_its_claims(desk: Desk) -> None:
    user = desk.repository()
    order = desk.order(user)
    hidden = user.path.rename(desk.directory / "hidden")
    with pytest.raises(PrepareFailed, match="no such directory"):
        await prepare(order, desk.repositories)
    hidden.rename(user.path)
    assert (await run(desk, order)).branch == "understudy/nia/und-7"


async def test_a_cancelled_preparation_lets_go_of_its_claims(desk: Desk) -> None:
    user = desk.repository()
    prior = await run(desk, desk.order(user))
    order = desk.order(user, prior=prior.path)
    with trio.CancelScope() as scope:
        scope.cancel()
        await prepare(order, desk.repositories)
    assert scope.cancelled_caught
    assert (await run(desk, order)).path == prior.path


LOCKS = ("index", "HEAD", "config.worktree")


def leave_locks(tree: Clone) -> list[Path]:
    """As a git does that is killed in the middle of a commit."""
    git_dir = Path(tree.git("rev-parse", "--absolute-git-dir"))
    branch = Path(tree.git("rev-parse", "--git-path", tree.git("symbolic-ref", "HEAD")))
    locked = [tree.path / branch, *(git_dir / name for name in LOCKS)]
    locks = [path.with_name(f"{path.name}.lock") for path in locked]
    for lock in locks:
        lock.touch()
    return locks


@pytest.mark.parametrize("whose", ["the same task", "its successor"])
async def test_locks_of_a_git_that_was_killed_do_not_stop_the_next_run(
    desk: Desk, whose: str
) -> None:
    """R8.4: the worktree's own, and that of its branch, which lies in the cache."""
    user = desk.repository()
    first = desk.order(user)
    tree = desk.clone((await run(desk, first)).path)
    locks = leave_locks(tree)
    await run(desk, first if "same" in whose else desk.order(user, prior=tree.path))
    assert [lock for lock in locks if lock.exists()] == []
    tree.commit("work", "1")


async def test_a_repository_that_the_agent_made_is_freed_of_stale_locks_too(desk: Desk) -> None:
    order = desk.order()
    own = (await run(desk, order)).path / "own"
    own.mkdir()
    tree = desk.clone(own)
    tree.git("init", "--quiet")
    locks = leave_locks(tree)
    await run(desk, order)
    assert [lock for lock in locks if lock.exists()] == []


async def test_a_lock_stays_while_a_git_is_at_work_there(desk: Desk) -> None:
    """Its claim is free, so no run is; but a person may be."""
    desk.configure(GitConfig(patience_s=0.2))
    user = desk.repository()
    first = await run(desk, desk.order(user))
    locks = leave_locks(desk.clone(first.path))
    async with desk.git_at_work(first.path):
        await run(desk, desk.order(user, prior=first.path))
    assert [lock for lock in locks if not lock.exists()] == []


async def test_a_lock_stays_while_a_process_of_the_earlier_run_lives(desk: Desk) -> None:
    """Whatever program it is: not every one that writes into a repository is called git."""
    desk.configure(GitConfig(patience_s=0.2))
    user = desk.repository()
    order = desk.order(user)
    first = await run(desk, order)
    [*_, index, _, _] = leave_locks(desk.clone(first.path))
    async with alive("cat", UNDERSTUDY_RUN=str(order.task_id)):
        await run(desk, desk.order(user, prior=first.path))
    assert index.exists()


async def test_a_git_that_is_about_to_end_is_waited_for(desk: Desk) -> None:
    user = desk.repository()
    first = await run(desk, desk.order(user))
    locks = leave_locks(desk.clone(first.path))
    async with desk.git_at_work(first.path):
        with trio.move_on_after(0.5) as waited:
            await run(desk, desk.order(user, prior=first.path))
        assert waited.cancelled_caught
    await run(desk, desk.order(user, prior=first.path))
    assert [lock for lock in locks if lock.exists()] == []


@pytest.mark.parametrize("elsewhere", ["another worktree", "the user's own"])
async def test_no_lock_is_removed_where_a_git_file_only_leads(desk: Desk, elsewhere: str) -> None:
    """What an agent writes into its `.git` does not make another repository its own."""
    user = desk.repository()
    order = desk.order(user)
    work = await run(desk, order)
    other = user if "user" in elsewhere else desk.clone((await run(desk, desk.order(user))).path)
    git_dir = other.git("rev-parse", "--absolute-git-dir")
    own = desk.clone(work.path).git("rev-parse", "--absolute-git-dir")
    (work.path / ".git").write_text(f"gitdir: {git_dir}\n")
    index = Path(git_dir, "index.lock")
    index.touch()  # noqa: ASYNC240
    await run(desk, order)
    assert index.exists()  # noqa: ASYNC240
    assert own != git_dir


async def test_a_preparation_cut_short_is_begun_again_and_nothing_is_deleted(desk: Desk) -> None:
    """A crash between the checkout and the provenance: the branch is free for the next try."""
    user = desk.repository()
    order = desk.order(user)
    first = await run(desk, order)
    (first.path.parent / "provenance.json").unlink()
    (first.path / "file").write_text("x")
    again = await run(desk, order)
    assert (again.path, again.branch) == (first.path, first.branch)
    aside = first.path.parent.with_name(first.path.parent.name + ".aside-1")
    assert (aside / "work/file").read_text() == "x"


async def test_a_worktree_whose_cache_is_gone_is_set_aside_and_made_anew(desk: Desk) -> None:
    user = desk.repository()
    order = desk.order(user)
    first = await run(desk, order)
    (first.path / "edit").write_text("x")
    shutil.rmtree(desk.directory / "root/.repositories")
    again = await run(desk, order)
    assert (again.path / "README").exists()
    assert [*again.path.parent.parent.glob("*.aside-1/work/edit")]


async def test_no_password_is_written_into_a_provenance(desk: Desk) -> None:
    """R9.5"""
    user = desk.repository()
    url = desk.ssh_url(user).replace("ssh://", "ssh://ada:secret@")
    work = await run(desk, replace(desk.order(), repository=url))
    assert "secret" not in (work.path.parent / "provenance.json").read_text()


async def test_a_second_preparation_of_the_same_task_is_refused(desk: Desk) -> None:
    """R8.3: also where the first works in a prior directory, and the second is not told of it."""
    prior = await run(desk, desk.order())
    order = desk.order(prior=prior.path)
    work = await prepare(order, desk.repositories)
    with work.claim, pytest.raises(WorkDirBusy):
        await prepare(replace(order, prior_work_dir=None), desk.repositories)


async def test_a_directory_taken_over_is_claimed_against_others(desk: Desk) -> None:
    """R8.3"""
    prior = await run(desk, desk.order())
    work = await prepare(desk.order(prior=prior.path), desk.repositories)
    with work.claim:
        other = await run(desk, desk.order(prior=prior.path))
    assert work.path == prior.path
    assert other.path != prior.path


async def test_a_plain_directory_with_a_broken_git_is_not_taken_over(desk: Desk) -> None:
    prior = await run(desk, desk.order())
    (prior.path / ".git").write_text("gitdir: /nowhere\n")
    assert (await run(desk, desk.order(prior=prior.path))).path != prior.path


async def test_a_disk_that_refuses_is_a_sentence(desk: Desk) -> None:
    (desk.directory / "root").write_text("not a directory")
    with pytest.raises(PrepareFailed, match="Check space and permissions under"):
        await prepare(desk.order(), desk.repositories)


async def test_a_git_that_hangs_in_the_directory_is_a_sentence(desk: Desk) -> None:
    user = desk.repository()
    order = desk.order(user)
    await run(desk, order)
    desk.configure(GitConfig(local_s=1e-9))
    with pytest.raises(PrepareFailed, match="gave no answer"):
        await prepare(order, desk.repositories)


async def test_names_that_read_differently_get_different_branches(desk: Desk) -> None:
    user = desk.repository()
    branches = set()
    for name in ("Nia", "Nía", "nia!", "二アさん", "ニアさん", "../..", "-x.lock"):
        order = replace(desk.order(user), agent_name=name, agent_id=uuid.uuid4())
        branches.add((await run(desk, order)).branch)
    assert len(branches) == 7
