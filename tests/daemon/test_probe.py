"""Finding agent CLIs on a PATH made up for the test."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from understudy.daemon import probe
from understudy.daemon.backends.providers import BACKENDS
from understudy.daemon.probe import Found, find_clis


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Holds the shell and nothing else of the system."""
    (tmp_path / "sh").symlink_to("/bin/sh")
    (tmp_path / "sleep").symlink_to("/bin/sleep")
    return tmp_path


def install(directory: Path, script: str, name: str = "claude") -> str:
    program = directory / name
    program.write_text(f"#!{directory}/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


async def claude_on(directory: Path) -> Found:
    with trio.fail_after(60):
        [claude] = [f for f in await find_clis(str(directory)) if f.provider == "claude"]
    return claude


async def test_what_works_is_found_with_its_version(directory: Path) -> None:
    """R9.4"""
    path = install(directory, 'test "$1" = --version && echo "2.1.197 (Claude Code)"')
    assert await claude_on(directory) == Found("claude", path, "2.1.197")


async def test_where_there_is_nothing_the_built_in_agents_still_work(directory: Path) -> None:
    found = await find_clis(str(directory))
    assert [cli.provider for cli in found] == ["scripted", "command", "acp"]
    assert all(cli.version and cli.problem is None for cli in found)


def test_whatever_can_be_found_has_a_backend() -> None:
    providers = {cli.provider for cli in probe.CLIS} | set(probe.BUILT_IN)
    assert providers == set(BACKENDS)


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo cannot execute binary >&2; exit 126", "exited with status 126: cannot execute"),
        ("echo some other program 1.0", "did not tell its version but: some other program"),
        ("true", "did not tell its version but: (nothing)"),
        ("kill -9 $$", "exited with status -9"),
    ],
)
async def test_a_broken_cli_is_found_with_its_repair(
    directory: Path, script: str, problem: str
) -> None:
    """R9.4"""
    path = install(directory, script)
    found = await claude_on(directory)
    assert found.problem is not None
    assert found.problem.startswith(f"`{path} --version` {problem}")
    assert "reinstall Claude Code" in found.problem


async def test_a_program_without_its_interpreter_is_broken_not_missing(directory: Path) -> None:
    """R9.4"""
    install(directory, "true")
    (directory / "sh").unlink()
    found = await claude_on(directory)
    assert "could not be started: No such file" in (found.problem or "")


async def test_a_cli_that_hangs_is_killed_with_all_it_started(
    directory: Path, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    """R9.4"""
    pipe = directory / "alive"
    os.mkfifo(pipe)
    alive = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    install(directory, f"exec 3>{pipe}; echo started >&3; sleep 3600 & sleep 3600")
    found: list[Found] = []

    async def find() -> None:
        found.extend(await find_clis(str(directory)))
        finding.set()

    finding = trio.Event()
    nursery.start_soon(find)
    await trio.lowlevel.wait_readable(alive)
    mock_clock.jump(probe.PROBE_S + 1)
    await finding.wait()
    assert "did not answer within 10 s" in (found[0].problem or "")
    assert is_closed_by_all(alive)
    os.close(alive)


def is_closed_by_all(pipe: int) -> bool:
    while select.select([pipe], [], [], 30)[0]:
        if not os.read(pipe, 100):
            return True
    return False


async def test_clis_are_asked_at_the_same_time(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R9.4: one waits for the other to be asked."""
    pipe = directory / "meet"
    os.mkfifo(pipe)
    install(directory, f"echo hello > {pipe}; echo '1.0.0 (Claude Code)'")
    other = install(directory, f"read line < {pipe}; echo '2.0.0 (Claude Code)'", "other")
    twin = probe.Cli("other", "other", ("--version",), probe.CLIS[0].version, "")
    monkeypatch.setattr(probe, "CLIS", (*probe.CLIS, twin))
    with trio.fail_after(60):
        found = await find_clis(str(directory))
    assert [cli.version for cli in found[:2]] == ["1.0.0", "2.0.0"]
    assert found[1].executable == other


async def test_a_probe_sees_nothing_of_the_daemons_own_settings(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R9.5"""
    monkeypatch.setenv("UNDERSTUDY_TOKEN", "hidden")
    install(directory, 'echo "1.0.0$UNDERSTUDY_TOKEN (Claude Code)"')
    assert (await claude_on(directory)).version == "1.0.0"
