"""What is known of a simulated world at rest: by its machines, and in the database.

The machines' side is omniscient: when which agent's process was at work, on which machine, what it
was told and what became of its report. Times are seconds of virtual time, on both sides.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final
from uuid import UUID

from understudy.core.leases import Leases
from understudy.core.records import Task
from understudy.store.connection import Record
from understudy.store.database import Database
from understudy.testing.virtual import EPOCH

TERMINAL: Final = {"completed", "failed", "cancelled"}


@dataclass
class Run:
    """One agent's process. `reason` is what it fails with; None for one that succeeds.

    `spans` are the times in which it was at work: it stands still while its machine sleeps.
    """

    task: Task
    machine: str
    output: str
    reason: str | None = None
    retry_after_s: float | None = None
    brief: str = ""
    spans: list[tuple[float, float]] = field(default_factory=list)
    messages: int = 0
    tokens: int = 0
    """What it has told of its output tokens."""
    has_finished: bool = False
    """By itself; not one that was stopped, or went down with its machine."""
    is_acknowledged: bool = False
    """Its report was answered, one way or the other."""
    is_forgotten: bool = False
    """Its machine lost its disk: what it did is known to nobody."""
    loose_at: float = math.inf
    """From then on nobody minds it: its daemon is dead past the trust window, or deaf."""

    @property
    def began_at(self) -> float:
        return self.spans[0][0]

    @property
    def ended_at(self) -> float:
        return self.spans[-1][1]

    def goes_on(self, now: float) -> None:
        self.spans.append((now, math.inf))

    def stands_still(self, now: float) -> None:
        if self.spans and self.spans[-1][1] == math.inf:
            self.spans[-1] = (self.spans[-1][0], now)

    def minded(self) -> Iterator[tuple[float, float]]:
        for begins, ends in self.spans:
            if begins < self.loose_at:
                yield begins, min(ends, self.loose_at)


@dataclass(frozen=True)
class Happened:
    """An event, with its time in seconds of the world."""

    at: float
    kind: str
    task_id: UUID | None
    body: dict[str, Any]


@dataclass
class Machines:
    """What the world saw on its machines' side, by machine."""

    runs: dict[UUID, Run] = field(default_factory=dict)
    heard: dict[str, list[float]] = field(default_factory=dict)
    """When a sign of life of the machine was answered by a node."""
    registered: dict[str, list[float]] = field(default_factory=dict)
    """When it sent a registration."""
    let_go: dict[tuple[str, UUID], float] = field(default_factory=dict)
    """When it dropped a task from its disk, for whatever reason."""
    promises: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """What it was told of its trust window: when it heard so, and until when (R4.11)."""
    reruns: list[tuple[float, float]] = field(default_factory=list)
    """When somebody ran something again, from the question to the answer."""


@dataclass(frozen=True)
class Evidence:
    machines: Machines
    limits: dict[UUID, int]
    leases: Leases
    events: list[Happened]
    tasks: dict[UUID, Record]
    comments: list[Record]
    messages: dict[UUID, list[int]]
    usage: dict[UUID, int]
    agents: dict[UUID, Record]
    machine_of: dict[UUID, str]
    """By runtime."""
    stuck: list[int]
    """Issues that are in progress and have no active task, by number."""

    def ended_at(self, task: Record) -> float:
        return seconds(task["completed_at"])

    def silent_s(self, machine: str, at: float) -> float:
        """For how long no node had heard a machine."""
        return at - last_of(self.machines.heard.get(machine, []), at)

    def silence_s(self, machine: str, begins: float, ends: float) -> float:
        """The longest one in this time."""
        heard = self.machines.heard.get(machine, [])
        times = [last_of(heard, begins), *(at for at in heard if begins < at <= ends), ends]
        return max(after - before for before, after in pairwise(times))

    def heirs(self, task_id: UUID) -> Iterator[Record]:
        """The further attempts, one behind the other."""
        for row in self.tasks.values():
            if row["parent_task_id"] == task_id and row["attempt"] > 1:
                yield row
                yield from self.heirs(row["id"])


def last_of(times: list[float], before: float) -> float:
    found = bisect_right(times, before)
    return times[found - 1] if found else 0.0


def seconds(moment: Any) -> float:  # noqa: ANN401  # A datetime of a row.
    elapsed: float = (moment - EPOCH).total_seconds()
    return elapsed


async def gather(
    database: Database, machines: Machines, limits: dict[UUID, int], leases: Leases
) -> Evidence:
    fetch = database.pool.fetch
    events = await fetch("select * from understudy.events order by id")
    tasks = await fetch("select * from understudy.tasks order by created_at, id")
    said = await fetch(
        "select task_id, array_agg(seq order by seq) as seqs"
        " from understudy.task_messages group by 1"
    )
    spent = await fetch(
        "select task_id, sum(output_tokens)::int as n from understudy.usage group by 1"
    )
    stuck = await fetch(
        "select i.number from understudy.issues i where i.status = 'in_progress'"
        " and not exists (select from understudy.tasks t"
        " where t.issue_id = i.id and t.completed_at is null)"
    )
    return Evidence(
        machines,
        limits,
        leases,
        [Happened(seconds(e["created_at"]), e["kind"], e["task_id"], e["payload"]) for e in events],
        {row["id"]: row for row in tasks},
        await fetch("select * from understudy.comments order by created_at, id"),
        {row["task_id"]: row["seqs"] for row in said},
        {row["task_id"]: row["n"] for row in spent},
        {row["id"]: row for row in await fetch("select * from understudy.agents order by id")},
        {r["id"]: r["daemon_id"] for r in await fetch("select * from understudy.runtimes")},
        [row["number"] for row in stuck],
    )
