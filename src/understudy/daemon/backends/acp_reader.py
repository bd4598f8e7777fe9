"""What an agent prints over the Agent Client Protocol, and what is to be said to it."""

from __future__ import annotations

from typing import Final, final

from understudy.core.failures import FailureReason
from understudy.daemon.backends import acp_session, acp_updates, ends, frames, rpc
from understudy.daemon.backends.acp_failures import classify, error_text, stop_failure
from understudy.daemon.backends.acp_session import NoModel, Setting
from understudy.daemon.backends.acp_updates import Updates
from understudy.daemon.backends.backend import (
    Completed,
    Event,
    Exit,
    Failed,
    HangUp,
    Interrupt,
    Notice,
    ResumeRefused,
    RunSpec,
    Say,
    Session,
    Usage,
    Verdict,
    sums,
)
from understudy.daemon.backends.frames import Frame

PROVIDER: Final = "acp"
# Never what is remembered: that would be written into the agent's settings.
GRANTS: Final = ("allow_once", "allow_always")


@final
class AcpReader:
    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._program = spec.custom_args[0] if spec.custom_args else PROVIDER
        self._session: Session | None = None
        self._settings: list[Setting] = []
        self._updates = Updates()
        self._is_prompted = False
        self._result: Frame | None = None
        self._failed: Failed | None = None  # Before or instead of a result.
        self._refused: str | None = None
        self._bill: list[Usage] = []
        self._model = spec.model or "unknown"
        self._heard = 0

    def feed(self, line: bytes) -> list[Event]:
        if not line.strip():
            return []
        heard = rpc.decode(line)
        if heard is None:
            return [frames.unparsed(line)]
        self._heard += 1
        match heard:
            case rpc.Answer(id=asked, error=None, result=result):
                return self._granted(asked, result)
            case rpc.Answer(id=asked, error=Frame() as error):
                return self._refuse(asked, error)
            case rpc.Answer():
                return []
            case rpc.Call(id=None, method="session/update", params=params):
                return self._told(params)
            case rpc.Call(id=None):
                return []
            case rpc.Call():
                return self._asked(heard)

    def finish(self, end: Exit, stderr_tail: str) -> Verdict:
        told = ends.told(self._program, end, stderr_tail)
        if self._result and not self._failed:
            failure = stop_failure(self._result, self._updates.answer())
            if failure is None:
                return Completed(self._updates.answer())
            return ends.stopped(self._program, end) or failure
        if self._refused is not None and self._spec.resume and not self._updates.tools:
            return ResumeRefused(self._spec.resume, self._refused)
        if stopped := ends.stopped(self._program, end):
            return stopped
        if self._failed:
            return self._failed
        if killed := ends.killed(self._program, end, stderr_tail):
            return killed
        if self._heard:
            return Failed(FailureReason.NO_RESULT, f"no result: {told}")
        return classify(Frame({"message": told}), told)

    def usage(self) -> list[Usage]:
        return self._bill

    def _granted(self, asked: str, result: Frame) -> list[Event]:
        match asked:
            case "initialize":
                return self._open(result)
            case "session":
                return self._begin(result)
            case "mode" | "model":
                return self._go_on()
            case "prompt":
                return self._end(result)
            case _:
                return []

    def _refuse(self, asked: str, error: Frame) -> list[Event]:
        said = error_text(error)
        match asked:
            case "session" if self._spec.resume:
                self._refused = said  # They say so in many ways, and mostly vaguely.
                return [HangUp()]
            case "mode":
                return [Notice(f"it keeps its own mode: {said}"), *self._go_on()]
            case "model":
                return self._give_up(Failed(FailureReason.MODEL_UNAVAILABLE, said))
            case "initialize" | "session" | "prompt":
                return self._give_up(classify(error, said))
            case _:
                return []

    def _give_up(self, failed: Failed) -> list[Event]:
        if self._failed or self._result:
            return []
        self._failed = failed
        return [*self._updates.end(), Notice(failed.error), HangUp()]

    def _open(self, initialized: Frame) -> list[Event]:
        asked = acp_session.opening(self._spec, initialized)
        if asked is None:
            self._refused = f"{self._program} cannot continue a session"
            return [HangUp()]
        return [Say(asked)]

    def _begin(self, offered: Frame) -> list[Event]:
        """An agent that continues a session need not repeat its id; another one is another."""
        resume = self._spec.resume
        id_ = offered.text("sessionId") or resume or ""
        self._session = Session(id_, is_resumable=id_ == resume)
        self._model = self._spec.model or acp_session.current_model(offered) or self._model
        if resume and id_ != resume:
            self._refused = f"{self._program} answered with another session, {id_}"
            return [self._session, HangUp()]
        try:
            self._settings = [*acp_session.settings(self._spec, id_, offered)]
        except NoModel:
            error = f"{self._program} takes no model from outside: name {self._spec.model} in its"
            failed = Failed(FailureReason.MISSING_CONFIG, f"{error} own settings or arguments")
            return [self._session, *self._give_up(failed)]
        return [self._session, *self._go_on()]

    def _go_on(self) -> list[Event]:
        """One request at a time: what is refused must not have been built upon."""
        if self._settings:
            return [Say(self._settings.pop(0).frame)]
        if self._is_prompted or self._session is None:
            return []
        self._is_prompted = True
        cancel = rpc.notification("session/cancel", {"sessionId": self._session.id})
        return [Interrupt(cancel), Say(acp_session.prompt(self._spec, self._session.id))]

    def _told(self, params: Frame) -> list[Event]:
        """Before the prompt it is a loaded session's past, after the result nobody's."""
        if not self._is_prompted or self._result:
            return []
        update = params.frame("update")
        is_work = update.text("sessionUpdate") in acp_updates.WORK
        return [*(self._proven() if is_work else []), *self._updates.told(update)]

    def _proven(self) -> list[Event]:
        """An agent that works has written down what it works on (R9.2)."""
        known = self._session
        if known is None or known.is_resumable:
            return []
        self._session = Session(known.id, is_resumable=True)
        return [self._session]

    def _asked(self, call: rpc.Call) -> list[Event]:
        if call.method != "session/request_permission":
            return [Say(rpc.refused(call))]
        events = self._updates.asked(call.params.frame("toolCall"))
        return [*self._proven(), *events, Say(rpc.granted(call, {"outcome": _outcome(call)}))]

    def _end(self, result: Frame) -> list[Event]:
        """The first result is the boundary (R9.3)."""
        if self._result or self._failed:
            return []
        self._result = result
        self._bill = _bill(result, self._model)
        return [*self._proven(), *self._updates.end(), *self._bill, HangUp()]


