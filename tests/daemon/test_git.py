from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from understudy.daemon.git import Git, GitConfig, GitFailed, last_lines, redact
from understudy.daemon.repositories import Line, PrepareFailed
from understudy.testing.desk import Desk

LINE = Line("understudy/nia/und-7", "w/a/i", "0123456789ab")
HANGS = """#!/bin/sh
trap '' TERM
echo $$ > {pid}.new && mv {pid}.new {pid}
sleep 600
"""


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110  Another process sets no Event of ours.
            await trio.sleep(0.01)


async def test_a_cancelled_call_leaves_no_process_even_of_those_that_ignore_sigterm(
    desk: Desk,
) -> None:
    """R8.5"""
    pid = desk.directory / "pid"
    ssh = desk.program("ssh", HANGS.format(pid=pid))
    desk.configure(GitConfig(grace_s=0.1), GIT_SSH_COMMAND=str(ssh))
    worktree = desk.directory / "w"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.repositories.add_worktree, "ssh://h/x", worktree, LINE)
        await until(pid.exists)
        nursery.cancel_scope.cancel()
    await until(lambda: not is_alive(int(pid.read_text())))


async def test_a_remote_that_never_answers_ends_in_a_sentence(desk: Desk) -> None:
    """R8.5"""
    pid = desk.directory / "pid"
    ssh = desk.program("ssh", HANGS.format(pid=pid))
    desk.configure(GitConfig(network_s=1, grace_s=0.1), GIT_SSH_COMMAND=str(ssh))
    with trio.fail_after(30), pytest.raises(PrepareFailed) as caught:
        await desk.repositories.add_worktree("ssh://h/x", desk.directory / "w", LINE)
    assert "ssh://h/x could not be prepared. git said: gave no answer within 1 s" in str(
        caught.value
    )
    await until(lambda: not is_alive(int(pid.read_text())))


async def test_a_cancelled_git_removes_its_lock_files(desk: Desk) -> None:
    user = desk.repository()
    started = desk.directory / "started"
    hangs = f"touch {started}; sleep 600"
    user.git("config", "filter.slow.clean", hangs)
    (user.path / ".gitattributes").write_text("slow filter=slow\n")
    (user.path / "slow").write_text("x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: desk.git("add", "slow", cwd=user.path))
        await until(started.exists)
        assert (user.path / ".git/index.lock").exists()
        nursery.cancel_scope.cancel()
    assert not (user.path / ".git/index.lock").exists()


async def test_a_child_that_outlives_git_does_not_hold_the_call(desk: Desk) -> None:
    user = desk.repository()
    pid = desk.directory / "pid"
    user.git("config", "alias.linger", f"!sleep 600 & echo $! > {pid}; echo done")
    with trio.fail_after(30):
        assert await desk.git("linger", cwd=user.path) == "done"
    os.kill(int(pid.read_text()), 9)


async def test_what_a_surrounding_git_exports_does_not_lead_ours_astray(desk: Desk) -> None:
    """R9.5"""
    user, other = desk.repository(), desk.repository("other")
    user.git("config", "alias.show-env", "!env")
    astray = {
        "GIT_DIR": str(other.path / ".git"),
        "GIT_INDEX_FILE": "/nowhere",
        "GIT_TRACE": "1",
        "UNDERSTUDY_TOKEN": "secret",
    }
    git = Git(desk.env | astray)
    shown = await git("show-env", cwd=user.path)
    assert "/nowhere" not in shown
    assert "secret" not in shown
    assert await git("rev-parse", "--show-toplevel", cwd=user.path) == str(user.path)


async def test_a_directory_without_git_is_no_part_of_the_repository_around_it(desk: Desk) -> None:
    user = desk.repository()
    inner = user.path / "inner"
    inner.mkdir()
    with pytest.raises(GitFailed, match="not a git repository"):
        await desk.git("status", cwd=inner)


async def test_the_users_hooks_stay_out_of_our_calls(desk: Desk) -> None:
    user = desk.repository()
    hook = user.path / ".git/hooks/post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {desk.directory}/ran\n")
    hook.chmod(0o755)
    await desk.git("checkout", "-q", "-b", "other", cwd=user.path)
    assert not (desk.directory / "ran").exists()


async def test_ssh_is_told_to_ask_nothing_and_keeps_the_users_command(desk: Desk) -> None:
    """R8.5"""
    user = desk.repository()
    user.git("config", "core.sshCommand", "ssh -i key")
    told = await desk.git.ssh(cwd=user.path)
    assert told == {"GIT_SSH_COMMAND": "ssh -i key -oBatchMode=yes"}
    told = await Git({"GIT_SSH_COMMAND": "mine"} | desk.env).ssh(cwd=user.path)
    assert told == {"GIT_SSH_COMMAND": "mine -oBatchMode=yes"}


async def test_a_machine_without_git_says_so(desk: Desk) -> None:
    git = Git({"PATH": str(desk.directory)})
    with pytest.raises(GitFailed, match="not on PATH"):
        await git("version", cwd=desk.directory)
    with pytest.raises(GitFailed, match="is gone"):
        await desk.git("version", cwd=desk.directory / "gone")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at https://u:pa@ss@host/x:", "at https://***@host/x:"),
        ("at HTTPS://token@host/x", "at HTTPS://***@host/x"),
        ("at ssh://git:word@host/x", "at ssh://git:***@host/x"),
        ("at ssh://git@host/x", "at ssh://git@host/x"),
        ("git@host:x and https://host/a@b", "git@host:x and https://host/a@b"),
    ],
)
def test_no_credential_of_a_url_is_repeated(text: str, shown: str) -> None:
    """R9.5"""
    assert redact(text) == shown


def test_of_what_git_said_the_last_lines_count() -> None:
    locked = """fatal: Unable to create '/c/packed-refs.lock': File exists.

Another git process seems to be running in this repository, e.g.
an editor opened by 'git commit'. Please make sure all processes
are terminated then try again. If it still fails, a git process
may have crashed in this repository earlier:
remove the file manually to continue."""
    assert last_lines(locked) == "fatal: Unable to create '/c/packed-refs.lock': File exists."
    said = "".join(f"remote: {number}\n\n" for number in range(9)) + "fatal: no\n"
    assert last_lines(said) == "remote: 6 / remote: 7 / remote: 8 / fatal: no"
