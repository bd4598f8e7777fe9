"""The life of a task: every status, every move, who makes it and what it needs (spec section 2).

A task is one attempt of one agent at one trigger. It is born `queued` (or `deferred`, when it has
to wait for its time), is claimed by a runtime, starts, and ends once. A retry or a rerun is a new
row that names its parent; a row never leaves a terminal status, but for a result that comes after
the server gave the run up (R6.5). So the whole life fits into one table of moves, and a move is a
compare-and-set: it names the statuses it leaves and, where a daemon makes it, the claim token.
Whoever comes too late finds no row and is told so.

                      claim              start              complete
    queued ─────────────────▶ dispatched ─────▶ running ─────────────▶ completed
      ▲  ◀──────── requeue ──────┘                │
      │ promote        │ fail, orphan, lose, time_out
    deferred           └───────────▶ failed ◀─────┘          cancel: from all active ones
                                       └──── complete_late ────▶ completed

The same table stands in `schema.sql` as the function `understudy.is_move`, made by `guard_sql()`
below: PostgreSQL refuses an update that is not in it, whoever sends it. A test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Status(StrEnum):
    DEFERRED = "deferred"
    QUEUED = "queued"
    DISPATCHED = "dispatched"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Move(StrEnum):
    ENQUEUE = "enqueue"
    DEFER = "defer"
    PROMOTE = "promote"
    CLAIM = "claim"
    REQUEUE = "requeue"
    START = "start"
    COMPLETE = "complete"
    COMPLETE_LATE = "complete_late"
    FAIL = "fail"
    ORPHAN = "orphan"
    LOSE = "lose"
    TIME_OUT = "time_out"
    EXPIRE = "expire"
    CANCEL = "cancel"


class IllegalMove(Exception):
    """`IllegalMove: start in completed`: a defect of ours, never a consequence of input."""


S, M = Status, Move

IN_FLIGHT: Final = frozenset({S.DISPATCHED, S.RUNNING})
ACTIVE: Final = IN_FLIGHT | {S.DEFERRED, S.QUEUED}
TERMINAL: Final = frozenset(Status) - ACTIVE


@dataclass(frozen=True)
class Rule:
    """One row of the table. `leaves` is empty for the moves that make a row."""

    leaves: frozenset[Status]
    enters: Status
    maker: str
    guard: str = ""


MOVES: Final[dict[Move, Rule]] = {
    M.ENQUEUE: Rule(
        frozenset(),
        S.QUEUED,
        "assign, comment, mention, rerun, schedule",
        "owners exist; none pending",
    ),
    M.DEFER: Rule(frozenset(), S.DEFERRED, "a retry with back-off, a schedule", "fire_at is set"),
    M.PROMOTE: Rule(
        frozenset({S.DEFERRED}),
        S.QUEUED,
        "the runtime's actor, a sweep",
        "fire_at <= now; none pending",
    ),
    M.CLAIM: Rule(
        frozenset({S.QUEUED}), S.DISPATCHED, "the runtime", "limits of agent and issue hold"
    ),
    M.REQUEUE: Rule(
        frozenset({S.DISPATCHED}), S.QUEUED, "the live runtime's own actor", "claim expired"
    ),
    M.START: Rule(
        frozenset({S.DISPATCHED}), S.RUNNING, "the daemon", "token matches, claim not expired"
    ),
    M.COMPLETE: Rule(frozenset({S.RUNNING}), S.COMPLETED, "the daemon", "token matches"),
    M.COMPLETE_LATE: Rule(
        frozenset({S.FAILED}),
        S.COMPLETED,
        "the daemon",
        "token matches; given up for its silence; no successor has started (R6.5)",
    ),
    M.FAIL: Rule(IN_FLIGHT, S.FAILED, "the daemon", "token matches"),
    M.ORPHAN: Rule(
        IN_FLIGHT, S.FAILED, "recovery at registration", "not in the daemon's inventory"
    ),
    M.LOSE: Rule(IN_FLIGHT, S.FAILED, "a sweep", "runtime offline past its grace"),
    M.TIME_OUT: Rule(IN_FLIGHT, S.FAILED, "a sweep", "R4.10"),
    M.EXPIRE: Rule(frozenset({S.QUEUED}), S.FAILED, "a sweep", "queued for more than 2 h"),
    M.CANCEL: Rule(ACTIVE, S.CANCELLED, "a person, a deletion", "two phases, R7.1"),
}

EVENT_KIND: Final[dict[Status, str]] = {
    S.DEFERRED: "task:deferred",
    S.QUEUED: "task:queued",
    S.DISPATCHED: "task:dispatch",
    S.RUNNING: "task:running",
    S.COMPLETED: "task:completed",
    S.FAILED: "task:failed",
    S.CANCELLED: "task:cancelled",
}


def move(status: Status | None, by: Move) -> Status:
    """The status that `by` leads to from `status` (None: there is no row yet)."""
    rule = MOVES[by]
    if status is None and not rule.leaves:
        return rule.enters
    if status not in rule.leaves:
        raise IllegalMove(f"{by} in {status or 'nothing'}")
    return rule.enters


def guard_sql() -> str:
    """The body of `understudy.is_move(made_by, leaves, enters)`, as `schema.sql` must have it."""
    rows = [
        f"('{by}', '{leaves}', '{rule.enters}')"
        for by, rule in MOVES.items()
        for leaves in sorted(map(str, rule.leaves)) or [""]
    ]
    return ",\n    ".join(rows)


def moves_markdown() -> str:
    """The table of `docs/lifecycle.md`."""
    rows = [
        f"| {by} | {_listed(rule.leaves)} → {rule.enters} | {rule.maker} | {rule.guard} |"
        for by, rule in MOVES.items()
    ]
    return "\n".join(["| move | from → to | who | guard |", "| --- | --- | --- | --- |", *rows])


def moves_diagram() -> str:
    """The same as a state diagram, one arrow for each move and status."""
    arrows = [
        f"    {leaves} --> {rule.enters}: {by}"
        for by, rule in MOVES.items()
        for leaves in _in_order(rule.leaves) or ["[*]"]
    ]
    return "\n".join(["stateDiagram-v2", *arrows])


def _listed(statuses: frozenset[Status]) -> str:
    return ", ".join(_in_order(statuses)) or "nothing"


def _in_order(statuses: frozenset[Status]) -> list[str]:
    return [str(status) for status in Status if status in statuses]
