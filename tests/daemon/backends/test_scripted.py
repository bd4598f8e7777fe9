"""The built-in agent at work in real repositories."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from understudy.core.failures import FailureReason
from understudy.daemon.backends.backend import (
    Completed,
    Failed,
    RunSpec,
    Session,
    ToolResult,
    ToolUse,
    Usage,
)
from understudy.daemon.backends.scripted import Scripted
from understudy.testing.agent_clis import Ending, run_cli

BACKEND = Scripted()


def git(directory: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-c", "user.name=A person", "-c", "user.email=person@example.org", *arguments],
        cwd=directory,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    git(tmp_path / "work", "init", "--quiet")
    git(tmp_path / "work", "commit", "--quiet", "--allow-empty", "--message=First")
    return tmp_path / "work"


async def run(work_dir: Path, *arguments: str, resume: str | None = None) -> Ending:
    run_dir = work_dir.with_name(f"{work_dir.name}-run")
    run_dir.mkdir(exist_ok=True)
    spec = RunSpec(
        prompt="# Fix the login\n\nIt is broken.",
        work_dir=str(work_dir),
        run_dir=str(run_dir),
        env={"PATH": os.environ["PATH"], "UNDERSTUDY_ISSUE": "UND-7", "HOME": str(work_dir)},
        custom_args=("--step-s", "0", *arguments),
        resume=resume,
    )
    with trio.fail_after(60):
        return await run_cli(
            BACKEND.launch(spec),
            BACKEND.reader(spec),
            work_dir=work_dir,
            run_dir=run_dir,
        )


def subjects(repository: Path) -> list[str]:
    return git(repository, "log", "--reverse", "--format=%s").splitlines()


async def test_it_works_through_its_plan_and_commits_each_step(repository: Path) -> None:
    ending = await run(repository, "--steps", "3")
    assert ending.verdict == Completed("All 3 steps are done: see notes/UND-7.md.")
    assert subjects(repository)[1:] == [
        "UND-7: read the issue and the code around it (1/3)",
        "UND-7: write down what is asked for (2/3)",
        "UND-7: look for the smallest change that answers it (3/3)",
    ]
    note = (repository / "notes" / "UND-7.md").read_text()
    assert note.startswith("# UND-7: Fix the login\n")
    assert (note.count("- [x]"), note.count("- [ ]")) == (3, 0)
    assert git(repository, "status", "--porcelain") == ""
    assert set(git(repository, "log", "-3", "--format=%an").split("\n")) == {"Scripted agent", ""}


async def test_every_tool_call_has_its_result_and_the_work_is_billed(repository: Path) -> None:
    ending = await run(repository, "--steps", "2")
    calls = [event.id for event in ending.events if isinstance(event, ToolUse)]
    results = [event.id for event in ending.events if isinstance(event, ToolResult)]
    assert calls == results
    assert len(set(calls)) == 5
    assert [event for event in ending.events if isinstance(event, Usage)][-1] == Usage(
        "scripted", "script", 240, 80
    )


async def test_a_second_run_goes_on_where_the_first_failed(repository: Path) -> None:
    first = await run(repository, "--steps", "4", "--fail")
    assert first.verdict == Failed(FailureReason.AGENT_ERROR, "told to fail before step 3")
    session = first.events[0]
    assert isinstance(session, Session)
    second = await run(repository, "--steps", "4", resume=session.id)
    assert second.events[0] == session
    assert isinstance(second.verdict, Completed)
    assert len(subjects(repository)) == 1 + 4
    assert len(set(subjects(repository))) == 1 + 4


async def test_what_a_killed_run_left_uncommitted_is_committed(repository: Path) -> None:
    await run(repository, "--steps", "2", "--fail")
    note = repository / "notes" / "UND-7.md"
    tick_all(note)
    await run(repository)
    assert git(repository, "status", "--porcelain") == ""


def tick_all(note: Path) -> None:
    note.write_text(note.read_text().replace("[ ]", "[x]"))


async def test_it_can_be_told_how_to_fail(repository: Path) -> None:
    ending = await run(repository, "--fail", "provider_network")
    assert isinstance(ending.verdict, Failed)
    assert ending.verdict.reason is FailureReason.PROVIDER_NETWORK


async def test_it_commits_nothing_that_a_person_had_staged(repository: Path) -> None:
    (repository / "draft.txt").write_text("mine")
    git(repository, "add", "draft.txt")
    await run(repository, "--steps", "1")
    assert git(repository, "status", "--porcelain") == "A  draft.txt\n"


async def test_without_a_repository_it_only_writes(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    ending = await run(tmp_path / "work")
    assert isinstance(ending.verdict, Completed)
    assert sorted(path.name for path in (tmp_path / "work").rglob("*")) == ["UND-7.md", "notes"]


async def test_it_finds_the_one_checkout_in_its_work_directory(repository: Path) -> None:
    ending = await run(repository.parent, "--steps", "1")
    assert ending.verdict == Completed("All 1 steps are done: see work/notes/UND-7.md.")
    assert len(subjects(repository)) == 2


async def test_a_git_that_fails_is_no_success(repository: Path) -> None:
    """R5.11"""
    (repository / ".git" / "index.lock").touch()
    ending = await run(repository, "--steps", "1")
    assert isinstance(ending.verdict, Failed)
    results = [event for event in ending.events if isinstance(event, ToolResult)]
    assert results[-1].is_error


async def test_the_process_names_itself(repository: Path) -> None:
    """So that a demonstration can show that a process was not started twice."""
    await run(repository, "--steps", "1")
    out = (repository.parent / "work-run" / "out").read_text()
    pid = json.loads(out.splitlines()[0])["pid"]
    assert f"Process {pid} is at work" in out


def test_an_issue_key_cannot_lead_out_of_the_notes(repository: Path) -> None:
    spec = RunSpec(
        prompt="x", work_dir=str(repository), run_dir="/run-dir", env={}, custom_args=("--steps",)
    )
    launch = BACKEND.launch(replace(spec, custom_args=("--steps", "1", "--step-s", "0")))
    subprocess.run(
        launch.argv,
        cwd=repository,
        env={"PATH": os.environ["PATH"], "UNDERSTUDY_ISSUE": "../../etc/passwd"},
        input=b"x",
        check=True,
        capture_output=True,
    )
    assert [path.name for path in (repository / "notes").iterdir()] == ["-..-etc-passwd.md"]
