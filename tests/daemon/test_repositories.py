from __future__ import annotations

import base64
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Protocol

import pytest
import trio

from understudy.daemon.claims import claim_nowait
from understudy.daemon.git import GitConfig
from understudy.daemon.repositories import Line, PrepareFailed, Worktree, is_worktree
from understudy.testing.desk import Clone, Desk

BRANCH = "understudy/nia/und-7"


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


class Add(Protocol):
    async def __call__(
        self, url: object, name: str, *, task: str = ..., owner: str = ...
    ) -> tuple[Clone, Worktree]: ...


@pytest.fixture
def add(desk: Desk) -> Add:
    async def add(
        url: object, name: str, *, task: str = "0123456789ab", owner: str = "w/a/i"
    ) -> tuple[Clone, Worktree]:
        path = desk.directory / name
        line = Line(BRANCH, owner, task)
        return desk.clone(path), await desk.repositories.add_worktree(str(url), path, line)

    return add


async def test_work_starts_on_a_branch_of_its_own_at_the_remotes_head(desk: Desk, add: Add) -> None:
    """R8.5"""
    user = desk.repository()
    user.git("checkout", "-q", "-b", "trunk")
    head = user.commit("a", "1")
    tree, made = await add(user.path, "w")
    assert made == Worktree(BRANCH, head)
    assert tree.git("rev-parse", "HEAD") == head
    assert tree.git("symbolic-ref", "--short", "HEAD") == BRANCH
    assert (tree.path / "a").read_text() == "1"


async def test_the_users_own_directory_is_not_changed(desk: Desk, add: Add) -> None:
    user = desk.repository()
    (user.path / "README").write_text("half an edit")
    (user.path / "new").write_text("untracked")
    before = {p: p.stat().st_mtime_ns for p in user.path.rglob("*")}
    tree, _ = await add(user.path, "w")
    tree.commit("a", "1")
    assert {p: p.stat().st_mtime_ns for p in user.path.rglob("*")} == before
    assert (tree.path / "README").read_text() == "hello\n"


@pytest.mark.parametrize("write", ["{}", "{}/", "file://{}"])
async def test_a_path_with_spaces_is_an_address_however_it_is_written(
    desk: Desk, add: Add, write: str
) -> None:
    user = desk.repository("my project é")
    shown = str(user.path).replace(" ", "%20") if "file" in write else str(user.path)
    _, made = await add(write.format(shown), "w")
    assert made.base_commit == user.git("rev-parse", "HEAD")
    caches = [p.name for p in (desk.directory / "root/.repositories").glob("*.git")]
    assert len(caches) == 1


async def test_the_same_repository_has_one_cache(desk: Desk, add: Add) -> None:
    """R8.5"""
    user, other = desk.repository(), desk.repository("other")
    for name, url in {"a": user.path, "b": f"file://{user.path}", "c": other.path}.items():
        await add(url, name, owner=name)
    assert len([*(desk.directory / "root/.repositories").glob("*.git")]) == 2


async def test_concurrent_preparations_share_a_fetch(desk: Desk, add: Add) -> None:
    """R8.5: whoever asked while a fetch was under way shares the next one."""
    user = desk.repository()
    url = desk.ssh_url(user)
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(partial(add, url, f"w{number}", owner=f"w/a/{number}"))
    made = {desk.clone(desk.directory / f"w{n}").git("branch", "--show-current") for n in range(6)}
    assert len(made) == 6
    assert len(desk.ssh_log.read_text().splitlines()) == 2


async def test_a_later_preparation_sees_what_was_pushed_since(desk: Desk, add: Add) -> None:
    user = desk.repository()
    await add(user.path, "a", owner="w/a/1")
    head = user.commit("a", "1")
    _, made = await add(user.path, "b", owner="w/a/2")
    assert made.base_commit == head


async def test_a_cache_in_use_by_another_process_is_waited_for(desk: Desk, add: Add) -> None:
    user = desk.repository()
    await add(user.path, "a", owner="w/a/1")
    [cache] = (desk.directory / "root/.repositories").glob("*.git")
    claim = claim_nowait(cache)
    assert claim is not None
    with claim:
        with trio.move_on_after(0.2) as waited:
            await add(user.path, "b", owner="w/a/2")
        assert waited.cancelled_caught
        assert not (desk.directory / "b").exists()
    await add(user.path, "b", owner="w/a/2")


async def test_the_next_task_continues_the_branch_of_the_last(desk: Desk, add: Add) -> None:
    """R8.5"""
    user = desk.repository()
    tree, _ = await add(user.path, "a")
    done = tree.commit("work", "1")
    shutil.rmtree(tree.path)
    user.commit("elsewhere", "2")
    _, made = await add(user.path, "b", task="bbbbbbbbbbbb")
    assert made == Worktree(BRANCH, done)


