from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from understudy.daemon.changes import Changes, describe_changes, publish, snapshot, snapshot_ref
from understudy.daemon.git import GitConfig, GitFailed
from understudy.daemon.workspace import WorkDir, prepare
from understudy.testing.desk import Clone, Desk

TASK = "0192f0c1-0000-7000-8000-0123456789ab"


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


async def open_work(desk: Desk, user: Clone, url: str | None = None) -> tuple[Clone, WorkDir]:
    order = replace(desk.order(user), repository=url or str(user.path))
    work = await prepare(order, desk.repositories)
    work.claim.close()
    return desk.clone(work.path), work


def state(tree: Clone) -> list[str]:
    return [
        tree.git("status", "--porcelain=v2", "--branch", "--untracked-files=all"),
        tree.git("ls-files", "--stage"),
        tree.git("rev-parse", "HEAD"),
    ]


async def test_a_snapshot_keeps_what_is_in_no_commit_and_moves_nothing(desk: Desk) -> None:
    """R8.6"""
    user = desk.repository()
    user.commit("gone", "x")
    user.commit(".gitignore", "*.log\n")
    tree, _ = await open_work(desk, user)
    (tree.path / "README").write_text("edited")
    (tree.path / "staged").write_text("1")
    tree.git("add", "staged")
    (tree.path / "staged").write_text("2")
    (tree.path / "new file").write_text("3")
    (tree.path / "x.log").write_text("ignored")
    (tree.path / "gone").unlink()
    before = state(tree)
    commit = await snapshot(desk.git, tree.path, TASK)
    assert commit == tree.git("rev-parse", snapshot_ref(TASK))
    assert state(tree) == before
    kept = tree.git("ls-tree", "-r", "--name-only", snapshot_ref(TASK)).splitlines()
    assert kept == [".gitignore", "README", "new file", "staged"]
    assert tree.git("show", f"{commit}:staged") == "2"
    assert tree.git("rev-parse", f"{commit}^") == tree.git("rev-parse", "HEAD")


async def test_where_all_is_committed_there_is_no_snapshot(desk: Desk) -> None:
    tree, _ = await open_work(desk, desk.repository())
    tree.commit("a", "1")
    assert await snapshot(desk.git, tree.path, TASK) is None
    assert not tree.has(snapshot_ref(TASK))


async def test_a_second_snapshot_does_not_lose_the_first(desk: Desk) -> None:
    """R8.6"""
    tree, _ = await open_work(desk, desk.repository())
    (tree.path / "a").write_text("1")
    first = await snapshot(desk.git, tree.path, TASK)
    assert await snapshot(desk.git, tree.path, TASK) == first
    (tree.path / "a").write_text("2")
    second = await snapshot(desk.git, tree.path, TASK)
    assert first in tree.git("rev-list", snapshot_ref(TASK)).splitlines()
    assert second != first


async def test_a_snapshot_needs_neither_a_commit_nor_a_name_nor_a_free_index(desk: Desk) -> None:
    (desk.directory / "home/.gitconfig").write_text("[user]\nuseConfigOnly = true\n")
    tree, _ = await open_work(desk, desk.repository(empty=True))
    (tree.path / "a").write_text("1")
    git_dir = Path(tree.git("rev-parse", "--absolute-git-dir"))
    (git_dir / "index.lock").touch()
    assert await snapshot(desk.git, tree.path, TASK) is not None
    assert tree.git("show", f"{snapshot_ref(TASK)}:a") == "1"


async def test_a_snapshot_of_a_conflict_keeps_the_file_as_it_stands(desk: Desk) -> None:
    user = desk.repository()
    tree, work = await open_work(desk, user)
    tree.commit("README", "ours\n")
    tree.git("checkout", "-q", "-b", "side", str(work.base_commit))
    tree.commit("README", "theirs\n")
    with pytest.raises(AssertionError):
        tree.git("merge", "understudy/nia/und-7")
    assert await snapshot(desk.git, tree.path, TASK) is not None
    assert "<<<<<<<" in tree.git("show", f"{snapshot_ref(TASK)}:README")
    assert tree.git("ls-files", "--unmerged")


async def test_what_cannot_be_kept_is_said_after_the_rest_is_kept(desk: Desk) -> None:
    """R8.6: whoever was about to destroy something must not."""
    tree, _ = await open_work(desk, desk.repository())
    (tree.path / "a").write_text("1")
    inner = desk.clone(tree.path / "inner")
    inner.path.mkdir()
    inner.git("init", "--quiet")
    (inner.path / "b").write_text("2")
    with pytest.raises(GitFailed, match="inner/"):
        await snapshot(desk.git, tree.path, TASK)
    assert tree.git("show", f"{snapshot_ref(TASK)}:a") == "1"


async def test_changes_are_counted_from_where_the_task_began(desk: Desk) -> None:
    tree, work = await open_work(desk, desk.repository())
    tree.commit("README", "hello\nworld\n")
    tree.commit("sub/a", "1\n2\n")
    (tree.path / "README").write_text("edit")
    (tree.path / "new").mkdir()
    (tree.path / "new/one").write_text("x")
    (tree.path / "new/two").write_text("x")
    changes = await describe_changes(desk.git, tree.path, work.base_commit)
    assert changes == Changes(commits=2, files=2, insertions=3, deletions=0, uncommitted=3)
    assert str(changes) == "2 commits, 2 files changed (+3 -0); 3 files left uncommitted"


