"""What ACP agents differ in, as OpenCode, Gemini CLI and Claude's adapters really do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from understudy.core.failures import FailureReason
from understudy.daemon.backends.acp import Acp
from understudy.daemon.backends.acp_reader import AcpReader
from understudy.daemon.backends.backend import (
    Completed,
    Event,
    Exit,
    Failed,
    HangUp,
    Interrupt,
    ResumeRefused,
    RunSpec,
    Say,
    Session,
    Text,
    ToolResult,
    ToolUse,
    Unlaunchable,
    Usage,
)

EXITED = Exit("exited", code=0)


def spec(**fields: Any) -> RunSpec:
    given = {"custom_args": ("agent", "--acp"), "prompt": "go", **fields}
    return RunSpec(work_dir="/work", run_dir="/run", env={}, **given)


def told(reader: AcpReader, **fields: object) -> list[Event]:
    return reader.feed(json.dumps({"jsonrpc": "2.0", **fields}).encode())


def update(reader: AcpReader, name: str, **fields: object) -> list[Event]:
    params = {"sessionId": "s1", "update": {"sessionUpdate": name, **fields}}
    events = told(reader, method="session/update", params=params)
    return [event for event in events if not isinstance(event, Session)]


def said(events: list[Event]) -> list[Any]:
    return [json.loads(event.frame) for event in events if isinstance(event, Say)]


def prompted(reader: AcpReader) -> AcpReader:
    told(reader, id="initialize", result={"agentCapabilities": {"loadSession": True}})
    events = told(reader, id="session", result={"sessionId": "s1"})
    assert said(events)[-1]["method"] == "session/prompt"
    return reader


@pytest.mark.parametrize(
    ("capabilities", "method"),
    [
        ({"loadSession": True, "sessionCapabilities": {"resume": {}}}, "session/resume"),
        ({"loadSession": True}, "session/load"),
    ],
)
def test_a_session_is_continued_in_the_way_the_agent_offers(
    capabilities: dict[str, Any], method: str
) -> None:
    """R5.9"""
    reader = AcpReader(spec(resume="s1"))
    [request] = said(told(reader, id="initialize", result={"agentCapabilities": capabilities}))
    assert (request["method"], request["params"]["sessionId"]) == (method, "s1")


def test_an_agent_that_can_continue_nothing_refuses_the_session() -> None:
    """R5.10"""
    reader = AcpReader(spec(resume="s1"))
    assert told(reader, id="initialize", result={"agentCapabilities": {}}) == [HangUp()]
    assert isinstance(reader.finish(EXITED, ""), ResumeRefused)


def test_any_error_of_a_resume_is_a_refusal_and_another_id_is_one() -> None:
    """R5.10, R9.2: OpenCode says "service failure"."""
    for answer in (
        {"error": {"code": -32603, "message": "OpenCode service failure"}},
        {"result": {"sessionId": "s2"}},
    ):
        reader = AcpReader(spec(resume="s1"))
        told(reader, id="initialize", result={"agentCapabilities": {"loadSession": True}})
        assert told(reader, id="session", **answer)[-1] == HangUp()
        verdict = reader.finish(EXITED, "")
        assert isinstance(verdict, ResumeRefused)
        assert verdict.session_id == "s1"


def test_the_past_of_a_loaded_session_is_not_told_again() -> None:
    reader = AcpReader(spec(resume="s1"))
    told(reader, id="initialize", result={"agentCapabilities": {"loadSession": True}})
    assert update(reader, "agent_message_chunk", content={"type": "text", "text": "old"}) == []
    assert update(reader, "tool_call", toolCallId="t0", rawInput={"command": "rm"}) == []
    events = told(reader, id="session", result={})
    assert events[0] == Session("s1", is_resumable=True)
    assert update(reader, "tool_call_update", toolCallId="t0", status="completed") == []


def test_what_is_asked_for_is_granted_once_and_never_remembered() -> None:
    """R9.2: nobody is there to be asked."""
    reader = prompted(AcpReader(spec()))
    options = [
        {"optionId": "always", "kind": "allow_always"},
        {"optionId": "once", "kind": "allow_once"},
        {"optionId": "no", "kind": "reject_once"},
    ]
    call = {"toolCallId": "t1", "title": "echo hi", "kind": "execute"}
    asked = {"sessionId": "s1", "toolCall": call, "options": options}
    events = told(reader, id=0, method="session/request_permission", params=asked)
    assert ToolUse("t1", "execute", {"title": "echo hi"}) in events, "Gemini tells of it only here"
    [answer] = said(events)
    assert answer["id"] == 0
    assert answer["result"] == {"outcome": {"outcome": "selected", "optionId": "once"}}
    asked["options"] = options[2:]
    events = told(reader, id="7", method="session/request_permission", params=asked)
    assert said(events)[0]["result"] == {"outcome": {"outcome": "cancelled"}}


@pytest.mark.parametrize("method", ["fs/read_text_file", "terminal/create", "_x/of_tomorrow"])
def test_what_nobody_can_do_is_refused_not_left_unanswered(method: str) -> None:
    [answer] = said(told(prompted(AcpReader(spec())), id=3, method=method, params={}))
    assert (answer["id"], answer["error"]["code"]) == (3, -32601)


def test_a_mode_that_asks_nobody_comes_first_then_the_model_then_the_prompt() -> None:
    """R8.1, R9.2: one at a time, and the interrupt with the prompt."""
    reader = AcpReader(spec(model="m2", instructions="Be kind."))
    told(reader, id="initialize", result={})
    offered = {
        "sessionId": "s1",
        "modes": {"availableModes": [{"id": "default"}, {"id": "yolo"}]},
        "configOptions": [{"id": "llm", "category": "model", "currentValue": "m1"}],
    }
    [mode] = said(told(reader, id="session", result=offered))
    assert mode["params"] == {"sessionId": "s1", "modeId": "yolo"}
    [model] = said(told(reader, id="mode", error={"code": -32603, "message": "no"}))
    assert model["method"] == "session/set_config_option"
    assert model["params"] == {"sessionId": "s1", "configId": "llm", "value": "m2"}
    events = told(reader, id="model", result={})
    [prompt] = said(events)
    assert prompt["params"]["prompt"] == [{"type": "text", "text": "Be kind.\n\ngo"}]
    [cancel] = [json.loads(event.frame) for event in events if isinstance(event, Interrupt)]
    assert cancel["method"] == "session/cancel"
    assert "id" not in cancel


def test_a_model_that_cannot_be_chosen_is_the_agents_to_repair() -> None:
    reader = AcpReader(spec(model="m2"))
    told(reader, id="initialize", result={})
    assert told(reader, id="session", result={"sessionId": "s1"})[-1] == HangUp()
    verdict = reader.finish(Exit("done", signal=15), "")
    assert isinstance(verdict, Failed)
    assert verdict.reason is FailureReason.MISSING_CONFIG
    assert "m2" in verdict.error


def test_words_in_pieces_are_one_message_and_the_last_one_the_answer() -> None:
    reader = prompted(AcpReader(spec()))
    for piece in ("I ", "run ", "it."):
        assert update(reader, "agent_message_chunk", content={"type": "text", "text": piece}) == []
    call = {"toolCallId": "t1", "title": "Terminal", "kind": "execute"}
    assert update(reader, "tool_call", **call, rawInput={"cwd": "/work"}) == [Text("I run it.")]
    begun = update(reader, "tool_call_update", toolCallId="t1", rawInput={"command": "true"})
    assert begun == [ToolUse("t1", "execute", {"command": "true"})], "OpenCode's input comes late"
    done = {"toolCallId": "t1", "status": "completed", "rawOutput": {"output": "hi"}}
    text = [{"type": "content", "content": {"type": "text", "text": "hi"}}]
    assert update(reader, "tool_call_update", **done, content=text) == [
        ToolResult("t1", "hi", is_error=False)
    ]
    for piece in ("All ", "done"):
        update(reader, "agent_message_chunk", content={"type": "text", "text": piece})
    events = told(reader, id="prompt", result={"stopReason": "end_turn"})
    assert Text("All done") in events
    assert reader.finish(EXITED, "") == Completed("All done")


@pytest.mark.parametrize(("piece", "count"), [("x" * 1000, 150), ("a line\n", 1000)])
def test_a_long_message_is_told_before_it_ends_and_whole(piece: str, count: int) -> None:
    """R4.10: the watchdog hears no more than what is told."""
    reader = prompted(AcpReader(spec()))
    chunk = {"type": "text", "text": piece}
    events = [e for _ in range(count) for e in update(reader, "agent_message_chunk", content=chunk)]
    assert len(events) > 1
    events += told(reader, id="prompt", result={"stopReason": "end_turn"})
    assert "".join(event.text for event in events if isinstance(event, Text)) == piece * count
    assert reader.finish(EXITED, "") == Completed(piece * count)


@pytest.mark.parametrize(
    ("stop", "reason", "is_safe"),
    [
        ("cancelled", FailureReason.CANCELLED, True),
        ("max_turn_requests", FailureReason.ITERATION_LIMIT, True),
        ("max_tokens", FailureReason.AGENT_ERROR, True),
        ("refusal", FailureReason.AGENT_ERROR, False),
        ("of_tomorrow", FailureReason.UNKNOWN, True),
    ],
)
def test_only_an_end_of_its_own_is_a_success(
    stop: str, reason: FailureReason, *, is_safe: bool
) -> None:
    """R5.11"""
    reader = prompted(AcpReader(spec()))
    update(reader, "tool_call", toolCallId="t1", rawInput={"command": "sleep"})
    events = told(reader, id="prompt", result={"stopReason": stop})
    assert ToolResult("t1", "interrupted", is_error=True) in events
    verdict = reader.finish(EXITED, "")
    assert isinstance(verdict, Failed)
    assert (verdict.reason, verdict.is_session_safe) == (reason, is_safe)


def test_an_error_in_the_place_of_an_answer_is_none() -> None:
    """R5.11: error_as_success"""
    reader = prompted(AcpReader(spec()))
    text = {"type": "text", "text": "API Error: 529 Overloaded"}
    update(reader, "agent_message_chunk", content=text)
    told(reader, id="prompt", result={"stopReason": "end_turn"})
    verdict = reader.finish(EXITED, "")
    assert isinstance(verdict, Failed)
    assert verdict.reason is FailureReason.PROVIDER_OVERLOADED


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ({"code": -32000, "message": "Authentication required"}, FailureReason.AUTH),
        ({"code": 401, "message": "{}"}, FailureReason.AUTH),
        ({"code": 429, "message": "{}"}, FailureReason.PROVIDER_OVERLOADED),
        (
            {"code": -32603, "message": "x", "data": {"errorName": "ContextOverflowError"}},
            FailureReason.CONTEXT_OVERFLOW,
        ),
        ({"code": -32603, "message": "Cannot connect to API"}, FailureReason.PROVIDER_NETWORK),
        ({"code": -32603, "message": "Internal error"}, FailureReason.AGENT_ERROR),
    ],
)
def test_an_error_has_a_reason(error: dict[str, Any], reason: FailureReason) -> None:
    """R5.2"""
    reader = prompted(AcpReader(spec()))
    assert HangUp() in told(reader, id="prompt", error=error)
    verdict = reader.finish(Exit("done", signal=15), "")
    assert isinstance(verdict, Failed)
    assert verdict.reason is reason


def test_a_wait_that_the_provider_names_is_passed_on() -> None:
    """R5.2"""
    reader = prompted(AcpReader(spec()))
    error = {"code": 429, "message": "rate limited, try again in 1.5s"}
    told(reader, id="prompt", error=error)
    verdict = reader.finish(EXITED, "")
    assert isinstance(verdict, Failed)
    assert verdict.retry_after_s == 1.5


def test_tokens_are_billed_to_the_model_that_the_agent_names() -> None:
    """R6.7: Gemini by model, without the protocol's own field; OpenCode without a name."""
    reader = prompted(AcpReader(spec()))
    tokens = {"input_tokens": 20, "output_tokens": 10}
    quota = {"model_usage": [{"model": "gemini-2.5-pro", "token_count": tokens}]}
    told(reader, id="prompt", result={"stopReason": "end_turn", "_meta": {"quota": quota}})
    assert reader.usage() == [Usage("acp", "gemini-2.5-pro", 20, 10)]
    reader = AcpReader(spec())
    told(reader, id="session", result={"sessionId": "s", "models": {"currentModelId": "stub/m1"}})
    told(reader, id="prompt", result={"stopReason": "end_turn", "usage": {"inputTokens": 10}})
    assert reader.usage() == [Usage("acp", "stub/m1", 10)]


def test_mcp_servers_are_handed_over_as_the_protocol_has_them() -> None:
    servers = {
        "lab": {"command": "lab", "args": ["-v"], "env": {"A": "1"}},
        "web": {"type": "http", "url": "https://mcp.example.org", "headers": {"X": "2"}},
    }
    reader = AcpReader(spec(mcp_config={"mcpServers": servers}))
    [request] = said(told(reader, id="initialize", result={}))
    assert request["params"]["mcpServers"] == [
        {"name": "lab", "command": "lab", "args": ["-v"], "env": [{"name": "A", "value": "1"}]},
        {
            "type": "http",
            "name": "web",
            "url": "https://mcp.example.org",
            "headers": [{"name": "X", "value": "2"}],
        },
    ]


def test_an_agent_without_a_program_cannot_be_launched() -> None:
    with pytest.raises(Unlaunchable, match="custom_args"):
        Acp().launch(spec(custom_args=()))
