"""What Codex tells besides the plain run, and what it is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from understudy.core.failures import FailureReason
from understudy.daemon.backends.backend import (
    Completed,
    Event,
    Exit,
    Failed,
    HangUp,
    Interrupt,
    Notice,
    ResumeRefused,
    Retry,
    RunSpec,
    Say,
    Session,
    ToolResult,
    ToolUse,
    Unlaunchable,
    Usage,
)
from understudy.daemon.backends.codex import Codex
from understudy.daemon.backends.codex_reader import CodexReader

EXITED = Exit("exited", code=0)
THREAD, TURN = "thread-1", "turn-1"


def spec(**fields: Any) -> RunSpec:
    given = {"prompt": "go", "executable": "/bin/codex", "env": {}, **fields}
    return RunSpec(work_dir="/work", run_dir="/run", **given)


def told(reader: CodexReader, **fields: object) -> list[Event]:
    return reader.feed(json.dumps(fields).encode())


def noted(reader: CodexReader, method: str, **params: object) -> list[Event]:
    return told(reader, method=method, params={"threadId": THREAD, "turnId": TURN, **params})


def said(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def working(reader: CodexReader) -> CodexReader:
    told(reader, id="thread", result={"thread": {"id": THREAD}, "model": "m1"})
    told(reader, id="turn", result={"turn": {"id": TURN}})
    return reader


def ended(reader: CodexReader, status: str, **error: object) -> list[Event]:
    return noted(reader, "turn/completed", turn={"id": TURN, "status": status, "error": error})


def test_a_thread_is_begun_and_continued_with_the_same_settings() -> None:
    """R9.2: the model again, and no history, which may be longer than a line."""
    settings = {"model": "m1", "instructions": "Be kind."}
    _, ready, begun = said(Codex().launch(spec(**settings)).stdin)
    assert ready["method"] == "initialized"
    assert "id" not in ready
    assert begun["method"] == "thread/start"
    assert begun["params"] == {
        "cwd": "/work",
        "approvalPolicy": "never",
        "sandbox": "danger-full-access",
        "config": {"mcp_servers": {}},
        "model": "m1",
        "developerInstructions": "Be kind.",
    }
    *_, again = said(Codex().launch(spec(**settings, resume=THREAD)).stdin)
    assert again["method"] == "thread/resume"
    assert again["params"] == {"threadId": THREAD, "excludeTurns": True, **begun["params"]}


def test_its_own_settings_cannot_be_taken_away() -> None:
    """R9.2: no question, no goal; the agent's settings stand before ours."""
    argv = Codex().launch(spec(custom_args=("-c", "features.goals=true"))).argv
    assert argv.index("features.goals=true") < argv.index("features.goals=false")
    assert "tools.experimental_request_user_input.enabled=false" in argv
    with pytest.raises(Unlaunchable, match="--listen"):
        Codex().launch(spec(custom_args=("--listen=unix://",)))


def test_mcp_servers_are_named_as_codex_has_them() -> None:
    servers = {"mcpServers": {"web": {"type": "http", "url": "https://x", "headers": {"A": "1"}}}}
    *_, begun = said(Codex().launch(spec(mcp_config=servers)).stdin)
    web = {"url": "https://x", "http_headers": {"A": "1"}}
    assert begun["params"]["config"] == {"mcp_servers": {"web": web}}


def test_a_running_turn_is_interrupted_by_its_own_name() -> None:
    """R7.2"""
    reader = CodexReader(spec())
    told(reader, id="thread", result={"thread": {"id": THREAD}})
    [interrupt] = told(reader, id="turn", result={"turn": {"id": TURN}})
    assert isinstance(interrupt, Interrupt)
    [request] = said(interrupt.frame)
    assert request["method"] == "turn/interrupt"
    assert request["params"] == {"threadId": THREAD, "turnId": TURN}