async def test_a_branch_checked_out_elsewhere_is_continued_under_a_suffix(
    desk: Desk, add: Add
) -> None:
    """git refuses the same branch in two worktrees."""
    user = desk.repository()
    first, _ = await add(user.path, "a")
    done = first.commit("work", "1")
    _, second = await add(user.path, "b", task="bbbbbbbbbbbb")
    _, third = await add(user.path, "c", task="cccccccccccc")
    assert second.branch.startswith(BRANCH + "-")
    assert third.branch == BRANCH + "-cccccccccccc"
    assert second.base_commit == third.base_commit == done
    with pytest.raises(PrepareFailed, match="git worktree remove"):
        await add(user.path, "d", task="cccccccccccc")


async def test_another_agents_branch_of_the_same_name_is_not_continued(
    desk: Desk, add: Add
) -> None:
    """Two workspaces share the cache, and may both have an agent Nia and an issue UND-7."""
    user = desk.repository()
    tree, _ = await add(user.path, "a", owner="w1/a/i")
    tree.commit("secret", "1")
    shutil.rmtree(tree.path)
    other, made = await add(user.path, "b", owner="w2/a/i")
    assert made.branch != BRANCH
    assert not (other.path / "secret").exists()
    shutil.rmtree(other.path)
    _, again = await add(user.path, "c", owner="w2/a/i", task="cccccccccccc")
    assert again.branch == made.branch


async def test_a_branch_that_only_the_remote_has_is_continued(desk: Desk, add: Add) -> None:
    """R10.6: a session does not travel, the branch does."""
    user = desk.repository()
    user.git("checkout", "-q", "-b", BRANCH)
    pushed = user.commit("work", "1")
    user.git("checkout", "-q", "main")
    tree, made = await add(user.path, "w")
    assert made == Worktree(BRANCH, pushed)
    assert "branch.understudy/nia/und-7.merge" not in tree.git("config", "--list")


async def test_what_a_person_pushed_onto_the_agents_branch_is_taken_in(
    desk: Desk, add: Add
) -> None:
    user = desk.repository()
    tree, _ = await add(user.path, "a")
    tree.commit("work", "1")
    user.git("fetch", "-q", str(tree.path), f"HEAD:{BRANCH}")
    shutil.rmtree(tree.path)
    user.git("checkout", "-q", BRANCH)
    reviewed = user.commit("work", "2")
    _, made = await add(user.path, "b")
    assert made == Worktree(BRANCH, reviewed)


async def test_a_branch_that_diverged_from_the_remotes_stays_as_the_agent_left_it(
    desk: Desk, add: Add
) -> None:
    user = desk.repository()
    tree, _ = await add(user.path, "a")
    done = tree.commit("work", "1")
    shutil.rmtree(tree.path)
    user.git("checkout", "-q", "-b", BRANCH)
    user.commit("work", "2")
    _, made = await add(user.path, "b")
    assert made.base_commit == done


async def test_an_empty_repository_gives_a_branch_without_commits(desk: Desk, add: Add) -> None:
    user = desk.repository(empty=True)
    tree, made = await add(user.path, "a")
    assert made == Worktree(BRANCH, None)
    assert tree.git("status", "--porcelain") == ""
    other, second = await add(user.path, "b", task="bbbbbbbbbbbb")
    assert second.base_commit is None
    assert second.branch != BRANCH
    first = tree.commit("a", "1")
    assert tree.git("rev-list", "HEAD") == first
    assert other.git("status", "--porcelain") == ""


async def test_an_agents_branch_is_not_what_others_start_from(desk: Desk, add: Add) -> None:
    user = desk.repository()
    user.git("branch", "-m", "main", "understudy/zoe/und-1")
    user.git("symbolic-ref", "HEAD", "refs/heads/main")
    _, made = await add(user.path, "w")
    assert made.base_commit is None


async def test_a_shallow_clone_is_a_repository_too(desk: Desk, add: Add) -> None:
    user = desk.repository()
    head = user.commit("a", "1")
    user.git("clone", "--quiet", "--depth=1", f"file://{user.path}", str(desk.directory / "flat"))
    _, made = await add(desk.directory / "flat", "w")
    assert made.base_commit == head


async def test_a_head_without_its_branch_falls_back_to_main_or_the_only_branch(
    desk: Desk, add: Add
) -> None:
    user = desk.repository()
    main = user.git("rev-parse", "HEAD")
    user.git("checkout", "-q", "-b", "side")
    side = user.commit("side", "1")
    user.git("symbolic-ref", "HEAD", "refs/heads/gone")
    _, made = await add(user.path, "a", owner="w/a/1")
    assert made.base_commit == main
    user.git("branch", "-D", "main")
    _, made = await add(user.path, "b", owner="w/a/2")
    assert made.base_commit == side


