"""What Codex's app-server prints, and what is to be said to it. Measured on 0.169.0."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, final

from understudy.core.failures import FailureReason
from understudy.daemon.backends import codex_items, ends, frames, rpc
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
    Usage,
    Verdict,
    sums,
)
from understudy.daemon.backends.codex_failures import classify
from understudy.daemon.backends.frames import Frame

PROVIDER: Final = "codex"
FULL_PERCENT: Final = 100
TRIES: Final = re.compile(r"(\d+)/(\d+)")

# Nothing is asked under `approvalPolicy: never`; should it be, an agent must not wait for ever.
GRANTS: Final[Mapping[str, dict[str, Any]]] = {
    "item/commandExecution/requestApproval": {"decision": "accept"},
    "item/fileChange/requestApproval": {"decision": "accept"},
    "item/tool/requestUserInput": {"answers": {}},
    "mcpServer/elicitation/request": {"action": "decline"},
    "execCommandApproval": {"decision": "approved"},
    "applyPatchApproval": {"decision": "approved"},
}


@final
class CodexReader:
    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._model = spec.model or "unknown"
        self._session: Session | None = None
        self._items = codex_items.Items()
        self._spent: list[Usage] = []
        self._turn_id = ""
        self._turn: Frame | None = None  # As it ended.
        self._error: Frame | None = None  # The last one that was told, or that refused a request.
        self._refusal: Frame | None = None  # Of the thread.
        self._resets_at: float | None = None
        self._heard = 0

    def feed(self, line: bytes) -> list[Event]:
        if not line.strip():
            return []
        heard = rpc.decode(line)
        if heard is None:
            return [frames.unparsed(line)]
        self._heard += 1
        match heard:
            case rpc.Answer(id="thread", error=None, result=result):
                return self._begin(result)
            case rpc.Answer(id="turn", error=None, result=result):
                return self._underway(result.frame("turn").text("id"))
            case rpc.Answer(id="initialize" | "thread" | "turn" as asked, error=Frame() as error):
                return self._refused(asked, error)
            case rpc.Answer():
                return []
            case rpc.Call(id=None):
                return self._told(heard.method, heard.params)
            case rpc.Call():
                return [Say(_answer(heard))]

    def finish(self, end: Exit, stderr_tail: str) -> Verdict:
        if self._turn and self._turn.text("status") == "completed":
            return Completed(self._items.answer)
        if refused := self._resume_refused():
            return refused
        if stopped := ends.stopped("codex", end):
            return stopped
        if self._turn and self._turn.text("status") == "interrupted":
            return Failed(FailureReason.CANCELLED, "codex was interrupted")
        told = ends.told("codex", end, stderr_tail)
        if self._error and (self._turn or self._refusal):
            return classify(self._error, told, self._resets_at)
        if killed := ends.killed("codex", end, stderr_tail):
            return killed
        if self._heard:
            return Failed(FailureReason.NO_RESULT, f"no result: {told}")
        return classify(Frame({"message": told}), told, None)

    def usage(self) -> list[Usage]:
        return list(sums(self._spent).values())

    def _begin(self, result: Frame) -> list[Event]:
        """The thread is there: ask for the turn, unless it is not the one that was asked for."""
        thread = result.frame("thread")
        self._model = result.text("model") or self._model
        resume = self._spec.resume
        self._session = Session(thread.text("id"), is_resumable=thread.text("id") == resume)
        if resume and not self._session.is_resumable:
            return [self._session, HangUp()]
        text = {"type": "text", "text": frames.encodable(self._spec.prompt)}
        turn = {"threadId": self._session.id, "input": [text]}
        return [self._session, Say(rpc.request("turn", "turn/start", turn))]

    def _underway(self, turn_id: str) -> list[Event]:
        self._turn_id = turn_id
        asked = {"threadId": self._session.id if self._session else "", "turnId": turn_id}
        return [Interrupt(rpc.request("interrupt", "turn/interrupt", asked))]

    def _refused(self, asked: str, error: Frame) -> list[Event]:
        self._refusal = self._error = error
        if asked == "thread" and self._spec.resume:
            return [HangUp()]
        return [Notice(error.text("message")), HangUp()]

    def _told(self, method: str, params: Frame) -> list[Event]:
        if method == "thread/tokenUsage/updated":
            return self._spend(params)
        if method == "account/rateLimits/updated":
            return self._note_limits(params.frame("rateLimits"))
        if method == "mcpServer/startupStatus/updated":
            return _mcp_notice(params)
        if self._is_anothers(params):
            return []
        match method:
            case "item/started" | "item/completed":
                told = self._items.told(params.frame("item"), is_over=method == "item/completed")
                return [*self._proven(params), *told]
            case "turn/completed":
                return self._end(params.frame("turn"))
            case "error":
                return self._failed(params.frame("error"), will_retry=params.flag("willRetry"))
            case "warning":
                return [Notice(params.text("message"))]
            case _:
                return []

    def _is_anothers(self, params: Frame) -> bool:
        """A subagent has a thread of its own, whose turns end like the run's."""
        thread_id = params.text("threadId")
        return bool(thread_id and self._session and thread_id != self._session.id)

    def _proven(self, params: Frame) -> list[Event]:
        """What the model has begun is in the rollout: now there is something to resume (R9.2)."""
        known = self._session
        if known is None or known.is_resumable:
            return []
        if params.frame("item").text("type") in codex_items.OURS:
            return []
        self._session = Session(known.id, is_resumable=True)
        return [self._session]

    def _spend(self, params: Frame) -> list[Event]:
        """A subagent's too; not that of an earlier turn, which a resumed thread tells again."""
        if not self._is_anothers(params) and params.text("turnId") != self._turn_id:
            return []
        last = params.frame("tokenUsage").frame("last")
        cached, written = last.number("cachedInputTokens"), last.number("cacheWriteInputTokens")
        usage = Usage(
            provider=PROVIDER,
            model=self._model,
            input_tokens=max(0, last.number("inputTokens") - cached - written),
            output_tokens=last.number("outputTokens"),
            cache_read_tokens=cached,
            cache_write_tokens=written,
        )
        self._spent = [*sums([*self._spent, usage]).values()]
        return [total for total in self._spent if total.model == usage.model]

    def _note_limits(self, limits: Frame) -> list[Event]:
        windows = [limits.frame("primary"), limits.frame("secondary")]
        full = [window for window in windows if window.number("usedPercent") >= FULL_PERCENT]
        resets = [at for window in full if (at := window.number_or_none("resetsAt"))]
        self._resets_at = max(resets, default=None)
        return []

    def _failed(self, error: Frame, *, will_retry: bool) -> list[Event]:
        message = error.text("message")
        if not will_retry:
            self._error = error
            return [Notice(message)]
        tries = TRIES.search(message)
        attempt, attempts_max = (int(tries[1]), int(tries[2])) if tries else (0, 0)
        return [Retry(attempt, attempts_max, 0.0, message)]

    def _end(self, turn: Frame) -> list[Event]:
        """The first result is the boundary (R9.3)."""
        if self._turn:
            return []
        self._turn = turn
        if turn.frame("error").fields:
            self._error = turn.frame("error")
        # An interrupted tool is reported no more.
        left = [ToolResult(id_, "interrupted", is_error=True) for id_ in self._items.open]
        return [*left, HangUp()]

    def _resume_refused(self) -> ResumeRefused | None:
        resume = self._spec.resume
        if resume is None or self._items.tools:
            return None
        if self._session and self._session.id != resume:
            error = f"codex answered with another session, {self._session.id}"
            return ResumeRefused(resume, error)
        if self._session is None and self._refusal:
            return ResumeRefused(resume, self._refusal.text("message"))
        return None


def _answer(call: rpc.Call) -> str:
    if call.method == "item/permissions/requestApproval":
        return rpc.granted(call, {"permissions": call.params.frame("permissions").fields})
    grant = GRANTS.get(call.method)
    return rpc.refused(call) if grant is None else rpc.granted(call, grant)


def _mcp_notice(params: Frame) -> list[Event]:
    if params.text("status") != "failed":
        return []
    return [Notice(f"MCP server {params.text('name')}: failed")]
