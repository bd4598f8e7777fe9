"""What the daemon relies on, whatever the agent CLI. Lines as the programs really print them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.core.failures import FailureReason
from understudy.daemon.backends import frames
from understudy.daemon.backends.acp import Acp
from understudy.daemon.backends.backend import (
    Backend,
    Completed,
    Event,
    Exit,
    Failed,
    HangUp,
    Interrupt,
    RunSpec,
    Say,
    Session,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
    Unparsed,
    Usage,
    Verdict,
)
from understudy.daemon.backends.claude import Claude
from understudy.daemon.backends.codex import Codex
from understudy.daemon.backends.command import Command
from understudy.daemon.backends.providers import BACKENDS
from understudy.daemon.backends.scripted import Scripted

SESSION = "0f8fad5b-d9cb-469f-a165-70867728950e"
EXITED = Exit("exited", code=0)
HIDDEN = "sk-1234"
PROMPT = "Please, the prompt"


@dataclass(frozen=True)
class Dialect:
    """How one CLI says what all of them say. `proves`: exit status 0 alone is no success.

    `result` is the last line of `end`; of a CLI that `converses`, the answer stands before it.
    """

    backend: Backend
    session: bytes
    text: Callable[[str], bytes]
    thinking: Callable[[str], bytes]
    tool_use: bytes
    tool_result: bytes
    usage: Sequence[bytes]
    end: Callable[[str], Sequence[bytes]]
    failure: bytes
    proves: bool = True
    converses: bool = False
    opening: Sequence[bytes] = ()  # Before the session is known,
    asked: Sequence[bytes] = ()  # and between that and the agent's first word.
    bills_at_the_end: bool = False
    tool: str = "Bash"

    def spec(self) -> RunSpec:
        return RunSpec(
            prompt=PROMPT,
            work_dir="/work-dir",
            run_dir="/run-dir",
            env={"PATH": "/bin", "API_KEY": HIDDEN},
            executable="/bin/agent",
            model="model-1",
            custom_args=("--flag",),
            mcp_config={"mcpServers": {"lab": {"env": {"TOKEN": HIDDEN}}}},
        )

    def lines(self) -> list[bytes]:
        return [
            self.session,
            *self.asked,
            self.thinking("hm"),
            self.text("I run it."),
            self.tool_use,
            self.tool_result,
            *self.usage,
            *self.end("All done"),
        ]


def claude_message(block: dict[str, Any], message_id: str = "msg_1", **usage: int) -> bytes:
    message = {"id": message_id, "model": "model-1", "content": [block], "usage": usage}
    frame = {"type": "assistant", "message": message, "parent_tool_use_id": None}
    return json.dumps({**frame, "session_id": SESSION}).encode()


def claude_result(text: str, **fields: object) -> bytes:
    result = {
        "type": "result",
        "subtype": "success",
        "is_error": False,
        "api_error_status": None,
        "num_turns": 2,
        "result": text,
        "stop_reason": "end_turn",
        "session_id": SESSION,
        "modelUsage": {
            "model-1[1m]": {
                "inputTokens": 250,
                "outputTokens": 29,
                "cacheReadInputTokens": 7,
                "cacheCreationInputTokens": 3,
            }
        },
        "terminal_reason": "completed",
    }
    return json.dumps({**result, **fields}, separators=(",", ":")).encode()


def tool_result_of_claude() -> bytes:
    block = {"type": "tool_result", "tool_use_id": "t1", "content": "hi", "is_error": False}
    message = {"role": "user", "content": [block]}
    return json.dumps({"type": "user", "message": message, "session_id": SESSION}).encode()


CLAUDE = Dialect(
    backend=Claude(is_root=True),
    session=json.dumps(
        {"type": "system", "subtype": "init", "session_id": SESSION, "mcp_servers": []}
    ).encode(),
    text=lambda text: claude_message({"type": "text", "text": text}, input_tokens=100),
    thinking=lambda text: claude_message({"type": "thinking", "thinking": text}, input_tokens=100),
    tool_use=claude_message(
        {"type": "tool_use", "id": "t1", "name": "Bash", "input": {"command": "echo hi"}},
        input_tokens=100,
    ),
    tool_result=tool_result_of_claude(),
    usage=[],  # In the messages, and once more in the result.
    end=lambda text: [claude_result(text)],
    failure=claude_result("API Error: 529 Overloaded", is_error=True, api_error_status=529),
)


def line(kind: str, **fields: object) -> bytes:
    return json.dumps({"type": kind, **fields}).encode()


SCRIPTED = Dialect(
    backend=Scripted(),
    session=line("session", id=SESSION, resumable=True),
    text=lambda text: line("text", text=text),
    thinking=lambda text: line("thinking", text=text),
    tool_use=line("tool_use", id="t1", name="Bash", input={"command": "echo hi"}),
    tool_result=line("tool_result", id="t1", output="hi", is_error=False),
    usage=[
        line("usage", model="model-1", input_tokens=100, output_tokens=20),
        line(
            "usage",
            model="model-1",
            input_tokens=150,
            output_tokens=9,
            cache_read_tokens=7,
            cache_write_tokens=3,
        ),
    ],
    end=lambda text: [line("result", output=text)],
    failure=line("result", is_error=True, reason="provider_overloaded", error="Overloaded"),
)
COMMAND = replace(SCRIPTED, backend=Command(), proves=False)


def rpc(method: str, **params: object) -> bytes:
    return json.dumps({"method": method, "params": {"threadId": SESSION, **params}}).encode()


def codex_item(kind: str, *, is_over: bool = True, **fields: object) -> bytes:
    item = {"type": kind, "id": "t1", **fields}
    return rpc(f"item/{'completed' if is_over else 'started'}", item=item, turnId="turn-1")


def codex_usage(**tokens: int) -> bytes:
    usage = {"last": tokens, "total": {"inputTokens": 10_000}}
    return rpc("thread/tokenUsage/updated", turnId="turn-1", tokenUsage=usage)


def codex_turn(status: str, **error: object) -> bytes:
    return rpc("turn/completed", turn={"id": "turn-1", "status": status, "error": error or None})


CODEX = Dialect(
    backend=Codex(),
    opening=[b'{"id":"initialize","result":{"userAgent":"understudy/0.169.0"}}'],
    session=json.dumps(
        {"id": "thread", "result": {"thread": {"id": SESSION}, "model": "model-1"}}
    ).encode(),
    text=lambda text: codex_item("agentMessage", text=text),
    thinking=lambda text: codex_item("reasoning", summary=[text], content=[]),
    tool_use=codex_item(
        "mcpToolCall", is_over=False, server="lab", tool="Bash", arguments={"command": "echo hi"}
    ),
    tool_result=codex_item(
        "mcpToolCall", server="lab", tool="Bash", result={"content": [{"text": "hi"}]}
    ),
    usage=[
        b'{"id":"turn","result":{"turn":{"id":"turn-1"}}}',
        codex_usage(inputTokens=100, outputTokens=20),
        codex_usage(inputTokens=160, outputTokens=9, cachedInputTokens=7, cacheWriteInputTokens=3),
    ],
    end=lambda text: [codex_item("agentMessage", text=text), codex_turn("completed")],
    failure=codex_turn("failed", message="Overloaded", codexErrorInfo="serverOverloaded"),
    tool="lab.Bash",
    converses=True,
)


def acp_update(kind: str, **fields: object) -> bytes:
    update = {"sessionUpdate": kind, **fields}
    params = {"sessionId": SESSION, "update": update}
    return json.dumps({"jsonrpc": "2.0", "method": "session/update", "params": params}).encode()


def acp_words(kind: str, text: str) -> bytes:
    content = {"type": "text", "text": text}
    return acp_update(f"agent_{kind}_chunk", content=content, messageId=str(len(text)))


def acp_end(stop: str) -> bytes:
    usage = {
        "inputTokens": 250,
        "outputTokens": 29,
        "cachedReadTokens": 7,
        "cachedWriteTokens": 3,
        "totalTokens": 289,
    }
    result = {"stopReason": stop, "usage": usage}
    return json.dumps({"jsonrpc": "2.0", "id": "prompt", "result": result}).encode()


ACP_MODELS = {"models": {"currentModelId": "model-0", "availableModels": []}}
ACP = Dialect(
    backend=Acp(),
    opening=[b'{"jsonrpc":"2.0","id":"initialize","result":{"agentCapabilities":{}}}'],
    session=json.dumps(
        {"jsonrpc": "2.0", "id": "session", "result": {"sessionId": SESSION, **ACP_MODELS}}
    ).encode(),
    asked=[b'{"jsonrpc":"2.0","id":"model","result":{}}'],
    text=lambda text: acp_words("message", text),
    thinking=lambda text: acp_words("thought", text),
    tool_use=acp_update(
        "tool_call", toolCallId="t1", name="Bash", status="pending", rawInput={"command": "echo hi"}
    ),
    tool_result=acp_update("tool_call_update", toolCallId="t1", status="completed", rawOutput="hi"),
    usage=[],  # In the result alone.
    end=lambda text: [acp_words("message", text), acp_end("end_turn")],
    failure=json.dumps(
        {"id": "prompt", "error": {"code": -32603, "message": "API Error: 529 Overloaded"}}
    ).encode(),
    converses=True,
    bills_at_the_end=True,
)
DIALECTS = [CLAUDE, CODEX, ACP, SCRIPTED, COMMAND]


def named(dialect: Dialect) -> str:
    return dialect.backend.provider


@pytest.fixture(params=DIALECTS, ids=named)
def dialect(request: pytest.FixtureRequest) -> Dialect:
    chosen: Dialect = request.param
    return chosen


def read(
    dialect: Dialect, lines: Sequence[bytes], end: Exit = EXITED
) -> tuple[list[Event], Verdict, list[Usage]]:
    reader = dialect.backend.reader(dialect.spec())
    before = [] if dialect.session in lines else [dialect.session, *dialect.asked]
    told = [*dialect.opening, *(before if dialect.converses else []), *lines]
    events = [event for text in told for event in reader.feed(text)]
    return events, reader.finish(end, ""), reader.usage()


def test_every_provider_has_its_dialect_here() -> None:
    assert {dialect.backend.provider for dialect in DIALECTS} == set(BACKENDS)


def test_a_run_is_told_in_order(dialect: Dialect) -> None:
    events, verdict, _ = read(dialect, dialect.lines())
    beside = Usage | Session | Say | Interrupt | HangUp
    told = [event for event in events if not isinstance(event, beside)]
    assert told == [
        Thinking("hm"),
        Text("I run it."),
        ToolUse("t1", dialect.tool, {"command": "echo hi"}),
        ToolResult("t1", "hi", is_error=False),
        *([Text("All done")] if dialect.converses else []),
    ]
    assert verdict == Completed("All done")


def test_the_session_is_revealed_first_and_resumable_before_the_result(dialect: Dialect) -> None:
    """R5.8, R9.2"""
    events, _, _ = read(dialect, dialect.lines()[: 2 + len(dialect.asked)])
    sessions = [event for event in events if isinstance(event, Session)]
    assert next(event for event in events if not isinstance(event, Say)) == sessions[0]
    assert sessions[-1] == Session(SESSION, is_resumable=True)


def test_the_bill_is_the_total_however_many_frames_told_it(dialect: Dialect) -> None:
    """R6.7"""
    events, _, bill = read(dialect, dialect.lines())
    provider = dialect.backend.provider
    assert bill == [Usage(provider, "model-1", 250, 29, 7, 3)]
    assert [event for event in events if isinstance(event, Usage)][-1] == bill[0]


def test_a_cancelled_run_has_a_bill_too(dialect: Dialect) -> None:
    """R6.7"""
    whole = dialect.lines() if dialect.bills_at_the_end else dialect.lines()[:-1]
    _, _, bill = read(dialect, whole, Exit("cancelled", signal=15))
    assert [usage.model for usage in bill] == ["model-1"]
    assert bill[0].input_tokens >= 100


def test_no_prefix_of_a_run_is_a_success(dialect: Dialect) -> None:
    """R5.11: wherever the output was torn, exit status 0 does not make up for the result."""
    *whole, result = dialect.lines()
    for cut in range(1, len(result)):
        _, verdict, _ = read(dialect, [*whole, result[:cut]])
        if dialect.proves or cut > len('{"type"'):
            assert isinstance(verdict, Failed)
            assert verdict.reason is FailureReason.NO_RESULT
    _, verdict, _ = read(dialect, whole)
    assert isinstance(verdict, Completed) is not dialect.proves


@pytest.mark.parametrize("why", ["done", "cancelled", "max_time", "keeper_lost", "orphaned"])
def test_a_result_counts_however_the_program_ended(dialect: Dialect, why: str) -> None:
    """R9.3: never_exits"""
    _, verdict, _ = read(dialect, dialect.lines(), Exit(why, signal=9))
    assert verdict == Completed("All done")


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (Exit("cancelled", signal=15), FailureReason.CANCELLED),
        (Exit("agent_stalled", signal=15), FailureReason.AGENT_STALLED),
        (Exit("keeper_lost"), FailureReason.KEEPER_LOST),
        (Exit("max_time", signal=9), FailureReason.TIMEOUT),
        (Exit("orphaned", signal=15), FailureReason.RUNTIME_OFFLINE),
        (Exit("keeper_sigterm", signal=15), FailureReason.RUNTIME_SHUTDOWN),
        (Exit("spool_full", signal=15), FailureReason.ITERATION_LIMIT),
        (Exit("exited", signal=9), FailureReason.AGENT_KILLED),
        (Exit("exited", signal=11), FailureReason.AGENT_KILLED),
        (Exit("exited", code=143), FailureReason.AGENT_KILLED),
        (Exit("spawn_failed", error="No such file"), FailureReason.EXECUTABLE_MISSING),
        (Exit("a keeper of tomorrow", code=0), FailureReason.UNKNOWN),
    ],
)
def test_a_stop_without_a_result_is_its_own_reason(
    dialect: Dialect, end: Exit, reason: FailureReason
) -> None:
    _, verdict, _ = read(dialect, dialect.lines()[:-1], end)
    assert isinstance(verdict, Failed)
    assert verdict.reason is reason


def test_a_failure_that_is_told_is_not_taken_for_an_answer(dialect: Dialect) -> None:
    """R5.11: error_as_success"""
    _, verdict, _ = read(dialect, [dialect.session, dialect.failure], Exit("exited", code=0))
    assert isinstance(verdict, Failed)
    assert verdict.reason is FailureReason.PROVIDER_OVERLOADED
    assert "Overloaded" in verdict.error


def test_a_failure_that_is_told_counts_however_the_program_ended(dialect: Dialect) -> None:
    """R5.1: a signal that comes later explains nothing."""
    lines = [dialect.session, dialect.failure]
    _, verdict, _ = read(dialect, lines, Exit("exited", signal=15))
    assert isinstance(verdict, Failed)
    assert verdict.reason is FailureReason.PROVIDER_OVERLOADED


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (Exit("exited", code=1), FailureReason.AGENT_ERROR),
        (Exit("exited", signal=11), FailureReason.AGENT_KILLED),
    ],
)
def test_a_crash_is_told_with_the_last_words(
    dialect: Dialect, status: Exit, reason: FailureReason
) -> None:
    """R5.1: ended by a signal it has not answered, and is tried again."""
    reader = dialect.backend.reader(dialect.spec())
    verdict = reader.finish(status, "Segmentation\0fault\n")
    assert isinstance(verdict, Failed)
    assert verdict.reason is reason
    assert "Segmentationfault" in verdict.error


def test_what_postgresql_refuses_never_gets_in(dialect: Dialect) -> None:
    """R6.8: nul_byte"""
    text = dialect.text("one\0two \ud800 three").replace(b"three", b"three \xff\xfe \0four")
    events, verdict, _ = read(dialect, [text, *dialect.end("a\0b")])
    said = [event.text for event in events if isinstance(event, Text)][:1]
    assert said == ["onetwo ? three \ufffd\ufffd four"]
    assert verdict == Completed("ab")


def test_a_tools_input_is_cleaned_down_to_its_names_and_numbers(dialect: Dialect) -> None:
    """R6.8: what 64 bits do not hold is told in words."""
    odd = b'"a\\u0000b": 1208925819614629174706176, "nan": NaN, "list": ["\\u0000"], "command"'
    events, _, _ = read(dialect, [dialect.tool_use.replace(b'"command"', odd)])
    [call] = [event for event in events if isinstance(event, ToolUse)]
    assert call.input == {
        "ab": "1208925819614629174706176",
        "nan": None,
        "list": [""],
        "command": "echo hi",
    }
    msgspec.json.encode(call)


@pytest.mark.parametrize("number", [b"NaN", b"1e999", b"-7", b'"many"', b"[]"])
def test_a_bill_that_makes_no_sense_costs_nothing(dialect: Dialect, number: bytes) -> None:
    """R6.8"""
    told = [*dialect.usage, dialect.tool_use, *dialect.end("done")]
    _, verdict, bill = read(
        dialect, [re.sub(rb"\b(100|150|160|250)\b", number, text) for text in told]
    )
    assert verdict == Completed("done")
    assert [usage.input_tokens for usage in bill] == [0]


def test_a_line_of_20_mb_is_read_and_cut(dialect: Dialect) -> None:
    """R9.2, R6.8"""
    events, verdict, _ = read(dialect, [dialect.text("x" * (20 << 20)), *dialect.end("done")])
    said = next(event.text for event in events if isinstance(event, Text))
    assert frames.TEXT_MAX < len(said) < frames.TEXT_MAX + 100
    assert said.endswith("characters cut]")
    assert verdict == Completed("done")


def test_unknown_frames_and_garbage_are_passed_over(dialect: Dialect) -> None:
    noise = [
        b"",
        b"   ",
        b"npm warn deprecated",
        b'{"type":"frame_of_tomorrow","session_id":7}',
        b'{"type":["assistant"]}',
        b'{"type":"assistant","message":17}',
        b'{"type":"user","message":{"content":"text"}}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"n":NaN,"big":1e999}',
        b"\0\0\0\0",
    ]
    mixed = [part for text in dialect.lines() for part in [*noise, text]]
    events, verdict, bill = read(dialect, mixed)
    clean, _, clean_bill = read(dialect, dialect.lines())
    assert [event for event in events if event in clean] == clean
    assert verdict == Completed("All done")
    assert bill == clean_bill


LEAF = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=9)
)
WORDS = """
    type subtype message content usage id text thinking name input tool_use_id output is_error
    session_id modelUsage errors result model input_tokens rate_limit_info mcp_servers reason error
    terminal_reason system assistant user rate_limit_event tool_use tool_result session
    method params item turn thread id status threadId turnId tokenUsage last summary
    text kind update
