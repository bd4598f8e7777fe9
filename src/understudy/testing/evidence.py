"""What is known of a simulated world at rest: by its machines, and in the database.

The machines' side is omniscient: when which agent's process was at work, on which machine, what it
was told and what became of its report. Times are seconds of virtual time, on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, TypeAlias
from uuid import UUID

from understudy.core.leases import Leases
from understudy.core.records import Task
from understudy.store.connection import Record
from understudy.store.database import Database
from understudy.testing.virtual import EPOCH

Row: TypeAlias = Mapping[str, Any]
TERMINAL: Final = {"completed", "failed", "cancelled"}
CLOSE_S: Final = 0.001
RECOVERY_S: Final = 60.0


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
    spoke_at: list[float] = field(default_factory=list)
    """When it said something that is to be told."""
    tokens: int = 0
    """What it has told of its output tokens."""
    has_finished: bool = False
    """By itself; not one that was stopped, or went down with its machine."""
    is_reported: bool = False
    """Its end is in the outbox."""
    is_acknowledged: bool = False
    """Its report was answered, one way or the other."""
    is_forgotten: bool = False
    """Its machine lost what it knew of it: its disk, or what it had not synced of its spool."""
    offered: str | None = None
    """The session that it was to continue."""
    has_refused: bool = False
    """To continue it: that is no end, another one begins afresh in its place (R5.10)."""
    is_afresh: bool = False
    """In place of one that has refused."""
    earlier: Run | None = None
    """The one before it, for the same task."""

    @property
    def began_at(self) -> float:
        return self.spans[0][0]

    @property
    def ended_at(self) -> float:
        return self.spans[-1][1]

    @property
    def has_concluded(self) -> bool:
        return self.has_finished or self.has_refused

    def goes_on(self, now: float) -> None:
        self.spans.append((now, math.inf))

    def stands_still(self, now: float) -> None:
        if self.spans and self.spans[-1][1] == math.inf:
            self.spans[-1] = (self.spans[-1][0], now)

    def worked_s(self, begins: float, ends: float) -> float:
        """In this time."""
        return sum(max(0.0, min(end, ends) - max(begin, begins)) for begin, end in self.spans)

    def line(self) -> Iterator[Run]:
        """All that ran for this task, the newest first."""
        run: Run | None = self
        while run is not None:
            yield run
            run = run.earlier


@dataclass(frozen=True)
class Happened:
    """An event, with its time in seconds of the world."""

    at: float
    kind: str
    task_id: UUID | None
    body: dict[str, Any]
    workspace_id: UUID | None = None


@dataclass(frozen=True)
class Explained:
    """What somebody was told who asked why a task is where it is; `said` is None for no answer."""

    asked_at: float
    answered_at: float
    task_id: UUID
    said: dict[str, Any] | None


@dataclass(frozen=True)
class Told:
    """What a reader of events heard, and what there was to hear."""

    heard: Sequence[int]
    written: Sequence[int]


@dataclass
class Registering:
    """A registration as a node carried it out, with the tasks it named and their tokens."""

    came_at: float
    named: frozenset[tuple[UUID, UUID | None]]
    ended_at: float = math.inf


@dataclass
class Fenced:
    """A daemon is told that a task whose agent has spoken is not its own."""

    machine: str
    task_id: UUID
    at: float
    until: float = math.inf
    """The daemon's end."""


@dataclass(frozen=True)
class LeftOver:
    """What a machine still has when all is done."""

    machine: str
    processes: Sequence[str] = ()
    locked: Sequence[str] = ()
    runs: Sequence[str] = ()
    slots: Sequence[str] = ()
    reports: Sequence[str] = ()
    connections: Sequence[str] = ()
    """Those beyond what it needs."""


