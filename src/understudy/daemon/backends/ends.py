"""What the end of a program means, whatever the program."""

from __future__ import annotations

from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM
from typing import Final

from understudy.core.failures import FailureReason
from understudy.daemon.backends.backend import Exit, Failed
from understudy.daemon.backends.frames import clean
from understudy.daemon.rundir import Why

KILLED: Final = frozenset(128 + number for number in (SIGHUP, SIGINT, SIGKILL, SIGTERM))
"""How a program that catches a signal, and a shell whose last command it ended, exit by custom."""


def stopped(program: str, end: Exit) -> Failed | None:
    """The failure of a program that was stopped, or never started; None if it ended by itself."""
    match end.why:
        case Why.EXITED | Why.DONE:
            return None
        case Why.MAX_TIME:
            return Failed(FailureReason.TIMEOUT, f"{program} ran for longer than it may")
        case Why.ORPHANED:
            error = f"{program} was stopped because its daemon did not come back"
            return Failed(FailureReason.RUNTIME_OFFLINE, error)
        case Why.SPOOL_FULL:
            # In a loop, as a rule: its session would only go on with it.
            error = f"{program} printed more than a run may: {end.error}"
            return Failed(FailureReason.ITERATION_LIMIT, error)
        case Why.KEEPER_SIGTERM:
            return Failed(FailureReason.RUNTIME_SHUTDOWN, f"{program} was stopped by a shutdown")
        case Why.SPAWN_FAILED:
            error = f"{program} could not be started: {end.error}"
            return Failed(FailureReason.EXECUTABLE_MISSING, error)
        case FailureReason.RUNTIME_OFFLINE:
            error = f"{program} was stopped: its machine was cut off, and another may have the task"
            return Failed(FailureReason.RUNTIME_OFFLINE, error)
        case slug:
            error = f"{program} was stopped: {end.error or slug}"
            return Failed(reason(slug, FailureReason.UNKNOWN), error)


def killed(program: str, end: Exit, stderr_tail: str) -> Failed | None:
    """The failure of a program that a signal ended before it told of any end, and not by our order:
    the OOM killer, a person, a crash of its own. That says nothing of its work."""
    if end.why != Why.EXITED or (end.signal is None and end.code not in KILLED):
        return None
    return Failed(FailureReason.AGENT_KILLED, told(program, end, stderr_tail))


def reason(slug: str, otherwise: FailureReason) -> FailureReason:
    try:
        return FailureReason(slug)
    except ValueError:
        return otherwise


def told(program: str, end: Exit, stderr_tail: str) -> str:
    """How it ended, with the last of what it said on stderr."""
    how = f"was killed by signal {end.signal}" if end.signal else f"exited with status {end.code}"
    last_words = clean(stderr_tail.strip())[-2000:]
    return f"{program} {how}: {last_words}" if last_words else f"{program} {how}"
