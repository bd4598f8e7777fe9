"""The real Claude Code against a model of ours, with no network but loopback."""

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
    Notice,
    ResumeRefused,
    RunSpec,
    Session,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
    Usage,
)
from understudy.daemon.backends.providers import BACKENDS
from understudy.daemon.probe import find_clis
from understudy.testing import model_api
from understudy.testing.agent_clis import Ending, Loopback, find_cli, open_loopback, run_cli
from understudy.testing.model_api import Refusal, Reply, Script, ToolCall, serve_model

CLAUDE = find_cli("claude")
pytestmark = pytest.mark.skipif(CLAUDE is None, reason="no claude on PATH or in .clis: make clis")
BACKEND = BACKENDS["claude"]
RUN_S = 120
DONE = Reply((model_api.Text("Done."),))


@dataclass
class Bench:
    """A work directory, a Claude Code of its own and the model it talks to."""

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
                "ANTHROPIC_BASE_URL": model_api.address(self.loopback.listener),
                "ANTHROPIC_API_KEY": "none",
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                "DISABLE_TELEMETRY": "1",
                "DISABLE_ERROR_REPORTING": "1",
                "CLAUDE_CODE_MAX_RETRIES": "0",
                **env,
            },
            executable=str(CLAUDE),
            model="claude-opus-4-8",
            session_id=str(uuid.uuid4()),
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

    spec = bench.spec()
    ending = await bench.run(spec, look)
    assert ending.verdict == Completed("Done.")
    assert greeting.read_text() == "hello"
    told = [event for event in ending.events if not isinstance(event, Usage)]
    call, outcome = told[4], told[5]
    assert told[:4] == [
        Session(str(spec.session_id), is_resumable=False),
        Session(str(spec.session_id), is_resumable=True),
        Thinking("hm"),
        Text("I write it."),
    ]
    assert isinstance(call, ToolUse)
    assert (call.name, call.input["content"]) == ("Write", "hello")
    assert isinstance(outcome, ToolResult)
    assert (outcome.id, outcome.is_error) == (call.id, False)
    assert told[6:] == [Text("Done.")]
    assert ending.bill == [Usage("claude", "claude-opus-4-8", 250, 29, 7, 3)]


async def test_what_it_printed_reads_the_same_again(bench: Bench) -> None:
    """R8.1"""
    bench.serve(Reply((writes(bench.work_dir / "a", "b"),)), DONE)
    spec = bench.spec()
    ending = await bench.run(spec)
    reader = BACKEND.reader(spec)
    assert [e for line in bench.printed() for e in reader.feed(line)] == ending.events


async def test_the_model_hears_instructions_and_is_offered_no_way_to_wait(bench: Bench) -> None:
    """R9.2: no question, no background shell, no alarm clock."""
    script = bench.serve(DONE)
    await bench.run(replace(bench.spec(), instructions="Speak like a pirate.", mcp_config={}))
    [request] = script.requests
    assert "Speak like a pirate." in str(request["system"])
    assert "Greet the world." in str(request["messages"])
    tools = {tool["name"]: tool["input_schema"]["properties"] for tool in request["tools"]}
    assert not tools.keys() & {"AskUserQuestion", "ExitPlanMode", "ScheduleWakeup", "CronCreate"}
    assert "command" in tools["Bash"]
    assert "run_in_background" not in tools["Bash"]


async def test_an_interrupt_ends_it_in_the_middle(bench: Bench) -> None:
    """R7.2"""
    never = trio.Event()
    bench.serve(Reply((writes(bench.work_dir / "a", "b"),)), replace(DONE, held=never))
    ending = await bench.run(bench.spec(), lambda event: isinstance(event, ToolResult))
    assert isinstance(ending.verdict, Failed)
    assert ending.verdict.reason is FailureReason.CANCELLED
    assert b'"terminal_reason":"aborted_streaming"' in bench.printed()[-1]


async def test_a_session_is_resumed_and_a_lost_one_refused(bench: Bench) -> None:
    """R5.9, R5.10"""
    script = bench.serve(DONE)
    first = bench.spec()
    await bench.run(first)
    again = replace(first, prompt="And once more.", resume=first.session_id)
    ending = await bench.run(again)
    assert ending.verdict == Completed("Done.")
    assert ending.events[0] == Session(str(first.session_id), is_resumable=True)
    assert "Greet the world." in str(script.requests[1]["messages"])
    assert script.requests[1]["model"] == first.model
    lost = str(uuid.uuid4())
    ending = await bench.run(replace(first, resume=lost))
    assert isinstance(ending.verdict, ResumeRefused)
    assert ending.verdict.session_id == lost


def slow(refusal: Refusal, reason: FailureReason) -> pytest.ParameterSet:
    return pytest.param(refusal, reason, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (Refusal(401, "authentication_error", "invalid x-api-key"), FailureReason.AUTH),
        slow(Refusal(402, "billing_error", "no credit"), FailureReason.QUOTA_EXHAUSTED),
        slow(Refusal(404, "not_found_error", "model"), FailureReason.MODEL_UNAVAILABLE),
        (Refusal(429, "rate_limit_error", "slow"), FailureReason.PROVIDER_OVERLOADED),
        slow(Refusal(500, "api_error", "oops"), FailureReason.PROVIDER_OVERLOADED),
        slow(Refusal(529, "overloaded_error", "Overloaded"), FailureReason.PROVIDER_OVERLOADED),
        (
            Refusal(400, "invalid_request_error", "prompt is too long: 2 > 1"),
            FailureReason.CONTEXT_OVERFLOW,
        ),
        (
            Refusal(400, "invalid_request_error", "all messages must have non-empty content"),
            FailureReason.INVALID_REQUEST,
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
    assert ending.verdict.reason is reason
    assert not any(isinstance(event, Text) for event in ending.events)


async def test_a_provider_that_is_not_there_is_a_network_failure(bench: Bench) -> None:
    """R5.2"""
    ending = await bench.run(bench.spec(ANTHROPIC_BASE_URL="http://127.0.0.1:1"))
    assert isinstance(ending.verdict, Failed)
    assert ending.verdict.reason is FailureReason.PROVIDER_NETWORK


async def test_a_broken_mcp_server_is_told_and_stops_nothing(bench: Bench) -> None:
    bench.serve(DONE)
    servers = {"mcpServers": {"lab": {"command": "/nowhere/lab"}}}
    ending = await bench.run(replace(bench.spec(), mcp_config=servers))
    assert Notice("MCP server lab: failed") in ending.events
    assert ending.verdict == Completed("Done.")


async def test_a_setting_it_does_not_know_is_the_agents_to_repair(bench: Bench) -> None:
    ending = await bench.run(replace(bench.spec(), custom_args=("--effrot", "high")))
    assert isinstance(ending.verdict, Failed)
    assert ending.verdict.reason is FailureReason.MISSING_CONFIG
    assert "--effrot" in ending.verdict.error


async def test_a_run_away_agent_reaches_its_limit(bench: Bench) -> None:
    """R4.10"""
    bench.serve(Reply((writes(bench.work_dir / "a", "b"),)))
    ending = await bench.run(replace(bench.spec(), requests_max=2))
    assert isinstance(ending.verdict, Failed)
    assert ending.verdict.reason is FailureReason.ITERATION_LIMIT


async def test_the_daemon_finds_it() -> None:
    """R9.4"""
    path = os.pathsep.join([str(Path(str(CLAUDE)).parent), os.environ["PATH"]])
    found = (await find_clis(path))[0]
    assert (found.provider, found.executable, found.problem) == ("claude", CLAUDE, None)