@dataclass
class Machines:
    """What the world saw on its machines' side, by machine."""

    runs: dict[UUID, Run] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    tokens: list[tuple[UUID, UUID, str]] = field(default_factory=list)
    """Those that claims were handed over with: token, task, machine."""
    heard: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """When a node answered a sign of life of the machine, and from when it counts."""
    registering: dict[str, list[Registering]] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    """Of a machine that booted from a copy of another's disk: whom it takes itself for."""
    wiped: dict[str, list[float]] = field(default_factory=dict)
    """When it lost its disk, and all that it knew."""
    fenced: list[Fenced] = field(default_factory=list)
    let_go: dict[tuple[str, UUID], float] = field(default_factory=dict)
    """When it dropped a task from its disk, for whatever reason."""
    promises: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """What it was told of its trust window: when it heard so, and until when (R4.11)."""
    reruns: list[tuple[float, float]] = field(default_factory=list)
    """When somebody ran something again, from the question to the answer."""
    closing: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """When its daemon was about to end, and took nothing more."""
    replacing: list[UUID] = field(default_factory=list)
    """Tasks that were asked for in place of what their agent had on the issue."""
    posted: list[str] = field(default_factory=list)
    """Comments whose writers were told that they are written, by id."""
    explained: list[Explained] = field(default_factory=list)
    told: dict[str, Told] = field(default_factory=dict)
    """By reader."""
    broken_answers: list[str] = field(default_factory=list)
    """Those of status 500."""
    surprises: list[str] = field(default_factory=list)
    """Logged exceptions that nothing in this world was to cause."""
    workspaces: dict[str, UUID] = field(default_factory=dict)
    """That which its daemon works for."""
    polling: set[str] = field(default_factory=set)
    """Those that nothing can be pushed to: they ask, every 10 s at least."""
    shown: list[tuple[UUID, UUID]] = field(default_factory=list)
    """To whose person what was shown: the workspace, and the issue or task."""
    pried: list[tuple[str, int]] = field(default_factory=list)
    """Requests for what is another workspace's, and the status of the answer."""
    left_over: list[LeftOver] = field(default_factory=list)
    disturbed_at: float = 0.0
    """When the last fault was over."""

    @property
    def calm_at(self) -> float:
        """By then whoever was down is up again, too."""
        return self.disturbed_at + RECOVERY_S


@dataclass(frozen=True)
class Evidence:
    machines: Machines
    limits: dict[UUID, int]
    leases: Leases
    events: list[Happened]
    tasks: Mapping[UUID, Row]
    comments: Sequence[Row] = ()
    messages: Mapping[UUID, list[int]] = field(default_factory=dict)
    usage: Mapping[UUID, int] = field(default_factory=dict)
    agents: Mapping[UUID, Row] = field(default_factory=dict)
    machine_of: Mapping[UUID, str] = field(default_factory=dict)
    """By runtime."""
    issues: Sequence[Row] = ()
    calls: Sequence[Row] = ()
    workspace_of: Mapping[UUID, UUID] = field(default_factory=dict)
    """By the id of anything; a workspace's own is its own."""
    runtimes: Sequence[Row] = ()
    retired_at: Mapping[str, float] = field(default_factory=dict)
    """Since when which session is on record as one that was refused."""

    def are_apart(self, *ids: UUID) -> bool:
        """Whether they are of more than one workspace."""
        return len({self.workspace_of[each] for each in ids if each in self.workspace_of}) > 1

    def ended_at(self, task: Row) -> float:
        return seconds(task["completed_at"]) if task["completed_at"] else math.inf

    def silent_s(self, machine: str, at: float) -> float:
        """For how long no node had heard a machine."""
        heard = self.machines.heard.get(machine, [])
        return at - max((since for answered_at, since in heard if answered_at <= at), default=0.0)

    def silence_s(self, machine: str, begins: float, ends: float) -> float:
        """The longest one in this time."""
        heard = [since for _, since in self.machines.heard.get(machine, [])]
        before = max((since for since in heard if since <= begins), default=0.0)
        times = [before, *sorted(since for since in heard if begins < since <= ends), ends]
        return max(after - before for before, after in pairwise(times))

    def is_known_as(self, machine: str, name: str) -> bool:
        """To the server, which tells a machine from its copy by what they say alone."""
        return self.machines.copies.get(machine, machine) == name

    def is_two(self, machine: str) -> bool:
        """Each of both speaks for what the other works at, before that one can know of it."""
        return machine in self.machines.copies or machine in self.machines.copies.values()

    def is_disowned(self, run: Run) -> bool:
        """Its machine is two, and the other one has said that it has no such run."""
        row = self.tasks[run.task.id]
        is_given_up = row["move"] in {"orphan", "cancel"} or row["failure_reason"] == "keeper_lost"
        return is_given_up and self.is_two(run.machine)

    def takes_work(self, machine: str, at: float) -> bool:
        return not any(a <= at <= b for a, b in self.machines.closing.get(machine, []))

    def children(self, task_id: UUID) -> Iterator[Row]:
        """Further attempts; a rerun is none."""
        for row in self.tasks.values():
            if row["parent_task_id"] == task_id and row["attempt"] > 1:
                yield row

    def heirs(self, task_id: UUID) -> Iterator[Row]:
        """The further attempts, one behind the other."""
        for row in self.children(task_id):
            yield row
            yield from self.heirs(row["id"])

    def place(self, event: Happened) -> str:
        """The machine of a claimed task; empty where it has none."""
        runtime_id = event.body["runtime_id"]
        return self.machine_of.get(UUID(runtime_id), "") if runtime_id else ""

    def moves(self) -> Iterator[Happened]:
        return (event for event in self.events if "move" in event.body)


