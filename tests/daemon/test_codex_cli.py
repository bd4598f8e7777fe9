"""The real Codex against a model of ours, with no network but loopback."""

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
from understudy.daemon.probe import find_clis
from understudy.testing import model_api
from understudy.testing.agent_clis import (
    Ending,
    Loopback,
    codex_settings,
    find_cli,
    open_loopback,
    run_cli,
)
from understudy.testing.model_api import Refusal, Reply, Script, ToolCall, serve_model

CODEX = find_cli("codex")
pytestmark = pytest.mark.skipif(CODEX is None, reason="no codex on PATH or in .clis: make clis")
BACKEND = BACKENDS["codex"]
MODEL = "gpt-5.1-codex"
RUN_S = 120
DONE = Reply((model_api.Text("Done."),))


@dataclass
class Bench:
    """A work directory, a Codex of its own and the model it talks to."""

    root: Path
    loopback: Loopback
    nursery: trio.Nursery

    @property
    def work_dir(self) -> Path:
        return self.root / "work"

    def spec(self, *settings: str) -> RunSpec:
        home = self.root / "home"
        provider = codex_settings(model_api.address(self.loopback.listener))
        return RunSpec(
            prompt="Greet the world.",
            work_dir=str(self.work_dir),
            run_dir=str(self.root / "run"),
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(home),
                "CODEX_HOME": str(home / "codex"),
                "STUB_KEY": "none",
            },
            executable=str(CODEX),
            model=MODEL,
            custom_args=(*provider, *settings),
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
    for name in ("work", "run", "home", "home/codex"):
        (tmp_path / name).mkdir()
    async with trio.open_nursery() as nursery:
        yield Bench(tmp_path, loopback, nursery)
        nursery.cancel_scope.cancel()


def shell(command: str) -> ToolCall:
    return ToolCall("exec_command", {"cmd": command}, id=f"call_{uuid.uuid4().hex}")


def told(ending: Ending) -> list[Event]:
    beside = Usage | Say | Interrupt | HangUp | Notice
    return [event for event in ending.events if not isinstance(event, beside)]


async def test_an_agent_works_and_every_step_of_it_is_told(bench: Bench) -> None:
    """R5.8, R5.11, R6.7, R9.2: the model answers for the last time when the session is known."""
    known = trio.Event()
    work = (
        model_api.Thinking("hm"),
        model_api.Text("I write it."),
        shell("printf hello > hello.txt; echo written"),
    )
    bench.serve(
        Reply(work, input_tokens=100, output_tokens=20, cache_read_tokens=7),
        Reply((model_api.Text("Done."),), input_tokens=150, output_tokens=9, held=known),
    )

    def look(event: Event) -> bool:
        if isinstance(event, Session) and event.is_resumable:
            known.set()
        return False

    ending = await bench.run(bench.spec(), look)
    assert ending.verdict == Completed("Done.")
    assert (bench.work_dir / "hello.txt").read_text() == "hello"
    session, proven, thought, text, call, outcome, last = told(ending)
    assert isinstance(session, Session)
    assert not session.is_resumable
    assert proven == replace(session, is_resumable=True)
    assert [thought, text, last] == [Thinking("hm"), Text("I write it."), Text("Done.")]
    assert isinstance(call, ToolUse)
    assert call.name == "shell"
    assert "hello.txt" in call.input["command"]
    assert outcome == ToolResult(call.id, "written\n", is_error=False)
    assert ending.bill == [Usage("codex", MODEL, 250, 29, 7, 0)]


async def test_what_it_printed_reads_the_same_again_and_says_the_same(bench: Bench) -> None:
    """R8.1"""
    bench.serve(Reply((shell("true"),)), DONE)
    spec = bench.spec()
    ending = await bench.run(spec)
    reader = BACKEND.reader(spec)
    assert [e for line in bench.printed() for e in reader.feed(line)] == ending.events


async def test_the_model_hears_instructions_and_is_offered_no_way_to_wait(bench: Bench) -> None:
    """R9.2: no question, no goal that begins another turn."""
    script = bench.serve(DONE)
    await bench.run(replace(bench.spec(), instructions="Speak like a pirate."))
    [request] = script.requests
    assert "Speak like a pirate." in str(request["input"])
    assert "Greet the world." in str(request["input"])
    tools = {tool.get("name", "") for tool in request["tools"]}
    assert "exec_command" in tools
    assert not tools & {"request_user_input", "create_goal", "update_goal"}


