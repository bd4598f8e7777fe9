"""Any program as an agent.

The agent's `custom_args` are the program and its arguments (the first element is looked up on the
PATH of the run's environment). It is started in the work directory with the instructions and the
prompt on stdin, then end of file, and with these variables beside those of the task:

    UNDERSTUDY_MODEL             the agent's model, if it has one
    UNDERSTUDY_PRIOR_SESSION_ID  the session that an earlier run revealed, if it may be resumed

Each line of its stdout is a message, its exit status the verdict and all its text the answer.
A program that wants to say more prints JSON objects, one per line:

    {"type": "session", "id": "…", "resumable": true}
    {"type": "text", "text": "…"}            {"type": "thinking", "text": "…"}
    {"type": "tool_use", "id": "1", "name": "write", "input": {…}}
    {"type": "tool_result", "id": "1", "output": "…", "is_error": false}
    {"type": "usage", "model": "…", "input_tokens": 1, "output_tokens": 2}   added to the bill
    {"type": "result", "output": "…"}        the end: the exit status no longer matters
    {"type": "result", "is_error": true, "error": "…", "reason": "provider_overloaded",
     "retry_after_s": 120}
    {"type": "result", "is_error": true, "error": "…", "reason": "resume_refused"}

A result may bring a `session_id` and a `usage` (an object or a list) of its own; that usage is the
whole bill. Other JSON is text like any other line.

`resume_refused` is for a program that does not find the session it is to go on with, and says so
before it has used a tool: it is started once more, without one, and told that it has been at work
there before. That session is never offered again (R5.10).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final, final

from understudy.core.failures import FailureReason
from understudy.daemon.backends import ends, frames
from understudy.daemon.backends.backend import (
    Completed,
    Event,
    Exit,
    Failed,
    Launch,
    ResumeRefused,
    RunSpec,
    Session,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
    Unlaunchable,
    Usage,
    Verdict,
    sums,
)
from understudy.daemon.backends.frames import Frame

PROVIDER: Final = "command"
REFUSED: Final = "resume_refused"


@final
@dataclass(frozen=True)
class Command:
    provider: str = PROVIDER

    def launch(self, spec: RunSpec) -> Launch:
        if not spec.custom_args:
            error = "custom_args: name the program and its arguments"
            raise Unlaunchable(FailureReason.MISSING_CONFIG, error)
        return launch_program(spec.custom_args, spec)

    def reader(self, spec: RunSpec) -> CommandReader:
        program = spec.custom_args[0] if spec.custom_args else PROVIDER
        return CommandReader(program, PROVIDER, resume=spec.resume)


def launch_program(argv: tuple[str, ...], spec: RunSpec) -> Launch:
    told = [spec.instructions, spec.prompt]
    return Launch(
        argv=argv,
        env={**spec.env, **_variables(spec)},
        stdin=frames.encodable("\n\n".join(part for part in told if part)),
        close_stdin=True,
        done=frames.RESULT_LINE,
    )


def _variables(spec: RunSpec) -> dict[str, str]:
    variables = {"UNDERSTUDY_MODEL": spec.model, "UNDERSTUDY_PRIOR_SESSION_ID": spec.resume}
    return {name: value for name, value in variables.items() if value}


@final
class CommandReader:
    """`resume`: the session it was told to go on with. `must_conclude`: a program of ours proves
    its success by a result, not by its status."""

    def __init__(
        self, program: str, provider: str, *, resume: str | None, must_conclude: bool = False
    ) -> None:
        self._program = program
        self._provider = provider
        self._resume = resume
        self._must_conclude = must_conclude
        self._said = Tail()
        self._bill: dict[str, Usage] = {}
        self._tools = 0
        self._result: Frame | None = None
        self._is_torn = False

    def feed(self, line: bytes) -> list[Event]:
        if not line.strip():
            return []
        frame = frames.decode(line)
        self._is_torn = frame is None and line.lstrip().startswith(b'{"type"')
        events = self._events(frame) if frame else None
        return [self._text(frames.plain(line))] if events is None else events

    def finish(self, end: Exit, stderr_tail: str) -> Verdict:
        if self._result:
            return self._concluded(self._result)
        ended = ends.stopped(self._program, end) or ends.killed(self._program, end, stderr_tail)
        if ended:
            return ended
        told = ends.told(self._program, end, stderr_tail)
        if end.code != 0:
            return Failed(FailureReason.AGENT_ERROR, told)
        if self._is_torn or self._must_conclude:
            return Failed(FailureReason.NO_RESULT, f"no result: {told}")
        return Completed(self._said.text())

    def usage(self) -> list[Usage]:
        return list(self._bill.values())

    def _events(self, frame: Frame) -> list[Event] | None:
        """None: not one of ours, so the line is text."""
        match frame.text("type"):
            case "text":
                return [self._text(frame.text("text"))]
            case "thinking":
                return [Thinking(frame.text("text"))]
            case "session":
                return [*_session(frame)]
            case "tool_use":
                self._tools += self._result is None
                tool_input = frame.frame("input").fields
                return [ToolUse(frame.text("id"), frame.text("name"), tool_input)]
            case "tool_result":
                output = frame.text("output")
                return [ToolResult(frame.text("id"), output, frame.flag("is_error"))]
            case "usage":
                return [self._spend(frame)]
            case "result":
                return self._end(frame)
            case _:
                return None

    def _text(self, text: str) -> Text:
        self._said.add(text)
        return Text(text)

    def _spend(self, frame: Frame) -> Usage:
        usage = _usage(frame, self._provider)
        known = self._bill.get(usage.model)
        self._bill[usage.model] = known + usage if known else usage
        return self._bill[usage.model]

    def _end(self, frame: Frame) -> list[Event]:
        """The first result is the boundary; what follows it is not the run's any more."""
        if self._result:
            return []
        self._result = frame
        parts = [frame.frame("usage")] if frame.frame("usage").fields else frame.frames("usage")
        bill = sums(_usage(part, self._provider) for part in parts)
        self._bill = bill or self._bill
        return [*_session(frame), *bill.values()]

    def _concluded(self, result: Frame) -> Verdict:
        if not result.flag("is_error"):
            return Completed(_output(result) or self._said.text())
        error = result.text("error") or _output(result) or "the program reported an error"
        if result.text("reason") == REFUSED and self._resume and not self._tools:
            return ResumeRefused(self._resume, error)
        return Failed(
            ends.reason(result.text("reason"), FailureReason.AGENT_ERROR),
            error,
            retry_after_s=result.number_or_none("retry_after_s"),
        )


@final
class Tail:
    """The last lines of a text, up to the limit of one string."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque()
        self._size = 0
        self._is_cut = False

    def add(self, line: str) -> None:
        self._lines.append(line)
        self._size += len(line) + 1
        while self._size > frames.TEXT_MAX and len(self._lines) > 1:
            self._size -= len(self._lines.popleft()) + 1
            self._is_cut = True

    def text(self) -> str:
        return "\n".join(["…", *self._lines] if self._is_cut else self._lines)


def _output(result: Frame) -> str:
    return result.text("output") or result.text("result")


def _session(frame: Frame) -> list[Session]:
    id_ = frame.text("session_id") or frame.text("id")
    return [Session(id_, frame.flag("resumable"))] if id_ else []


def _usage(frame: Frame, provider: str) -> Usage:
    return Usage(
        provider=frame.text("provider") or provider,
        model=frame.text("model") or "unknown",
        input_tokens=frame.number("input_tokens"),
        output_tokens=frame.number("output_tokens"),
        cache_read_tokens=frame.number("cache_read_tokens"),
        cache_write_tokens=frame.number("cache_write_tokens"),
    )
