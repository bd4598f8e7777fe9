"""What Claude Code prints, frame by frame. Measured on 2.1.197."""

from __future__ import annotations

from typing import Final, final

from understudy.core.failures import FailureReason
from understudy.daemon.backends import ends, frames
from understudy.daemon.backends.backend import (
    Completed,
    Event,
    Exit,
    Failed,
    Notice,
    ResumeRefused,
    Retry,
    Session,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
    Usage,
    Verdict,
    sums,
)
from understudy.daemon.backends.claude_failures import Witness, classify
from understudy.daemon.backends.frames import Frame

PROVIDER: Final = "claude"
SYNTHETIC: Final = "<synthetic>"  # The "model" of what Claude Code says in a model's place.
# Frames that say nothing to a reader of the run.
QUIET: Final = {"stream_event", "control_response", "keep_alive"}


@final
class ClaudeReader:
    def __init__(self, resume: str | None) -> None:
        self._resume = resume
        self._session: Session | None = None
        self._bill = Bill()
        self._result: Frame | None = None
        self._answer = ""  # The last text that a model wrote.
        self._synthetic = ""  # The last text that the CLI wrote in a model's place,
        self._error = ""  # and the error it named with it.
        self._resets_at: float | None = None
        self._frames = 0
        self._tools = 0

    def feed(self, line: bytes) -> list[Event]:
        if not line.strip():
            return []
        frame = frames.decode(line)
        kind = frame.text("type") if frame else ""
        if frame is None or not kind:
            return [frames.unparsed(line)]
        self._frames += 1
        match kind:
            case "system":
                return self._system(frame)
            case "assistant":
                return [*self._proven(frame), *self._assistant(frame)]
            case "user":
                return [*self._proven(frame), *_tool_results(frame)]
            case "result":
                return self._end(frame)
            case "rate_limit_event":
                return self._rate_limit(frame.frame("rate_limit_info"))
            case _:
                return [] if kind in QUIET else [frames.unparsed(line)]

    def finish(self, end: Exit, stderr_tail: str) -> Verdict:
        witness = self._witness(frames.clean(stderr_tail))
        refused = self._refused(witness)
        if self._result and self._is_success(self._result):
            return refused or Completed(self._result.text("result"))
        if stopped := ends.stopped("claude", end):
            return stopped
        if refused:
            return refused
        killed = ends.killed("claude", end, stderr_tail)
        if killed and not self._result:
            return killed
        told = ends.told("claude", end, stderr_tail)
        if self._frames and not self._result:
            return Failed(FailureReason.NO_RESULT, f"no result: {told}")
        return classify(witness, told, self._resets_at)

    def usage(self) -> list[Usage]:
        return self._bill.totals()

    def _system(self, frame: Frame) -> list[Event]:
        match frame.text("subtype"):
            case "init":
                broken = [
                    f"MCP server {server.text('name')}: {server.text('status')}"
                    for server in frame.frames("mcp_servers")
                    if server.text("status") == "failed"
                ]
                id_ = frame.text("session_id")
                return [
                    *self._revealed(id_, is_resumable=id_ == self._resume),
                    *map(Notice, broken),
                ]
            case "api_retry":
                return [_retry(frame)]
            case "compact_boundary":
                return [Notice("the conversation was compacted")]
            case _:
                return []

    def _proven(self, frame: Frame) -> list[Event]:
        """An answer or a tool's result is in the transcript: now there is something to resume."""
        return self._revealed(frame.text("session_id"), is_resumable=True)

    def _revealed(self, id_: str, *, is_resumable: bool) -> list[Event]:
        known = self._session
        if not id_ or (known and known.id == id_ and known.is_resumable >= is_resumable):
            return []
        self._session = Session(id_, is_resumable)
        return [self._session]

    def _assistant(self, frame: Frame) -> list[Event]:
        message = frame.frame("message")
        blocks = message.frames("content")
        if message.text("model") == SYNTHETIC:
            self._error = frame.text("error") or self._error
            self._synthetic = "".join(block.text("text") for block in blocks)
            return [Notice(self._synthetic)] if self._synthetic else []
        events = [event for block in blocks if (event := _block(block))]
        for event in events:
            match event:
                case Text(text):
                    self._answer = text
                case ToolUse():
                    self._tools += 1
                case _:
                    pass
        return [*events, *self._bill.message(message)]

    def _end(self, frame: Frame) -> list[Event]:
        """The first result is the boundary; a later one can only add to the bill."""
        self._result = self._result or frame
        return [*self._bill.result(frame)]

    def _rate_limit(self, info: Frame) -> list[Event]:
        if info.text("status") != "rejected":
            return []
        self._resets_at = info.number_or_none("resetsAt")
        return [Notice(f"{info.text('rateLimitType') or 'rate'} limit reached")]

    def _is_success(self, result: Frame) -> bool:
        """R5.11. Some errors are told only as the final text: what no model wrote is no answer."""
        text = result.text("result")
        is_error_text = text.startswith("API Error") or (text and text == self._synthetic)
        return (
            result.text("subtype") == "success"
            and not result.flag("is_error")
            and result.text("terminal_reason") in {"completed", ""}
            and (text == self._answer or not is_error_text)
        )

    def _witness(self, stderr_tail: str) -> Witness:
        result = self._result or Frame({})
        said = [result.text("result"), *result.texts("errors"), "" if self._frames else stderr_tail]
        return Witness(
            error=self._error,
            status=result.number_or_none("api_error_status"),
            subtype=result.text("subtype"),
            terminal_reason=result.text("terminal_reason"),
            stop_reason=result.text("stop_reason"),
            text="\n".join(text for text in said if text),
        )

    def _refused(self, witness: Witness) -> ResumeRefused | None:
        if self._resume is None or self._tools:
            return None
        if self._session and self._session.id != self._resume:
            error = f"claude answered with another session, {self._session.id}"
            return ResumeRefused(self._resume, error)
        if self._session is None and witness.tells_no_session():
            return ResumeRefused(self._resume, witness.text)
        return None