async def test_an_interrupt_ends_it_in_a_tool_and_closes_the_call(bench: Bench) -> None:
    """R7.2"""
    bench.serve(Reply((shell("sleep 611"),)), DONE)
    ending = await bench.run(bench.spec(), lambda event: isinstance(event, ToolUse))
    assert isinstance(ending.verdict, Failed)
    assert ending.verdict.reason is FailureReason.CANCELLED
    assert b'"status":"interrupted"' in bench.printed()[-1]
    [call] = [event for event in ending.events if isinstance(event, ToolUse)]
    [outcome] = [event for event in ending.events if isinstance(event, ToolResult)]
    assert (outcome.id, outcome.is_error) == (call.id, True)


async def test_a_session_is_resumed_and_a_lost_one_refused(bench: Bench) -> None:
    """R5.9, R5.10, R9.2: the model is passed again."""
    script = bench.serve(replace(DONE, input_tokens=1000), DONE)
    ending = await bench.run(bench.spec())
    session = ending.events[0]
    assert isinstance(session, Session)
    again = replace(bench.spec(), prompt="And once more.", resume=session.id)
    ending = await bench.run(again)
    assert ending.verdict == Completed("Done.")
    assert ending.events[0] == Session(session.id, is_resumable=True)
    assert "Greet the world." in str(script.requests[1]["input"])
    assert script.requests[1]["model"] == MODEL
    assert ending.bill[0].input_tokens == DONE.input_tokens, "of this run, not of the thread"
    for lost in (str(uuid.uuid4()), "not-a-uuid"):
        ending = await bench.run(replace(again, resume=lost))
        assert isinstance(ending.verdict, ResumeRefused)
        assert ending.verdict.session_id == lost


def slow(refusal: Refusal, reason: FailureReason) -> pytest.ParameterSet:
    return pytest.param(refusal, reason, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (Refusal(401, "invalid_api_key", "bad key"), FailureReason.AUTH),
        slow(Refusal(402, "billing", "no credit"), FailureReason.QUOTA_EXHAUSTED),
        slow(Refusal(404, "model_not_found", "no model"), FailureReason.MODEL_UNAVAILABLE),
        (Refusal(429, "rate_limit_exceeded", "slow"), FailureReason.PROVIDER_OVERLOADED),
        slow(Refusal(429, "insufficient_quota", "no credit"), FailureReason.QUOTA_EXHAUSTED),
        slow(Refusal(429, "usage_limit_reached", "limit"), FailureReason.QUOTA_EXHAUSTED),
        slow(Refusal(500, "server_error", "oops"), FailureReason.PROVIDER_OVERLOADED),
        slow(Refusal(529, "overloaded", "Overloaded"), FailureReason.PROVIDER_OVERLOADED),
        (Refusal(400, "context_length_exceeded", "too long"), FailureReason.CONTEXT_OVERFLOW),
        (Refusal(400, "invalid_request_error", "bad"), FailureReason.INVALID_REQUEST),
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


async def test_a_setting_it_does_not_know_is_the_agents_to_repair(bench: Bench) -> None:
    ending = await bench.run(bench.spec("--effrot", "high"))
    assert isinstance(ending.verdict, Failed)
    assert ending.verdict.reason is FailureReason.MISSING_CONFIG
    assert "--effrot" in ending.verdict.error


async def test_a_broken_mcp_server_is_told_and_stops_nothing(bench: Bench) -> None:
    bench.serve(DONE)
    servers = {"mcpServers": {"lab": {"command": "/nowhere/lab"}}}
    ending = await bench.run(replace(bench.spec(), mcp_config=servers))
    assert Notice("MCP server lab: failed") in ending.events
    assert ending.verdict == Completed("Done.")


@pytest.mark.slow
async def test_a_prompt_of_a_megabyte_arrives_whole(bench: Bench) -> None:
    """R9.2: huge_prompt"""
    script = bench.serve(DONE)
    prompt = "word " * 200_000 + "END"
    ending = await bench.run(replace(bench.spec(), prompt=prompt))
    assert ending.verdict == Completed("Done.")
    assert prompt in str(script.requests[0]["input"])


async def test_the_daemon_finds_it() -> None:
    """R9.4"""
    path = os.pathsep.join([str(Path(str(CODEX)).parent), os.environ["PATH"]])
    [found] = [each for each in await find_clis(path) if each.provider == "codex"]
    assert (found.executable, found.problem) == (CODEX, None)