def test_an_interrupted_turn_closes_the_calls_it_left_open() -> None:
    reader = working(CodexReader(spec()))
    call = {"type": "commandExecution", "id": "c1", "command": "sleep 600", "cwd": "/work"}
    events = noted(reader, "item/started", item=call)
    assert events[-1] == ToolUse("c1", "shell", {"command": "sleep 600", "cwd": "/work"})
    events = ended(reader, "interrupted")
    assert events == [ToolResult("c1", "interrupted", is_error=True), HangUp()]
    verdict = reader.finish(EXITED, "")
    assert isinstance(verdict, Failed)
    assert verdict.reason is FailureReason.CANCELLED


@pytest.mark.parametrize(
    ("method", "result"),
    [
        ("item/commandExecution/requestApproval", {"decision": "accept"}),
        ("item/fileChange/requestApproval", {"decision": "accept"}),
        ("item/permissions/requestApproval", {"permissions": {"network": {"enabled": True}}}),
        ("item/tool/requestUserInput", {"answers": {}}),
        ("mcpServer/elicitation/request", {"action": "decline"}),
        ("item/of/tomorrow", None),
    ],
)
def test_every_request_is_answered(method: str, result: object) -> None:
    """R9.2: nobody is there to ask, so nothing may wait for one."""
    params = {"threadId": "a subagent's", "permissions": {"network": {"enabled": True}}}
    [say] = told(working(CodexReader(spec())), id=0, method=method, params=params)
    assert isinstance(say, Say)
    [answer] = said(say.frame)
    assert (answer["id"], answer.get("result")) == (0, result)
    assert ("error" in answer) is (result is None)


def test_a_subagent_neither_ends_the_run_nor_speaks_for_it_but_costs() -> None:
    reader = working(CodexReader(spec()))
    item = {"type": "agentMessage", "id": "m1", "text": "from below"}
    assert noted(reader, "item/completed", threadId="other", item=item) == []
    turn = {"id": "turn-9", "status": "completed"}
    assert noted(reader, "turn/completed", threadId="other", turn=turn) == []
    last = {"inputTokens": 10, "outputTokens": 1}
    noted(reader, "thread/tokenUsage/updated", threadId="other", tokenUsage={"last": last})
    assert reader.usage() == [Usage("codex", "m1", 10, 1)]
    ended(reader, "completed")
    assert reader.finish(EXITED, "") == Completed("")


def test_what_an_earlier_turn_has_cost_is_not_billed_again() -> None:
    """R6.7: a resumed thread tells it once more."""
    reader = CodexReader(spec(resume=THREAD))
    told(reader, id="thread", result={"thread": {"id": THREAD}, "model": "m1"})
    usage = {"last": {"inputTokens": 1000, "outputTokens": 1}}
    noted(reader, "thread/tokenUsage/updated", turnId="turn-0", tokenUsage=usage)
    told(reader, id="turn", result={"turn": {"id": TURN}})
    noted(reader, "thread/tokenUsage/updated", turnId="turn-0", tokenUsage=usage)
    assert reader.usage() == []


def test_the_final_answer_is_the_one_that_says_so() -> None:
    reader = working(CodexReader(spec()))
    for phase, text in (("final_answer", "Done."), ("commentary", "I tidy up.")):
        item = {"type": "agentMessage", "id": text, "text": text, "phase": phase}
        noted(reader, "item/completed", item=item)
    ended(reader, "completed")
    assert reader.finish(EXITED, "") == Completed("Done.")


@pytest.mark.parametrize(
    "answer",
    [
        {"error": {"code": -32600, "message": "no rollout found for thread id thread-1"}},
        {"result": {"thread": {"id": "another"}}},
    ],
)
def test_a_resume_that_fails_or_answers_with_another_thread_is_refused(
    answer: dict[str, Any],
) -> None:
    """R5.10, R9.2"""
    reader = CodexReader(spec(resume=THREAD))
    events = told(reader, id="thread", **answer)
    assert events[-1] == HangUp()
    assert not any(isinstance(event, Say) for event in events)
    verdict = reader.finish(EXITED, "")
    assert isinstance(verdict, ResumeRefused)
    assert verdict.session_id == THREAD