def _outcome(call: rpc.Call) -> dict[str, str]:
    options = call.params.frames("options")
    for kind in GRANTS:
        for option in options:
            if option.text("kind") == kind:
                return {"outcome": "selected", "optionId": option.text("optionId")}
    return {"outcome": "cancelled"}


def _bill(result: Frame, model: str) -> list[Usage]:
    """By model where the agent tells it so; else what the protocol has, which for some agents is
    the last request alone."""
    quota = result.frame("_meta").frame("quota")
    by_model = [
        _usage(each.frame("token_count"), each.text("model"))
        for each in quota.frames("model_usage")
    ]
    whole = result.frame("usage")
    if whole.fields and len(by_model) <= 1:
        named = by_model[0].model if by_model else model
        return [_usage(whole, named)]
    return list(sums(by_model).values())


def _usage(tokens: Frame, model: str) -> Usage:
    def number(name: str, other: str) -> int:
        return tokens.number(name) or tokens.number(other)

    return Usage(
        provider=PROVIDER,
        model=model.partition("[")[0],
        input_tokens=number("inputTokens", "input_tokens"),
        output_tokens=number("outputTokens", "output_tokens"),
        cache_read_tokens=number("cachedReadTokens", "cachedInputTokens"),
        cache_write_tokens=number("cachedWriteTokens", "cached_write_tokens"),
    )