"""
METHODS = st.sampled_from(
    [
        "item/started",
        "item/completed",
        "turn/completed",
        "thread/tokenUsage/updated",
        "error",
        "warning",
        "session/update",
        "session/request_permission",
        "item/tool/requestUserInput",
    ]
)
NAMES = st.sampled_from(WORDS.split())
OBJECT = st.dictionaries(NAMES, LEAF, max_size=4)
JSON = LEAF | OBJECT | st.lists(LEAF | OBJECT, max_size=3) | st.dictionaries(NAMES, OBJECT)
FRAMES = st.builds(
    lambda kind, fields: json.dumps({**fields, "type": kind}).encode(),
    NAMES,
    st.dictionaries(NAMES, JSON, max_size=6),
)
CALLS = st.builds(
    lambda method, params, id_: json.dumps(
        {"method": method, "params": params, **({"id": id_} if id_ else {})}
    ).encode(),
    METHODS,
    st.dictionaries(NAMES, JSON, max_size=6),
    LEAF,
)
ANSWERS = st.builds(
    lambda id_, kind, result: json.dumps({"id": id_, kind: result}).encode(),
    st.sampled_from(["initialize", "thread", "turn", "session", "model", "prompt"]),
    st.sampled_from(["result", "error"]),
    JSON,
)
GARBAGE = st.binary(max_size=60).map(lambda text: text.replace(b"\n", b""))


def strings(value: object) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list():
            for item in value:
                yield from strings(item)
        case dict():
            yield from strings([*value.keys(), *value.values()])
        case _:
            pass


@settings(deadline=None)
@given(lines=st.lists(FRAMES | CALLS | ANSWERS | GARBAGE, max_size=5))
def test_whatever_it_reads_the_events_are_fit_for_the_wire(lines: list[bytes]) -> None:
    """R6.8"""
    for dialect in DIALECTS:
        events, verdict, bill = read(dialect, lines)
        sent = msgspec.json.decode(msgspec.json.encode([events, verdict, bill]))
        assert not any("\0" in text for text in strings(sent))
        assert not any(len(e.text) > frames.UNPARSED_MAX for e in events if isinstance(e, Unparsed))


@settings(deadline=None)
@given(lines=st.lists(FRAMES | CALLS | ANSWERS, max_size=5), data=st.data())
def test_who_reads_again_from_the_start_reads_the_same(
    lines: list[bytes], data: st.DataObject
) -> None:
    """R8.1: a message keeps its number over a restart of the daemon."""
    for dialect in DIALECTS:
        told = [*dialect.lines(), *lines]
        cut = data.draw(st.integers(0, len(told)))
        events, verdict, _ = read(dialect, told)
        before, _, _ = read(dialect, told[:cut])
        assert events[: len(before)] == before
        assert read(dialect, told)[:2] == (events, verdict)


@pytest.mark.parametrize("dialect", [each for each in DIALECTS if each.converses], ids=named)
def test_only_the_result_ends_a_dialogue(dialect: Dialect) -> None:
    """R9.3: nor does another's, when a subagent has turns of its own."""
    *whole, result = dialect.lines()
    another = result.replace(SESSION.encode(), b"another-session")
    events, _, _ = read(dialect, [*whole, another])
    assert another == result or HangUp() not in events
    events, _, _ = read(dialect, [*whole, result, result])
    assert events.count(HangUp()) == 1
    assert dialect.backend.launch(dialect.spec()).done is None