def test_a_thread_that_is_refused_is_a_failure_in_its_words() -> None:
    reader = CodexReader(spec())
    error = {"code": -32600, "message": "error loading config: no model provider stub"}
    assert told(reader, id="thread", error=error)[-1] == HangUp()
    verdict = reader.finish(EXITED, "")
    assert isinstance(verdict, Failed)
    assert verdict.reason is FailureReason.MISSING_CONFIG


def test_a_session_counts_once_the_model_has_begun() -> None:
    """R9.2: our own message is no proof of a rollout."""
    reader = CodexReader(spec())
    events = told(reader, id="thread", result={"thread": {"id": THREAD}})
    assert events[0] == Session(THREAD, is_resumable=False)
    assert noted(reader, "item/started", item={"type": "userMessage", "id": "u1"}) == []
    item = {"type": "reasoning", "id": "r1", "summary": []}
    assert noted(reader, "item/started", item=item) == [Session(THREAD, is_resumable=True)]


def test_a_retry_is_no_failure() -> None:
    reader = working(CodexReader(spec()))
    error = {"message": "Reconnecting... 2/5"}
    events = noted(reader, "error", error=error, willRetry=True)
    assert events == [Retry(2, 5, 0.0, "Reconnecting... 2/5")]
    assert noted(reader, "error", error={"message": "no"}, willRetry=False) == [Notice("no")]


@pytest.mark.parametrize(
    ("info", "message", "reason"),
    [
        ("contextWindowExceeded", "ran out of room", FailureReason.CONTEXT_OVERFLOW),
        ("sessionBudgetExceeded", "budget", FailureReason.ITERATION_LIMIT),
        ("unauthorized", "no key", FailureReason.AUTH),
        ("modelNotFound", "no model", FailureReason.MODEL_UNAVAILABLE),
        ("rateLimitExceeded", "slow", FailureReason.PROVIDER_OVERLOADED),
        ("internalServerError", "oops", FailureReason.PROVIDER_OVERLOADED),
        ("badRequest", "bad", FailureReason.INVALID_REQUEST),
        ("cyberPolicy", "no", FailureReason.AGENT_ERROR),
        ({"httpConnectionFailed": {"httpStatusCode": None}}, "?", FailureReason.PROVIDER_NETWORK),
        ({"httpConnectionFailed": {"httpStatusCode": 503}}, "?", FailureReason.PROVIDER_OVERLOADED),
        ("other", "unexpected status 401 Unauthorized: no", FailureReason.AUTH),
        (
            {"responseTooManyFailedAttempts": {"httpStatusCode": 429}},
            "exceeded retry limit, last status: 429",
            FailureReason.PROVIDER_OVERLOADED,
        ),
        (
            {"responseStreamDisconnected": {}},
            "stream disconnected before completion",
            FailureReason.PROVIDER_NETWORK,
        ),
        (None, "something new", FailureReason.AGENT_ERROR),
    ],
)
def test_a_failed_turn_has_a_reason(info: object, message: str, reason: FailureReason) -> None:
    """R5.2"""
    reader = working(CodexReader(spec()))
    ended(reader, "failed", message=message, codexErrorInfo=info)
    verdict = reader.finish(EXITED, "")
    assert isinstance(verdict, Failed)
    assert verdict.reason is reason
    assert message in verdict.error


def test_a_quota_tells_when_it_returns() -> None:
    """R5.2: of the windows that are full, the later one."""
    reader = working(CodexReader(spec()))
    windows = {
        "primary": {"usedPercent": 100, "resetsAt": 1_900_000_000},
        "secondary": {"usedPercent": 40, "resetsAt": 2_000_000_000},
    }
    noted(reader, "account/rateLimits/updated", rateLimits=windows)
    ended(reader, "failed", message="usage limit", codexErrorInfo="usageLimitExceeded")
    verdict = reader.finish(EXITED, "")
    assert isinstance(verdict, Failed)
    assert (verdict.reason, verdict.resets_at) == (FailureReason.QUOTA_EXHAUSTED, 1_900_000_000)
