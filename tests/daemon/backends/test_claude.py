"""What is Claude Code's own: its flags, its frames, its ways to fail. Measured on 2.1.197."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from understudy.core.failures import FailureReason
from understudy.core.limits import Limits
from understudy.daemon.backends.backend import (
    Completed,
    Event,
    Exit,
    Failed,
    Notice,
    ResumeRefused,
    Retry,
    RunSpec,
    Session,
    Text,
    ToolResult,
    Unlaunchable,
    Unparsed,
    Usage,
    Verdict,
)
from understudy.daemon.backends.claude import Claude
from understudy.daemon.backends.claude_reader import ClaudeReader
from understudy.daemon.watchdog import Watchdog

LIMITS = Limits()
OURS, OTHER = "0f8fad5b-d9cb-469f-a165-70867728950e", "7c9e6679-7425-40de-944b-e07fc1f90ae7"
SPEC = RunSpec(
    prompt="go", work_dir="/work-dir", run_dir="/run-dir", env={}, executable="/bin/claude"
)
BACKEND = Claude(is_root=False)
EXITED = Exit("exited", code=0)
FAILED = Exit("exited", code=1)


def init(session_id: str = OURS, **fields: object) -> dict[str, Any]:
    return {"type": "system", "subtype": "init", "session_id": session_id, **fields}


def assistant(*blocks: dict[str, Any], id_: str = "msg_1", **fields: object) -> dict[str, Any]:
    usage = {"input_tokens": 100, "output_tokens": 1, "cache_read_input_tokens": 7}
    message = {"id": id_, "model": "claude-opus-4-8", "content": blocks, "usage": usage}
    return {"type": "assistant", "message": message, "session_id": OURS} | fields


def said(text: str, id_: str = "msg_1", session_id: str = OURS) -> dict[str, Any]:
    return assistant({"type": "text", "text": text}, id_=id_, session_id=session_id)


def synthetic(text: str, error: str) -> dict[str, Any]:
    message = {"model": "<synthetic>", "content": [{"type": "text", "text": text}]}
    return {"type": "assistant", "message": message, "error": error, "session_id": OURS}


def result(text: str | None = "All done", **fields: object) -> dict[str, Any]:
    done = {"type": "result", "subtype": "success", "is_error": False, "session_id": OURS}
    return {**done, "terminal_reason": "completed", "result": text, **fields}


TOOL = {"type": "tool_use", "id": "t1", "name": "Bash", "input": {}}


def read(
    *told: dict[str, Any], resume: str | None = None, end: Exit = EXITED, stderr: str = ""
) -> tuple[list[Event], Verdict, list[Usage]]:
    reader = ClaudeReader(resume)
    events = [event for frame in told for event in reader.feed(json.dumps(frame).encode())]
    return events, reader.finish(end, stderr), reader.usage()


def reason(verdict: Verdict) -> FailureReason:
    assert isinstance(verdict, Failed)
    return verdict.reason


def test_prompt_and_interrupt_are_lines_and_stdin_stays_open() -> None:
    """R9.2"""
    launch = BACKEND.launch(replace(SPEC, prompt="two\nlines"))
    assert launch.close_stdin is False
    for frame in (launch.stdin, launch.interrupt or ""):
        assert frame.endswith("\n")
        assert frame.count("\n") == 1
    assert json.loads(launch.stdin)["message"]["content"] == "two\nlines"


def test_the_model_is_passed_on_resume_too() -> None:
    """R9.2: a resumed session forgets it, and its context shrinks from 1 M to 200 k."""
    fresh = BACKEND.launch(replace(SPEC, model="opus[1m]", session_id=OURS)).argv
    assert fresh[fresh.index("--session-id") + 1] == OURS
    again = BACKEND.launch(replace(SPEC, model="opus[1m]", session_id=OTHER, resume=OURS)).argv
    assert again[again.index("--resume") + 1] == OURS
    assert "--session-id" not in again
    for argv in (fresh, again):
        assert argv[argv.index("--model") + 1] == "opus[1m]"


def test_questions_and_background_shells_are_off() -> None:
    """R9.2"""
    launch = BACKEND.launch(replace(SPEC, env={"CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "0"}))
    disallowed = launch.argv[launch.argv.index("--disallowedTools") + 1]
    assert "AskUserQuestion" in disallowed.split(",")
    assert launch.env["CLAUDE_CODE_DISABLE_BACKGROUND_TASKS"] == "1"


def test_only_root_is_told_of_a_sandbox() -> None:
    assert "IS_SANDBOX" not in BACKEND.launch(SPEC).env
    assert Claude(is_root=True).launch(SPEC).env["IS_SANDBOX"] == "1"


def test_the_agents_environment_wins_over_our_caps_but_loses_a_parent_claude() -> None:
    env = {"CLAUDE_CODE_MAX_RETRIES": "9", "CLAUDECODE": "1", "CLAUDE_CODE_SESSION_ID": "x"}
    launched = BACKEND.launch(replace(SPEC, env=env)).env
    assert launched["CLAUDE_CODE_MAX_RETRIES"] == "9"
    assert not launched.keys() & {"CLAUDECODE", "CLAUDE_CODE_SESSION_ID"}


@pytest.mark.parametrize("argument", ["--resume", "--output-format=text", "-c", "--session-id"])
def test_arguments_that_would_break_the_protocol_are_refused(argument: str) -> None:
    with pytest.raises(Unlaunchable, match=argument) as refused:
        BACKEND.launch(replace(SPEC, custom_args=("--effort", "high", argument)))
    assert refused.value.reason is FailureReason.MISSING_CONFIG


def test_custom_arguments_come_last_after_a_flag_that_takes_none() -> None:
    """Several of its flags are variadic and would eat what follows."""
    argv = BACKEND.launch(replace(SPEC, custom_args=("--effort", "high"))).argv
    assert argv[-3:] == ("--verbose", "--effort", "high")


def test_mcp_and_instructions_are_files_of_the_run() -> None:
    """R9.5"""
    launch = BACKEND.launch(replace(SPEC, mcp_config={}, instructions="Be brief."))
    mcp = launch.argv[launch.argv.index("--mcp-config") + 1]
    assert json.loads(launch.files[mcp]) == {"mcpServers": {}}
    assert "--strict-mcp-config" in launch.argv
    instructions = launch.argv[launch.argv.index("--append-system-prompt-file") + 1]
    assert launch.files[instructions] == "Be brief."
    assert "--mcp-config" not in BACKEND.launch(SPEC).argv


def test_a_session_is_resumable_only_with_a_transcript() -> None:
    """R9.2: killed right after init there is none."""
    events, _, _ = read(init(), said("hi"), said("ho"))
    assert [event for event in events if isinstance(event, Session)] == [
        Session(OURS, is_resumable=False),
        Session(OURS, is_resumable=True),
    ]
    events, _, _ = read(init(), resume=OURS)
    assert events == [Session(OURS, is_resumable=True)]


@pytest.mark.parametrize(
    "told",
    [
        [
            result(
                None,
                subtype="error_during_execution",
                is_error=True,
                session_id=OTHER,
                errors=[f"No conversation found with session ID: {OURS}"],
            )
        ],
        [init(OTHER), said("Hello, who are you?", session_id=OTHER), result()],
        [init(OTHER)],
    ],
    ids=["it says so", "it answers with another", "it dies with another"],
)
def test_a_refused_resume_is_no_failure_yet(told: list[dict[str, Any]]) -> None:
    """R5.10, R9.2"""
    _, verdict, _ = read(*told, resume=OURS, end=FAILED)
    assert isinstance(verdict, ResumeRefused)
    assert verdict.session_id == OURS


def test_a_refusal_told_on_stderr_only_is_one_too() -> None:
    """R5.10"""
    stderr = f"Error: Session ID {OURS} is already in use.\0"
    _, verdict, _ = read(resume=OURS, end=FAILED, stderr=stderr)
    assert verdict == ResumeRefused(OURS, stderr.rstrip("\0"))
    _, verdict, _ = read(end=FAILED, stderr=stderr)
    assert reason(verdict) is FailureReason.AGENT_ERROR


def test_once_a_tool_has_run_nothing_starts_over() -> None:
    """R5.10: the work is done, whatever the session was."""
    told = [init(OTHER), assistant(TOOL, session_id=OTHER), said("ok", session_id=OTHER)]
    _, verdict, _ = read(*told, result("ok"), resume=OURS)
    assert verdict == Completed("ok")


def test_a_cancelled_resume_is_cancelled_not_refused() -> None:
    _, verdict, _ = read(init(OTHER), resume=OURS, end=Exit("cancelled", signal=15))
    assert reason(verdict) is FailureReason.CANCELLED


def test_a_message_in_three_frames_is_billed_once() -> None:
    """R6.7: each frame repeats the usage of the whole message."""
    blocks: list[dict[str, Any]] = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": "I run it"},
        TOOL,
    ]
    told = [assistant(block) for block in blocks]
    events, _, bill = read(init(), *told, said("done", id_="msg_2"))
    assert bill == [Usage("claude", "claude-opus-4-8", 200, 2, 14, 0)]
    assert len([event for event in events if isinstance(event, Usage)]) == 2


def test_the_results_own_totals_replace_the_sum() -> None:
    """R6.7: they know output tokens, and models that no frame named."""
    usage = {"inputTokens": 250, "outputTokens": 29}
    models = {"claude-opus-4-8[1m]": usage, "claude-opus-4-8": usage, "claude-haiku-4-5": usage}
    _, _, bill = read(init(), said("hi"), result(modelUsage=models))
    assert bill == [
        Usage("claude", "claude-opus-4-8", 500, 58),
        Usage("claude", "claude-haiku-4-5", 250, 29),
    ]


def test_a_second_result_adds_to_the_bill_and_changes_no_answer() -> None:
    """R9.3: the first result is the boundary."""
    first = result("first", modelUsage={"m": {"inputTokens": 1}})
    second = result("second", is_error=True, modelUsage={"m": {"inputTokens": 3}})
    _, verdict, bill = read(init(), said("first"), first, init(), second)
    assert verdict == Completed("first")
    assert bill == [Usage("claude", "m", 3)]


@pytest.mark.parametrize(
    "told",
    [
        [synthetic("Credit balance is too low", "billing_error")],
        [said("working on it"), synthetic("Credit balance is too low", "billing_error")],
    ],
)
def test_what_the_cli_says_in_the_models_place_is_no_answer(told: list[dict[str, Any]]) -> None:
    """R5.11: error_as_success"""
    events, verdict, _ = read(init(), *told, result("Credit balance is too low"))
    assert reason(verdict) is FailureReason.QUOTA_EXHAUSTED
    assert Notice("Credit balance is too low") in events
    assert Text("Credit balance is too low") not in events


def test_an_api_error_as_the_final_text_is_a_failure_unless_the_model_wrote_it() -> None:
    """R5.11: error_as_success"""
    text = "API Error: 400 is what the log says; the key is wrong."
    _, verdict, _ = read(init(), said("hm"), result(text))
    assert reason(verdict) is FailureReason.INVALID_REQUEST
    _, verdict, _ = read(init(), said(text), result(text))
    assert verdict == Completed(text)


@pytest.mark.parametrize(
    "fields",
    [{"is_error": True}, {"terminal_reason": "aborted_tools"}, {"subtype": "error_max_turns"}],
)
def test_success_needs_every_proof(fields: dict[str, Any]) -> None:
    """R5.11"""
    _, verdict, _ = read(init(), said("All done"), result(**fields))
    assert isinstance(verdict, Failed)


def test_an_empty_answer_is_an_answer() -> None:
    _, verdict, _ = read(init(), assistant(TOOL), result(""))
    assert verdict == Completed("")


R = FailureReason
WAYS: list[tuple[str, dict[str, Any], FailureReason]] = [
    ("authentication_failed", {"api_error_status": 401, "result": "Invalid API key"}, R.AUTH),
    ("billing_error", {"api_error_status": 402, "result": "Low"}, R.QUOTA_EXHAUSTED),
    ("billing_error", {"api_error_status": 400, "result": "Low"}, R.QUOTA_EXHAUSTED),
    ("authentication_failed", {"api_error_status": 403, "result": "Failed to auth"}, R.AUTH),
    ("model_not_found", {"api_error_status": 404, "result": "issue"}, R.MODEL_UNAVAILABLE),
    (
        "invalid_request",
        {"api_error_status": 413, "terminal_reason": "image_error", "result": "Too large"},
        R.INVALID_REQUEST,
    ),
    ("rate_limit", {"api_error_status": 429, "result": "rejected"}, R.PROVIDER_OVERLOADED),
    ("rate_limit", {"api_error_status": 429, "result": "hit your limit"}, R.QUOTA_EXHAUSTED),
    ("server_error", {"api_error_status": 500, "result": "API Error"}, R.PROVIDER_OVERLOADED),
    ("server_error", {"api_error_status": 529, "result": "API Error"}, R.PROVIDER_OVERLOADED),
    ("server_error", {"api_error_status": None, "result": "Unable"}, R.PROVIDER_NETWORK),
    (
        "invalid_request",
        {"api_error_status": 400, "terminal_reason": "prompt_too_long", "result": "Prompt"},
        R.CONTEXT_OVERFLOW,
    ),
    (
        "max_output_tokens",
        {"result": "API Error: The model has reached its context window limit."},
        R.CONTEXT_OVERFLOW,
    ),
    ("max_output_tokens", {"result": "exceeded the 64000 output token maximum"}, R.AGENT_ERROR),
    ("unknown", {"api_error_status": 400, "result": "non-empty content"}, R.INVALID_REQUEST),
    ("invalid_request", {"stop_reason": "refusal", "result": "Usage Policy"}, R.AGENT_ERROR),
    ("", {"subtype": "error_max_turns", "errors": ["Reached maximum"]}, R.ITERATION_LIMIT),
    ("", {"subtype": "error_max_budget_usd", "errors": ["Budget"]}, R.ITERATION_LIMIT),
    ("", {"subtype": "error_during_execution", "errors": ["boom"]}, R.AGENT_ERROR),
    ("", {"result": "Not logged in · Please run /login"}, R.AUTH),
    ("", {"result": "API Error: Connection to the API was lost"}, R.PROVIDER_NETWORK),
    ("", {"terminal_reason": "aborted_streaming"}, R.CANCELLED),
    ("", {"result": "something new"}, R.UNKNOWN),
]


@pytest.mark.parametrize(("error", "fields", "expected"), WAYS)
def test_each_way_to_fail_has_its_reason(
    error: str, fields: dict[str, Any], expected: FailureReason
) -> None:
    """R5.1"""
    told = [synthetic("text", error)] if error else []
    failed = {**result(None), "is_error": True, **fields}
    _, verdict, _ = read(init(), *told, failed, end=FAILED)
    assert isinstance(verdict, Failed)
    assert verdict.reason is expected
    said_so = [fields.get("result", ""), *fields.get("errors", [])]
    assert verdict.error == ("".join(said_so) or "claude exited with status 1")


@pytest.mark.parametrize(
    ("stderr", "expected"),
    [
        ("--dangerously-skip-permissions cannot be used with root", R.MISSING_CONFIG),
        ("Error: Invalid MCP configuration: MCP config file not found", R.MISSING_CONFIG),
        ("error: unknown option '--effrot'", R.MISSING_CONFIG),
        ("panic: minified source", R.AGENT_ERROR),
    ],
)
def test_without_a_frame_stderr_is_the_witness(stderr: str, expected: FailureReason) -> None:
    _, verdict, _ = read(end=FAILED, stderr=stderr)
    assert reason(verdict) is expected
    assert stderr in verdict.error  # type: ignore[union-attr]


def test_a_spoilt_session_is_not_offered_again() -> None:
    """R5.9"""
    image = result("bad image", is_error=True, terminal_reason="image_error")
    _, verdict, _ = read(init(), image)
    assert isinstance(verdict, Failed)
    assert not verdict.is_session_safe
    _, verdict, _ = read(init(), result("busy", is_error=True, api_error_status=529))
    assert isinstance(verdict, Failed)
    assert verdict.is_session_safe


def test_an_announced_reset_makes_a_rate_limit_a_quota() -> None:
    """R5.2: quota_refire"""
    info = {"status": "rejected", "resetsAt": 1_900_000_000, "rateLimitType": "five_hour"}
    limit = {"type": "rate_limit_event", "rate_limit_info": info}
    told = [synthetic("limit", "rate_limit"), result(is_error=True, api_error_status=429)]
    _, verdict, _ = read(init(), limit, *told)
    assert isinstance(verdict, Failed)
    assert (verdict.reason, verdict.resets_at) == (R.QUOTA_EXHAUSTED, 1_900_000_000)


def test_a_reset_that_is_only_told_in_words_is_understood() -> None:
    """R5.2"""
    words = "Claude AI usage limit reached|1900000000"
    told = [synthetic(words, "rate_limit"), result(words, is_error=True, api_error_status=429)]
    _, verdict, _ = read(init(), *told)
    assert isinstance(verdict, Failed)
    assert (verdict.reason, verdict.resets_at) == (R.QUOTA_EXHAUSTED, 1_900_000_000)


def test_a_retry_is_told_but_is_not_the_end() -> None:
    """R4.10"""
    retry = {"type": "system", "subtype": "api_retry", "attempt": 1, "max_retries": 10}
    events, verdict, _ = read(
        init(), {**retry, "retry_delay_ms": 562, "error_status": 529, "error": "overloaded"}
    )
    assert events[-1] == Retry(1, 10, 0.562, "overloaded (529)")
    assert reason(verdict) is R.NO_RESULT


def test_a_broken_mcp_server_is_told() -> None:
    servers = [{"name": "lab", "status": "failed"}, {"name": "fine", "status": "connected"}]
    events, _, _ = read(init(mcp_servers=servers))
    assert events[1:] == [Notice("MCP server lab: failed")]


def test_a_tools_blocks_are_one_text() -> None:
    content = [{"type": "text", "text": "seen:"}, {"type": "image", "source": {}}]
    block = {"type": "tool_result", "tool_use_id": "t1", "content": content, "is_error": True}
    events, _, _ = read(init(), {"type": "user", "message": {"content": [block]}})
    assert events[-1] == ToolResult("t1", "seen:\n[image]", is_error=True)


SEARCHED = {"type": "web_search_result", "title": "Trio", "url": "https://example.org/trio"}
TIMED_OUT = {"type": "web_fetch_tool_result_error", "error_code": "url_not_accessible"}
PRINTED = {"type": "code_execution_result", "stdout": "42\n", "return_code": 0}
TOLD = {"type": "text", "text": "seen"}


@pytest.mark.parametrize(
    ("kind", "content", "output", "is_error"),
    [
        ("web_search_tool_result", [SEARCHED], "Trio https://example.org/trio", False),
        ("web_fetch_tool_result", TIMED_OUT, "url_not_accessible", True),
        ("bash_code_execution_tool_result", PRINTED, "42\n", False),
        ("mcp_tool_result", [TOLD], "seen", False),
    ],
)
def test_a_tool_that_runs_at_the_provider_has_returned_when_the_answer_says_so(
    kind: str, content: object, output: str, *, is_error: bool
) -> None:
    """R4.10: or the run would count as inside it for ever, and be left alone for 2 h."""
    use = {"type": "server_tool_use", "id": "t1", "name": "web_search", "input": {"query": "x"}}
    result = {"type": kind, "tool_use_id": "t1", "content": content}
    watchdog = Watchdog(LIMITS, began_at=0.0)
    events, _, _ = read(assistant(use), assistant(result))
    for event in events:
        watchdog.see(event, at=1.0)
    assert ToolResult("t1", output, is_error) in events
    assert watchdog.due == 1.0 + LIMITS.silence_s


def test_an_unknown_frame_is_kept_by_its_beginning() -> None:
    frame = {"type": "telepathy", "thought": "x" * 10_000}
    events, _, _ = read(frame)
    [unparsed] = events
    assert isinstance(unparsed, Unparsed)
    assert unparsed.text.startswith('{"type": "telepathy"')
    assert unparsed.size == len(json.dumps(frame))