async def test_no_default_branch_among_several_is_a_question_for_the_user(
    desk: Desk, add: Add
) -> None:
    user = desk.repository()
    user.git("branch", "-m", "one")
    user.git("branch", "two")
    user.git("symbolic-ref", "HEAD", "refs/heads/gone")
    with pytest.raises(PrepareFailed, match=r"it has several: one, two\. Say which: `git symbolic"):
        await add(user.path, "w")
    assert not (desk.directory / "w").exists()


async def test_a_detached_head_is_a_place_to_start_from(desk: Desk, add: Add) -> None:
    user = desk.repository()
    user.git("checkout", "-q", "--detach")
    head = user.commit("a", "1")
    _, made = await add(user.path, "w")
    assert made.base_commit == head


async def test_a_remote_that_lost_its_commits_is_an_empty_one(desk: Desk, add: Add) -> None:
    """The base of the last fetch must not be taken for the remote's HEAD."""
    user = desk.repository()
    await add(user.path, "a", owner="w/a/1")
    user.git("update-ref", "-d", "refs/heads/main")
    _, made = await add(user.path, "b", owner="w/a/2")
    assert made.base_commit is None


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("/nowhere/project", "Repository /nowhere/project: there is no such directory"),
        ("{tmp}", "/ fatal: Could not read from remote repository. -- Check the address"),
        ("project", "neither a URL nor an absolute path"),
        ("-c protocol.ext.allow=always", "neither a URL nor an absolute path"),
        ("", "the address is empty"),
        ("/a\nb", "control characters"),
        ("ext::sh -c true", "transport 'ext' not allowed"),
        ("http://u:secret@127.0.0.1:1/x", "Check this machine's network"),
    ],
)
async def test_a_bad_address_is_refused_in_a_sentence(
    desk: Desk, add: Add, url: str, sentence: str
) -> None:
    with pytest.raises(PrepareFailed) as caught:
        await add(url.format(tmp=desk.directory / "home"), "w")
    assert sentence in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_a_lock_that_a_power_cut_left_behind_is_removed(desk: Desk, add: Add) -> None:
    """R8.5: of the cache, which every task of the repository needs."""
    user = desk.repository()
    await add(user.path, "a", owner="w/a/1")
    [cache] = (desk.directory / "root/.repositories").glob("*.git")
    head = user.commit("a", "1")
    for name in ("refs/remotes/origin/main.lock", "config.lock", "packed-refs.lock"):
        (cache / name).touch()
    _, made = await add(user.path, "b", owner="w/a/2")
    assert made.base_commit == head


async def test_a_lock_that_a_living_git_may_hold_is_named_and_stays(desk: Desk, add: Add) -> None:
    """Whoever is at work in any worktree of the cache may hold what they share."""
    user = desk.repository()
    desk.configure(GitConfig(patience_s=0.2))
    tree, _ = await add(user.path, "a", owner="w/a/1")
    [cache] = (desk.directory / "root/.repositories").glob("*.git")
    user.commit("a", "1")
    lock = cache / "refs/remotes/origin/main.lock"
    lock.touch()
    async with desk.git_at_work(tree.path):
        with pytest.raises(PrepareFailed) as caught:
            await add(user.path, "b", owner="w/a/2")
    assert "refs/remotes/origin/main.lock': File exists." in str(caught.value)
    assert "If no git is running, remove that lock." in str(caught.value)
    assert lock.exists()


async def test_a_repository_deleted_meanwhile_is_named(desk: Desk, add: Add) -> None:
    user = desk.repository()
    await add(user.path, "a", owner="w/a/1")
    shutil.rmtree(user.path)
    with pytest.raises(PrepareFailed, match="no such directory on this machine"):
        await add(user.path, "b", owner="w/a/2")


async def test_submodules_are_left_alone(desk: Desk, add: Add) -> None:
    user, inner = desk.repository(), desk.repository("inner")
    allow = ["-c", "protocol.file.allow=always"]
    user.git(*allow, "submodule", "--quiet", "add", str(inner.path), "inner")
    user.git("commit", "-q", "-m", "Add a submodule")
    user.git("config", "--global", "submodule.recurse", "true")
    user.git("config", "--global", "fetch.recurseSubmodules", "true")
    tree, _ = await add(user.path, "w")
    assert [*(tree.path / "inner").iterdir()] == []
    assert tree.git("status", "--porcelain") == ""