def seconds(moment: Any) -> float:  # noqa: ANN401  # A datetime of a row.
    elapsed: float = (moment - EPOCH).total_seconds()
    return elapsed


async def gather(
    database: Database, machines: Machines, limits: dict[UUID, int], leases: Leases
) -> Evidence:
    fetch = database.pool.fetch
    events = await fetch("select * from understudy.events order by id")
    tasks = await fetch("select * from understudy.tasks order by created_at, id")
    comments = await fetch("select * from understudy.comments order by created_at, id")
    said = await fetch(
        "select task_id, array_agg(seq order by seq) as seqs"
        " from understudy.task_messages group by 1"
    )
    spent = await fetch(
        "select task_id, sum(output_tokens)::int as n from understudy.usage group by 1"
    )
    agents = await fetch("select * from understudy.agents order by id")
    issues = await fetch("select * from understudy.issues order by number")
    calls = await fetch("select * from understudy.calls order by created_at, comment_id")
    runtimes = await fetch("select * from understudy.runtimes order by id")
    refused = await fetch("select session_id, created_at from understudy.refused_sessions")
    owned = {r["id"]: r["workspace_id"] for r in (*tasks, *comments, *agents, *issues, *runtimes)}
    return Evidence(
        machines,
        limits,
        leases,
        [_happened(row) for row in events],
        _by_id(row.as_dict() for row in tasks),
        [row.as_dict() for row in comments],
        {row["task_id"]: row["seqs"] for row in said},
        {row["task_id"]: row["n"] for row in spent},
        _by_id(row.as_dict() for row in agents),
        {row["id"]: row["daemon_id"] for row in runtimes},
        [row.as_dict() for row in issues],
        [row.as_dict() for row in calls],
        owned | {each: each for each in owned.values()},
        [row.as_dict() for row in runtimes],
        {row["session_id"]: seconds(row["created_at"]) for row in refused},
    )


def _happened(event: Record) -> Happened:
    at, kind, task_id = seconds(event["created_at"]), event["kind"], event["task_id"]
    return Happened(at, kind, task_id, event["payload"], event["workspace_id"])


def _by_id(rows: Iterable[Row]) -> dict[UUID, Row]:
    return {row["id"]: row for row in rows}