@pytest.mark.parametrize("dialect", [each for each in DIALECTS if not each.converses], ids=named)
def test_only_the_result_ends_the_run(dialect: Dialect) -> None:
    """R9.3: the keeper closes stdin on this line, so an agent that writes about it must not."""
    done = (dialect.backend.launch(dialect.spec()).done or "").encode()
    talk = dialect.text('{"type":"result"} and "type":"result"')
    inner = dialect.tool_use.replace(b'"command"', b'"type": "result", "command"')
    for text in [*dialect.lines()[:-1], talk, inner]:
        assert not re.search(done, text)
    reordered = json.dumps({"uuid": "1", "n": -1.5, "ok": True, "type": "result"})
    for text in [*dialect.end("All done"), dialect.failure, reordered.encode()]:
        assert re.search(done, text)


def test_neither_the_prompt_nor_a_secret_is_in_argv(dialect: Dialect) -> None:
    """R9.2, R9.5"""
    launch = dialect.backend.launch(dialect.spec())
    events, _, _ = read(dialect, [dialect.session, *dialect.asked])
    said = [launch.stdin, *(event.frame for event in events if isinstance(event, Say))]
    assert [frame.count(PROMPT) for frame in said if PROMPT in frame] == [1]
    assert not any(PROMPT in word or HIDDEN in word for word in launch.argv)
    assert launch.env["API_KEY"] == HIDDEN


def test_a_spec_survives_a_restart_of_the_daemon(dialect: Dialect) -> None:
    spec = dialect.spec()
    assert msgspec.json.decode(msgspec.json.encode(spec), type=RunSpec) == spec
