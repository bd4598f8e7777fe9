"""A real agent over the Agent Client Protocol, against a model of ours, with no network but
loopback: Claude Code behind its adapter."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio

from understudy.core.failures import FailureReason
from understudy.daemon.backends.backend import (
    Completed,
    Event,
    Failed,
    HangUp,
    Interrupt,
    Notice,
    ResumeRefused,
    RunSpec,
    Say,
    Session,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
    Usage,
)
from understudy.daemon.backends.providers import BACKENDS
from understudy.testing import model_api
from understudy.testing.agent_clis import Ending, Loopback, find_cli, open_loopback, run_cli
from understudy.testing.model_api import Refusal, Reply, Script, ToolCall, serve_model

ADAPTER, CLAUDE = find_cli("claude-agent-acp"), find_cli("claude")
pytestmark = pytest.mark.skipif(
    ADAPTER is None or CLAUDE is None,
    reason="no claude-agent-acp, or no claude, on PATH or in .clis: make clis",
)
BACKEND = BACKENDS["acp"]
RUN_S = 120
DONE = Reply((model_api.Text("Done."),))


@dataclass
class Bench:
    """A work directory, an agent of its own and the model it talks to."""

    root: Path
    loopback: Loopback
    nursery: trio.Nursery

    @property
    def work_dir(self) -> Path:
        return self.root / "work"

    def spec(self, **env: str) -> RunSpec:
        home = self.root / "home"
        return RunSpec(
            prompt="Greet the world.",
            work_dir=str(self.work_dir),
            run_dir=str(self.root / "run"),
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(home),
                "CLAUDE_CONFIG_DIR": str(home / "claude"),
                "CLAUDE_CODE_EXECUTABLE": str(CLAUDE),
                "ANTHROPIC_BASE_URL": model_api.address(self.loopback.listener),
                "ANTHROPIC_API_KEY": "none",
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                "CLAUDE_CODE_MAX_RETRIES": "0",
                "IS_SANDBOX": "1",
                **env,
            },
            custom_args=(str(ADAPTER),),
        )

    def serve(self, *steps: model_api.Step) -> Script:
        script = Script(steps)
        self.nursery.start_soon(serve_model, script, self.loopback.listener)
        return script

    async def run(
        self, spec: RunSpec, on_event: Callable[[Event], bool] = lambda event: False
    ) -> Ending:
        with trio.fail_after(RUN_S):
            return await run_cli(
                BACKEND.launch(spec),
                BACKEND.reader(spec),
                work_dir=Path(spec.work_dir),
                run_dir=Path(spec.run_dir),
                enter=self.loopback.enter,
                on_event=on_event,
            )

    def printed(self) -> list[bytes]:
        return (self.root / "run" / "out").read_bytes().splitlines()


@pytest.fixture
def loopback() -> Iterator[Loopback]:
    with open_loopback() as loopback:
        yield loopback


@pytest.fixture
async def bench(tmp_path: Path, loopback: Loopback) -> AsyncIterator[Bench]:
    for name in ("work", "run", "home"):
        (tmp_path / name).mkdir()
    async with trio.open_nursery() as nursery:
        yield Bench(tmp_path, loopback, nursery)
        nursery.cancel_scope.cancel()


def writes(path: Path, text: str) -> ToolCall:
    return ToolCall("Write", {"file_path": str(path), "content": text})


def shell(command: str) -> ToolCall:
    return ToolCall("Bash", {"command": command, "description": "Run it"})


def told(ending: Ending) -> list[Event]:
    beside = Usage | Say | Interrupt | HangUp | Notice
    return [event for event in ending.events if not isinstance(event, beside)]


def said(ending: Ending) -> str:
    return "".join(event.frame for event in ending.events if isinstance(event, Say))


async def test_an_agent_works_and_every_step_of_it_is_told(bench: Bench) -> None:
    """R5.8, R5.11, R6.7, R9.2: the model answers for the last time when the session is known."""
    greeting = bench.work_dir / "hello.txt"
    known = trio.Event()
    work = (model_api.Thinking("hm"), model_api.Text("I write it."), writes(greeting, "hello"))
    bench.serve(
        Reply(work, input_tokens=100, output_tokens=20, cache_read_tokens=7, cache_write_tokens=3),
        Reply((model_api.Text("Done."),), input_tokens=150, output_tokens=9, held=known),
    )

    def look(event: Event) -> bool:
        if isinstance(event, Session) and event.is_resumable:
            known.set()
        return False

    ending = await bench.run(bench.spec(), look)
    assert ending.verdict == Completed("Done.")
    assert greeting.read_text() == "hello"
    session, proven, thought, text, call, outcome, last = told(ending)
    assert isinstance(session, Session)
    assert not session.is_resumable
    assert proven == replace(session, is_resumable=True)
    assert [thought, text, last] == [Thinking("hm"), Text("I write it."), Text("Done.")]
    assert isinstance(call, ToolUse)
    assert (call.name, call.input["content"]) == ("Write", "hello")
    assert isinstance(outcome, ToolResult)
    assert (outcome.id, outcome.is_error) == (call.id, False)
    assert ending.bill == [Usage("acp", "claude-opus-4-8", 250, 29, 7, 3)]
    assert "bypassPermissions" in said(ending)
    assert b"session/request_permission" not in b"".join(bench.printed())


async def test_what_it_asks_for_is_granted_and_reads_the_same_again(bench: Bench) -> None:
    """R8.1: an agent without a mode that asks nobody."""
    bench.serve(Reply((shell("echo one > a.txt"),)), DONE)
    settings = bench.root / "home" / "claude" / "settings.json"
    settings.parent.mkdir()
    settings.write_text('{"permissions": {"disableBypassPermissionsMode": "disable"}}')
    ending = await bench.run(bench.spec())
    assert ending.verdict == Completed("Done.")
    assert b"session/request_permission" in b"".join(bench.printed())
    assert (bench.work_dir / "a.txt").read_text() == "one\n"
    assert not (bench.work_dir / ".claude").exists(), "nothing is remembered"
    reader = BACKEND.reader(bench.spec())
    assert [e for line in bench.printed() for e in reader.feed(line)] == ending.events


@pytest.mark.slow
async def test_the_model_hears_instructions_and_the_model_asked_for_answers(bench: Bench) -> None:
    """R9.2"""
    script = bench.serve(DONE)
    ending = await bench.run(
        replace(bench.spec(), instructions="Speak like a pirate.", model="sonnet")
    )
    assert ending.verdict == Completed("Done.")
    [request] = script.requests
    assert "sonnet" in request["model"]
    assert "Speak like a pirate." in str(request["messages"])
    assert "Greet the world." in str(request["messages"])
    assert "AskUserQuestion" not in {tool["name"] for tool in request["tools"]}


async def test_a_model_it_does_not_have_is_no_other_one(bench: Bench) -> None:
    """R9.2"""
    script = bench.serve(DONE)
    ending = await bench.run(replace(bench.spec(), model="gpt-7"))
    assert isinstance(ending.verdict, Failed)
    assert ending.verdict.reason is FailureReason.MODEL_UNAVAILABLE
    assert script.requests == []


async def test_a_cancel_ends_it_in_a_tool_and_closes_the_call(bench: Bench) -> None:
    """R7.2"""
    bench.serve(Reply((shell("sleep 612"),)), DONE)
    ending = await bench.run(bench.spec(), lambda event: isinstance(event, ToolUse))
    assert isinstance(ending.verdict, Failed)
    assert ending.verdict.reason is FailureReason.CANCELLED
    assert b'"stopReason":"cancelled"' in b"".join(bench.printed())
    [call] = [event for event in ending.events if isinstance(event, ToolUse)]
    outcomes = [event for event in ending.events if isinstance(event, ToolResult)]
    assert [(outcome.id, outcome.is_error) for outcome in outcomes] == [(call.id, True)]


@pytest.mark.slow
async def test_a_session_is_resumed_and_a_lost_one_refused(bench: Bench) -> None:
    """R5.9, R5.10"""
    script = bench.serve(DONE)
    ending = await bench.run(bench.spec())
    session = next(event for event in ending.events if isinstance(event, Session))
    again = replace(bench.spec(), prompt="And once more.", resume=session.id)
    ending = await bench.run(again)
    assert ending.verdict == Completed("Done.")
    assert told(ending) == [Session(session.id, is_resumable=True), Text("Done.")]
    assert "Greet the world." in str(script.requests[1]["messages"])
    lost = str(uuid.uuid4())
    ending = await bench.run(replace(again, resume=lost))
    assert isinstance(ending.verdict, ResumeRefused)
    assert ending.verdict.session_id == lost


def slow(refusal: Refusal, reason: FailureReason) -> pytest.ParameterSet:
    return pytest.param(refusal, reason, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (Refusal(401, "authentication_error", "invalid x-api-key"), FailureReason.AUTH),
        slow(Refusal(429, "rate_limit_error", "slow"), FailureReason.PROVIDER_OVERLOADED),
        slow(Refusal(529, "overloaded_error", "Overloaded"), FailureReason.PROVIDER_OVERLOADED),
        slow(Refusal(402, "billing_error", "no credit"), FailureReason.QUOTA_EXHAUSTED),
        slow(
            Refusal(400, "invalid_request_error", "prompt is too long: 2 > 1"),
            FailureReason.CONTEXT_OVERFLOW,
        ),
    ],
)
async def test_a_provider_that_refuses_is_never_a_success(
    bench: Bench, refusal: Refusal, reason: FailureReason
) -> None:
    """R5.11, R5.2: error_as_success"""
    bench.serve(refusal)
    ending = await bench.run(bench.spec())
    assert isinstance(ending.verdict, Failed)
    assert ending.verdict.reason is reason, ending.verdict.error


@pytest.mark.slow
async def test_a_prompt_of_a_megabyte_arrives_whole(bench: Bench) -> None:
    """R9.2: huge_prompt"""
    script = bench.serve(DONE)
    prompt = "word " * 200_000 + "END"
    ending = await bench.run(replace(bench.spec(), prompt=prompt))
    assert ending.verdict == Completed("Done.")
    assert prompt in str(script.requests[0]["messages"])