@final
class Bill:
    """Tokens by model. A message comes in several frames, each with the whole message's usage, so
    the last one counts; the result's own totals, where they come, replace the sum."""

    def __init__(self) -> None:
        self._messages: dict[str, Usage] = {}
        self._final: list[Usage] = []

    def message(self, message: Frame) -> list[Usage]:
        usage = message.frame("usage")
        told = Usage(
            provider=PROVIDER,
            model=message.text("model"),
            input_tokens=usage.number("input_tokens"),
            output_tokens=usage.number("output_tokens"),
            cache_read_tokens=usage.number("cache_read_input_tokens"),
            cache_write_tokens=usage.number("cache_creation_input_tokens"),
        )
        id_ = message.text("id")
        if not usage.fields or self._messages.get(id_) == told:
            return []
        self._messages[id_] = told
        return [total for total in self.totals() if total.model == told.model]

    def result(self, result: Frame) -> list[Usage]:
        by_model = result.frame("modelUsage")
        totals = sums(_model_usage(name, by_model.frame(name)) for name in by_model.fields)
        self._final = list(totals.values()) or self._final
        return list(totals.values())

    def totals(self) -> list[Usage]:
        return self._final or list(sums(self._messages.values()).values())


def _model_usage(name: str, usage: Frame) -> Usage:
    return Usage(
        provider=PROVIDER,
        model=name.partition("[")[0],  # "claude-opus-4-8[1m]" costs as what messages call it.
        input_tokens=usage.number("inputTokens"),
        output_tokens=usage.number("outputTokens"),
        cache_read_tokens=usage.number("cacheReadInputTokens"),
        cache_write_tokens=usage.number("cacheCreationInputTokens"),
    )


def _block(block: Frame) -> Text | Thinking | ToolUse | ToolResult | None:
    match block.text("type"):
        case "text" if block.text("text"):
            return Text(block.text("text"))
        case "thinking" if block.text("thinking"):
            return Thinking(block.text("thinking"))
        case "tool_use" | "server_tool_use" | "mcp_tool_use":
            return ToolUse(block.text("id"), block.text("name"), block.frame("input").fields)
        case kind if kind.endswith("_tool_result"):
            return _provider_result(block)
        case _:
            return None


def _provider_result(block: Frame) -> ToolResult:
    """Of a tool that runs at the provider: it comes in the answer, in a shape for each tool."""
    content = block.frame("content")
    error = content.text("error_code")
    output = error or content.text("stdout") or _output(block)
    return ToolResult(block.text("tool_use_id"), output, bool(error) or block.flag("is_error"))


def _tool_results(frame: Frame) -> list[Event]:
    return [
        ToolResult(block.text("tool_use_id"), _output(block), block.flag("is_error"))
        for block in frame.frame("message").frames("content")
        if block.text("type") == "tool_result"
    ]


def _output(block: Frame) -> str:
    return block.text("content") or "\n".join(map(_part, block.frames("content")))


def _part(part: Frame) -> str:
    link = f"{part.text('title')} {part.text('url')}".strip()
    return part.text("text") or link or f"[{part.text('type')}]"


def _retry(frame: Frame) -> Retry:
    status = frame.number_or_none("error_status")
    error = frame.text("error") or "error"
    return Retry(
        attempt=frame.number("attempt"),
        attempts_max=frame.number("max_retries"),
        delay_s=frame.number("retry_delay_ms") / 1000,
        error=f"{error} ({status})" if status else error,
    )