async def test_an_agent_can_commit_where_nobody_told_git_a_name(desk: Desk, add: Add) -> None:
    gitconfig = desk.directory / "home/.gitconfig"
    user = desk.repository()
    named = gitconfig.read_text()
    gitconfig.write_text("")
    tree, _ = await add(user.path, "a", owner="w/a/1")
    tree.commit("a", "1")
    assert tree.git("log", "-1", "--format=%an") == "Understudy"
    gitconfig.write_text(named)
    tree, _ = await add(user.path, "b", owner="w/a/2")
    tree.commit("b", "1")
    assert tree.git("log", "-1", "--format=%an") == "Ada"


async def test_a_repository_of_another_user_can_be_read(desk: Desk, add: Add) -> None:
    """A daemon run by root; git's own switch makes every repository somebody else's."""
    user = desk.repository()
    desk.configure(GitConfig(), GIT_TEST_ASSUME_DIFFERENT_OWNER="1")
    _, made = await add(user.path, "w")
    assert made.base_commit == user.git("rev-parse", "HEAD")


async def test_a_directory_that_is_in_the_way_is_not_overwritten(desk: Desk, add: Add) -> None:
    user = desk.repository()
    (desk.directory / "w").mkdir()
    (desk.directory / "w/mine").write_text("x")
    with pytest.raises(PrepareFailed, match="already exists"):
        await add(user.path, "w")
    assert (desk.directory / "w/mine").read_text() == "x"


async def test_a_preparation_cut_short_is_made_good_by_the_next(desk: Desk, add: Add) -> None:
    user = desk.repository()
    desk.configure(GitConfig(network_s=1e-9))
    with pytest.raises(PrepareFailed, match="gave no answer"):
        await add(user.path, "w")
    desk.configure(GitConfig())
    _, made = await add(user.path, "w")
    assert made.branch == BRANCH


async def test_a_worktree_without_its_cache_is_none(desk: Desk, add: Add) -> None:
    user = desk.repository()
    tree, _ = await add(user.path, "w")
    assert await is_worktree(desk.git, tree.path)
    shutil.rmtree(desk.directory / "root/.repositories")
    assert not await is_worktree(desk.git, tree.path)


@contextmanager
def http_server(directory: Path, password: str) -> Iterator[str]:
    """git's dumb protocol behind a password."""
    wanted = "Basic " + base64.b64encode(f"ada:{password}".encode()).decode()

    class Guarded(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers["Authorization"] == wanted:
                super().do_GET()
                return
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Guarded, directory=str(directory))) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"127.0.0.1:{http.server_address[1]}"
        http.shutdown()
        thread.join()


async def test_a_password_in_the_address_opens_the_door_and_shows_nowhere(
    desk: Desk, add: Add
) -> None:
    """R9.5: secrets are never in argv; `git remote-https` has the address in its own."""
    user = desk.repository()
    user.git("update-server-info")
    told = desk.directory / "told"
    user.git("config", "--global", "credential.helper", f"!touch {told}; :")
    with http_server(user.path, "p@ss") as host:
        tree, made = await add(f"http://ada:p%40ss@{host}/.git", "w")
        tree.git("fetch", "--quiet", "origin")  # The agent's own git is let in as well.
    assert made.base_commit == user.git("rev-parse", "HEAD")
    assert tree.git("remote", "get-url", "origin") == f"http://ada@{host}/.git"
    assert not told.exists(), "the user's own keychain learns no password"
    [secret] = (desk.directory / "root/.repositories").glob("*/understudy.credentials")
    assert secret.stat().st_mode & 0o077 == 0


async def test_a_password_that_is_refused_or_missing_is_asked_of_nobody(
    desk: Desk, add: Add
) -> None:
    """R8.5"""
    user = desk.repository()
    asked = desk.directory / "asked"
    desk.configure(GitConfig(), GIT_ASKPASS=str(desk.program("ask", f"#!/bin/sh\ntouch {asked}\n")))
    with http_server(user.path, "right") as host:
        for url in (f"http://{host}/.git", f"http://ada:wrong@{host}/.git"):
            with trio.fail_after(60), pytest.raises(PrepareFailed) as caught:
                await add(url, "w")
            assert "Give this machine access" in str(caught.value)
            assert "wrong" not in str(caught.value)
    assert not asked.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a repository away")
async def test_root_reads_a_repository_that_belongs_to_somebody_else(desk: Desk, add: Add) -> None:
    user = desk.repository()
    head = user.git("rev-parse", "HEAD")
    for path in (user.path, *user.path.rglob("*")):
        os.chown(path, 65534, 65534)
    _, made = await add(user.path, "w")
    assert made.base_commit == head
