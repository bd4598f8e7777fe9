"""Stop a run that makes no progress (R4.10).

The server cannot tell a run that hangs from one that thinks, so it stops none that a living
daemon looks after; the daemon sees what the agent does. Its own silence alone decides: whatever
a CLI prints to show that it is alive moves no deadline.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, final

import trio

from understudy.core.failures import FailureReason
from understudy.core.limits import SILENCE_S_MIN, Limits
from understudy.core.words import span
from understudy.daemon.backends.backend import (
    Event,
    HangUp,
    Interrupt,
    Notice,
    Retry,
    Say,
    Session,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
    Unparsed,
    Usage,
)

ERROR_MAX: Final = 300


@dataclass(frozen=True)
class Stall:
    """Why a run is to be stopped, and the sentence that says what it waited for."""

    reason: FailureReason
    sentence: str

    @property
    def why(self) -> str:
        """As the keeper is told it: so the sentence is on disk with the end of the run."""
        return f"{self.reason}: {self.sentence}"


@final
class Watchdog:
    """Sees each event with its time, on trio's clock; begins paused.

    Whoever reads the events pauses it while there are more to read: what an agent did while
    nobody could read it is no silence.
    """

    def __init__(self, limits: Limits, began_at: float) -> None:
        self._limits = limits
        self._progress_at = began_at
        self._tools: dict[str, str] = {}  # Those at work, the oldest first.
        self._bill: dict[str, Usage] = {}
        self._requests = 0
        self._is_answering = False
        self._retry: Retry | None = None
        self._retries_at = self._retries_due = math.inf
        self._scope = trio.CancelScope()

    def see(self, event: Event, at: float) -> None:
        match event:
            case Text() | Thinking():
                self._answer()
            case ToolUse(id=identity, name=name):
                self._answer()
                self._tools[identity] = name
            case ToolResult(id=identity):
                self._tools.pop(identity, None)
                self._is_answering = False
            case Usage(model=model) if self._bill.get(model) != event:
                self._bill[model] = event
            case Retry():
                self._see_retry(event, at)
                return
            case Usage() | Session() | Notice() | Unparsed() | Say() | Interrupt() | HangUp():
                return
        self._progress_at = at
        self._retry, self._retries_at, self._retries_due = None, math.inf, math.inf

    def _answer(self) -> None:
        """The first words after a prompt or a tool's result: the model was asked once more."""
        self._requests += not self._is_answering
        self._is_answering = True

    def _see_retry(self, retry: Retry, at: float) -> None:
        """One that is under way may take its time; one that comes too late may not."""
        self._retry = retry
        self._retries_at = min(self._retries_at, at)
        too_late_at = self._retries_at + self._limits.retries_s
        if at < too_late_at:
            self._retries_due = max(too_late_at, at + retry.delay_s + SILENCE_S_MIN)
        else:
            self._retries_due = at

    @property
    def due(self) -> float:
        """When the run is to be stopped, should nothing come before."""
        if self._requests > self._limits.requests_max:
            return -math.inf
        patience_s = self._limits.tool_s if self._tools else self._limits.silence_s
        return min(self._progress_at + patience_s, self._retries_due)

    def stall(self, now: float) -> Stall:
        """What to say of it at `due`."""
        limits = self._limits
        if self._requests > limits.requests_max:
            sentence = (
                f"it asked its model {self._requests} times; {limits.requests_max} is the most"
            )
            return Stall(FailureReason.ITERATION_LIMIT, sentence)
        if self._retry is not None and self._retries_due <= now:
            length = span(now - self._retries_at, round)
            sentence = f"nothing but retries for {length}, the last because of"
            return _stalled(f"{sentence} {self._retry.error[:ERROR_MAX]}")
        length = span(now - self._progress_at, round)
        if self._tools:
            tool = next(iter(self._tools.values())) or "a tool"
            return _stalled(f"no progress for {length} inside {tool}, which has not returned")
        return _stalled(f"no text, no tool and no new usage for {length}: it waited for its model")

    def pause(self) -> None:
        self._scope.deadline = math.inf

    def resume(self) -> None:
        """All there is has been seen."""
        self._scope.deadline = self.due

    async def wait_stall(self) -> Stall:
        with self._scope:
            await trio.sleep_forever()
        return self.stall(trio.current_time())


def _stalled(sentence: str) -> Stall:
    return Stall(FailureReason.AGENT_STALLED, sentence)
