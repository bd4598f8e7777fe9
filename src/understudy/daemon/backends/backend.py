"""What every agent CLI looks like to the daemon: a launch, a reader of its lines, a verdict.

Nothing here does I/O. A `Backend` says how to start a program (`Launch`); the keeper starts it with
stdout in a file; a `Reader` turns the lines of that file into events and, at the end, a `Verdict`.

A reader holds neither clock nor dice: a daemon that re-adopts a run makes a new reader, feeds it
the file from the start and gets the same events in the same order, so that the n-th message of a
run is the same message whoever reads it.

Some programs hold a dialogue: what to write depends on what was read. Their readers yield that too
(`Say`, `Interrupt`, `HangUp`), from the lines alone; `daemon/dialogue.py` sees to it that nothing
is said twice, however often it is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias

from understudy.core.failures import FailureReason


class Unlaunchable(Exception):
    """The run cannot be started as its agent is set up; `reason` is what to report."""

    def __init__(self, reason: FailureReason, error: str) -> None:
        super().__init__(error)
        self.reason = reason


@dataclass(frozen=True)
class RunSpec:
    """Everything a backend may know of a run. Plain values: it survives `msgspec.json`."""

    prompt: str
    work_dir: str
    run_dir: str  # Private to the run (0700), absolute; what a backend writes down goes here.
    env: dict[str, str]  # Complete: the program inherits nothing else.
    executable: str = ""  # As `probe` found it; the built-in backends need none.
    model: str | None = None
    instructions: str = ""
    custom_args: tuple[str, ...] = ()
    mcp_config: dict[str, Any] | None = None  # None leaves the CLI its own; {} gives it none.
    resume: str | None = None
    session_id: str | None = None  # For a new session; a new UUID for each launch.
    requests_max: int | None = None


@dataclass(frozen=True)
class Launch:
    """How to start the program in the run's work directory, in the keeper's terms."""

    argv: tuple[str, ...]
    env: dict[str, str]
    stdin: str
    close_stdin: bool  # False: until a line matches `done`, or the reader hangs up.
    done: str | None  # A regular expression: the line of stdout that ends the run (R9.3).
    interrupt: str | None = None  # Written to stdin; without one a signal has to do.
    files: dict[str, str] = field(default_factory=dict)  # Absolute paths, to be written 0600.


@dataclass(frozen=True)
class Session:
    """Comes again, with the same id, when the session has become resumable (R9.2)."""

    id: str
    is_resumable: bool


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Thinking:
    text: str


@dataclass(frozen=True)
class ToolUse:
    id: str
    name: str
    input: dict[str, Any]


@dataclass(frozen=True)
class ToolResult:
    id: str
    output: str
    is_error: bool


@dataclass(frozen=True)
class Usage:
    """What a model has cost in this run so far; a later one for the same model replaces it."""

    provider: str
    model: str
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return replace(
            self,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cache_read_tokens=self.cache_read_tokens + other.cache_read_tokens,
            cache_write_tokens=self.cache_write_tokens + other.cache_write_tokens,
        )


def sums(usages: Iterable[Usage]) -> dict[str, Usage]:
    """Tokens by model."""
    total: dict[str, Usage] = {}
    for usage in usages:
        known = total.get(usage.model)
        total[usage.model] = known + usage if known else usage
    return total


@dataclass(frozen=True)
class Retry:
    """The CLI asks its provider again: alive, but no progress."""

    attempt: int
    attempts_max: int
    delay_s: float
    error: str


@dataclass(frozen=True)
class Notice:
    """The CLI about itself, not the agent's words."""

    text: str


@dataclass(frozen=True)
class Unparsed:
    """A line that is no frame the backend knows; `text` is its beginning, `size` all its bytes."""

    text: str
    size: int


@dataclass(frozen=True)
class Say:
    """To be written to stdin; the n-th of a run is its frame n."""

    frame: str


@dataclass(frozen=True)
class Interrupt:
    """The frame to stop the program with from now on."""

    frame: str


@dataclass(frozen=True)
class HangUp:
    """The run is at its end: nothing more will be said (R9.3)."""


Event: TypeAlias = (
    Session
    | Text
    | Thinking
    | ToolUse
    | ToolResult
    | Usage
    | Retry
    | Notice
    | Unparsed
    | Say
    | Interrupt
    | HangUp
)


@dataclass(frozen=True)
class Exit:
    """How the program ended, from the keeper's record.

    `why` is the keeper's (`rundir.Why`) or, where the daemon had it stopped, the slug of a failure
    reason: `cancelled`, `agent_stalled`, or `keeper_lost` where there is no record.
    """

    why: str
    code: int | None = None
    signal: int | None = None
    error: str = ""  # Why it could not be started, or what it was waiting for when it was stopped.
    left: tuple[str, ...] = ()  # What not even SIGKILL ended.


@dataclass(frozen=True)
class Completed:
    output: str


@dataclass(frozen=True)
class Failed:
    """`is_session_safe` is false where this run showed that its session is spoilt, whatever the
    reason's policy says; `resets_at` (epoch seconds) is when an exhausted quota returns, and
    `retry_after_s` how long an overloaded provider asks to be left alone (R5.2)."""

    reason: FailureReason
    error: str
    is_session_safe: bool = True
    resets_at: float | None = None
    retry_after_s: float | None = None


@dataclass(frozen=True)
class ResumeRefused:
    """The session is not there any more and no tool has run: start fresh, once (R5.10)."""

    session_id: str
    error: str


Verdict: TypeAlias = Completed | Failed | ResumeRefused


class Reader(Protocol):
    def feed(self, line: bytes) -> list[Event]:
        """Read one line of stdout, without its newline.

        After the exit, what follows the last newline is fed as a last line: a torn frame does not
        parse, a program's unfinished line is text.
        """
        ...

    def finish(self, end: Exit, stderr_tail: str) -> Verdict:
        """Decide, once, from everything read. A result that came before a stop counts."""
        ...

    def usage(self) -> list[Usage]:
        """The bill: final totals by model. To be reported once, after `finish` (R6.7)."""
        ...


class Backend(Protocol):
    @property
    def provider(self) -> str: ...

    def launch(self, spec: RunSpec) -> Launch:
        """Raises `Unlaunchable`."""
        ...

    def reader(self, spec: RunSpec) -> Reader: ...
