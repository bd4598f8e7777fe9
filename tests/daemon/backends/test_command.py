"""Any program as an agent: real ones, and what they may print."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from understudy.core.failures import FailureReason
from understudy.daemon.backends import frames
from understudy.daemon.backends.backend import (
    Completed,
    Exit,
    Failed,
    ResumeRefused,
    RunSpec,
    Session,
    Text,
    Unlaunchable,
    Usage,
    Verdict,
)
from understudy.daemon.backends.command import Command
from understudy.testing.agent_clis import Ending, run_cli

BACKEND = Command()
SPEC = RunSpec(
    prompt="the prompt",
    work_dir="/work-dir",
    run_dir="/run-dir",
    env={"PATH": "/usr/bin:/bin", "UNDERSTUDY_ISSUE": "UND-7"},
)


def read(*lines: bytes, end: Exit | None = None, resume: str | None = None) -> Verdict:
    reader = BACKEND.reader(replace(SPEC, resume=resume))
    for line in lines:
        reader.feed(line)
    return reader.finish(end or Exit("exited", code=0), "last words")


async def run(directory: Path, *argv: str, **changes: object) -> Ending:
    spec = replace(SPEC, custom_args=argv, **changes)  # type: ignore[arg-type]
    with trio.fail_after(60):
        return await run_cli(
            BACKEND.launch(spec), BACKEND.reader(spec), work_dir=directory, run_dir=directory
        )


async def test_a_program_gets_its_task_and_its_words_are_the_answer(tmp_path: Path) -> None:
    """R9.1"""
    script = "cat; echo; echo $UNDERSTUDY_ISSUE $UNDERSTUDY_MODEL $UNDERSTUDY_PRIOR_SESSION_ID"
    ending = await run(
        tmp_path, "sh", "-c", script, instructions="Be brief.", model="m1", resume="s1"
    )
    assert ending.verdict == Completed("Be brief.\nthe prompt\nUND-7 m1 s1")
    assert Text("UND-7 m1 s1") in ending.events


async def test_a_last_line_without_its_newline_is_said_too(tmp_path: Path) -> None:
    ending = await run(tmp_path, "printf", "one\\ntwo")
    assert ending.verdict == Completed("one\ntwo")


async def test_the_exit_status_is_the_verdict(tmp_path: Path) -> None:
    """R9.1"""
    ending = await run(tmp_path, "sh", "-c", "echo almost; echo no space >&2; exit 3")
    assert ending.verdict == Failed(FailureReason.AGENT_ERROR, "sh exited with status 3: no space")


async def test_a_program_that_ignores_its_stdin_may(tmp_path: Path) -> None:
    ending = await run(tmp_path, sys.executable, "-c", "print('hi')", prompt="x" * 1_000_000)
    assert ending.verdict == Completed("hi")


def test_a_result_line_is_richer_than_the_status() -> None:
    usage = b'{"model":"m","input_tokens":5}'
    line = b'{"type":"result","output":"fine","session_id":"s9","usage":%s}'
    reader = BACKEND.reader(SPEC)
    reader.feed(b'{"type":"usage","model":"m","input_tokens":99}')
    assert reader.feed(line % usage) == [
        Session("s9", is_resumable=False),
        Usage("command", "m", 5),
    ]
    assert reader.finish(Exit("exited", code=7), "") == Completed("fine")
    assert reader.usage() == [Usage("command", "m", 5)]


def test_a_result_without_output_leaves_what_was_said() -> None:
    assert read(b"hello", b'{"type":"result"}') == Completed("hello")


def test_what_follows_the_result_changes_nothing() -> None:
    """R9.3"""
    late = b'{"type":"result","is_error":true,"error":"too late"}'
    assert read(b'{"type":"result","output":"fine"}', late) == Completed("fine")


def test_a_programs_error_may_name_a_reason() -> None:
    known = read(b'{"type":"result","is_error":true,"reason":"auth","error":"no key"}')
    assert known == Failed(FailureReason.AUTH, "no key")
    made_up = read(b'{"type":"result","is_error":true,"reason":"bad mood"}')
    assert made_up == Failed(FailureReason.AGENT_ERROR, "the program reported an error")


def test_a_programs_error_may_say_how_long_to_wait() -> None:
    """R5.2"""
    busy = b'{"type":"result","is_error":true,"reason":"provider_overloaded","retry_after_s":120}'
    verdict = read(busy)
    assert isinstance(verdict, Failed)
    assert (verdict.reason, verdict.retry_after_s) == (FailureReason.PROVIDER_OVERLOADED, 120)


REFUSAL = b'{"type":"result","is_error":true,"reason":"resume_refused","error":"never seen"}'
TOOL = b'{"type":"tool_use","id":"1","name":"write"}'


@pytest.mark.parametrize("before", [(), (b"Hm.",), (b'{"type":"thinking","text":"s1?"}',)])
@pytest.mark.parametrize("after", [(), (TOOL,), (b'{"type":"result","output":"fine"}',)])
def test_a_program_may_refuse_to_resume_until_it_has_used_a_tool(
    before: tuple[bytes, ...], after: tuple[bytes, ...]
) -> None:
    """R5.10"""
    refused = ResumeRefused("s1", "never seen")
    assert read(*before, REFUSAL, *after, end=Exit("exited", code=1), resume="s1") == refused
    failed = Failed(FailureReason.AGENT_ERROR, "never seen")
    assert read(*before, TOOL, REFUSAL, *after, resume="s1") == failed


def test_who_was_to_resume_nothing_cannot_refuse_to() -> None:
    """R5.10: it would be begun afresh for ever."""
    assert read(REFUSAL) == Failed(FailureReason.AGENT_ERROR, "never seen")


def test_other_json_is_text() -> None:
    line = '{"level": "info", "type": "log"}'
    assert BACKEND.reader(SPEC).feed(line.encode()) == [Text(line)]


def test_of_endless_talk_the_end_is_the_answer() -> None:
    """R6.8"""
    verdict = read(*[b"x" * 1000] * 1000, b"the conclusion")
    assert isinstance(verdict, Completed)
    assert verdict.output.startswith("…\n")
    assert verdict.output.endswith("\nthe conclusion")
    assert len(verdict.output) <= frames.TEXT_MAX + 1


def test_an_agent_without_a_program_says_what_is_missing() -> None:
    with pytest.raises(Unlaunchable, match="custom_args") as refused:
        BACKEND.launch(SPEC)
    assert refused.value.reason is FailureReason.MISSING_CONFIG