async def test_changes_in_a_repository_that_was_empty(desk: Desk) -> None:
    tree, work = await open_work(desk, desk.repository(empty=True))
    assert await describe_changes(desk.git, tree.path, None) == Changes(0, 0, 0, 0, 0)
    tree.commit("a", "1\n")
    changes = await describe_changes(desk.git, tree.path, work.base_commit)
    assert str(changes) == "1 commit, 1 file changed (+1 -0)"


async def test_the_user_finds_the_branch_in_their_own_repository(desk: Desk) -> None:
    user = desk.repository()
    (user.path / "README").write_text("half an edit")
    tree, work = await open_work(desk, user)
    done = tree.commit("work", "1")
    assert await publish(desk.git, tree.path, str(work.branch)) is None
    assert user.git("rev-parse", "understudy/nia/und-7") == done
    assert user.git("symbolic-ref", "--short", "HEAD") == "main"
    assert (user.path / "README").read_text() == "half an edit"


async def test_a_run_that_committed_nothing_leaves_no_branch_behind(desk: Desk) -> None:
    user = desk.repository()
    tree, work = await open_work(desk, user)
    (tree.path / "edit").write_text("x")
    assert await publish(desk.git, tree.path, str(work.branch)) is None
    assert not user.has("refs/heads/understudy/nia/und-7")


async def test_the_first_commits_of_an_empty_repository_are_published(desk: Desk) -> None:
    user = desk.repository(empty=True)
    tree, work = await open_work(desk, user)
    assert await publish(desk.git, tree.path, str(work.branch)) is None
    tree.commit("a", "1")
    assert await publish(desk.git, tree.path, str(work.branch)) is None
    assert user.has("refs/heads/understudy/nia/und-7")


async def test_a_branch_that_the_user_moved_is_not_overwritten(desk: Desk) -> None:
    user = desk.repository()
    tree, work = await open_work(desk, user)
    user.git("checkout", "-q", "-b", str(work.branch))
    theirs = user.commit("work", "2")
    user.git("checkout", "-q", "main")
    tree.commit("work", "1")
    sentence = await publish(desk.git, tree.path, str(work.branch))
    assert sentence is not None
    assert f"Fetch it: `git -C {user.path} fetch {tree.path} HEAD:" in sentence
    assert user.git("rev-parse", str(work.branch)) == theirs


async def test_a_branch_that_the_user_has_checked_out_is_not_moved_under_them(desk: Desk) -> None:
    user = desk.repository()
    user.git("config", "receive.denyCurrentBranch", "updateInstead")
    tree, work = await open_work(desk, user)
    user.git("checkout", "-q", "-b", str(work.branch))
    tree.commit("work", "1")
    sentence = await publish(desk.git, tree.path, str(work.branch))
    assert sentence is not None
    assert "currently checked out" in sentence
    assert not (user.path / "work").exists()


async def test_the_users_hooks_do_not_run_when_a_branch_arrives(desk: Desk) -> None:
    user = desk.repository()
    hook = user.path / ".git/hooks/pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    tree, work = await open_work(desk, user)
    tree.commit("work", "1")
    assert await publish(desk.git, tree.path, str(work.branch)) is None


async def test_a_remote_repository_is_the_agents_to_push_to(desk: Desk) -> None:
    user = desk.repository()
    tree, work = await open_work(desk, user, desk.ssh_url(user))
    tree.commit("work", "1")
    assert await publish(desk.git, tree.path, str(work.branch)) is None
    assert not user.has("refs/heads/understudy/nia/und-7")


async def test_a_repository_deleted_meanwhile_fails_no_run(desk: Desk) -> None:
    user = desk.repository()
    tree, work = await open_work(desk, user)
    tree.commit("work", "1")
    user.path.rename(desk.directory / "moved")
    sentence = await publish(desk.git, tree.path, str(work.branch))
    assert sentence is not None
    assert sentence.startswith(f"understudy/nia/und-7 was not put into {user.path}. git said:")


async def test_git_refusing_foreign_repositories_does_not_stop_a_branch(desk: Desk) -> None:
    user = desk.repository()
    desk.configure(GitConfig(), GIT_TEST_ASSUME_DIFFERENT_OWNER="1")
    tree, work = await open_work(desk, user)
    tree.commit("work", "1")
    assert await publish(desk.git, tree.path, str(work.branch)) is None
    assert user.has("refs/heads/understudy/nia/und-7")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a repository away")
async def test_root_writes_no_objects_into_the_repository_of_another_user(desk: Desk) -> None:
    """They would keep the owner from writing beside them."""
    user = desk.repository()
    tree, work = await open_work(desk, user)
    tree.commit("work", "1")
    os.chown(user.path, 65534, 65534)
    sentence = await publish(desk.git, tree.path, str(work.branch))
    assert sentence is not None
    assert "belongs to another user" in sentence
