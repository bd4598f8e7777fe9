"""What a simulated fleet's history says: counted from the ledger and from the rows of its tasks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec

from understudy.core.records import Agent
from understudy.core.struct import Struct
from understudy.store.database import Database
from understudy.testing.fleet_fortune import DAY_S
from understudy.testing.fleet_ledger import MINUTE_S, Ledger
from understudy.testing.virtual import EPOCH

if TYPE_CHECKING:
    from understudy.testing.fleet import Fleet

STATEMENTS_SHOWN: Final = 12

TASKS: Final = """
    select t.id, t.agent_id, t.issue_id, t.runtime_id, t.status, t.failure_reason, t.attempt,
           t.parent_task_id, t.retry_task_id, t.created_at, t.fire_at, t.dispatched_at,
           t.started_at, t.completed_at, r.daemon_id
    from understudy.tasks t left join understudy.runtimes r on r.id = t.runtime_id
    order by t.created_at, t.id
"""


class Times(Struct):
    """Seconds."""

    count: int
    p50: float
    p90: float
    p99: float
    max: float


class Statements(Struct):
    total: int
    per_s: float
    peak_minute_per_s: float
    per_task: float
    by_name: dict[str, int]


class Busiest(Struct):
    """`part`: of its slots, or of its limit, on average; of a machine while it is on."""

    name: str
    part: float


class Answer(Struct):
    machines: int
    nodes: int
    workspaces: int
    days: float
    seed: int
    tasks: int
    """Attempts: each retry is one."""
    asked: int
    ends: dict[str, int]
    """By status, and reason where it failed; what had not ended by its status alone."""
    queueing_s: dict[str, Times]
    """From when it could be claimed until it was dispatched, and until it was started."""
    recovery_s: dict[str, Times]
    """By kind of fault: until the run that it struck went on, or its next attempt had started."""
    unrecovered: dict[str, int]
    """Runs that a fault ended, without a next attempt."""
    faults: dict[str, int]
    statements: Statements
    busiest_agent: Busiest
    agent_at_limit: Busiest
    """The part of the time in which it could not take more."""
    busiest_machine: Busiest
    machines_busy: float
    """Of all slots of the machines that were on."""
    laws: list[str]
    violations: list[str]
    coarse: list[str]
    wall_s: float = 0.0
    times_real: float = 0.0
    tasks_per_wall_s: float = 0.0

    def in_seconds(self, wall_s: float) -> Answer:
        return msgspec.structs.replace(
            self,
            wall_s=round(wall_s, 1),
            times_real=round(self.days * DAY_S / wall_s),
            tasks_per_wall_s=round(self.tasks / wall_s, 1),
        )


class Row(Struct):
    """A task, with its times in seconds of the virtual clock."""

    id: UUID
    agent_id: UUID
    issue_id: UUID | None
    daemon_id: str | None
    status: str
    failure_reason: str | None
    attempt: int
    parent_task_id: UUID | None
    retry_task_id: UUID | None
    claimable_at: float
    dispatched_at: float | None
    started_at: float | None
    completed_at: float | None


LAWS: Final = (
    "an attempt is started once",
    "an agent's limit holds at every instant",
    "an agent has one run on an issue at a time",
    "no two processes are at work on one task",
    "attempts of a task count up, and each has one successor at most",
    "what a machine was told of its run's end stays so",
)


async def answer(
    fleet: Fleet, ledger: Ledger, database: Database, agents: Sequence[Agent], coarse: Sequence[str]
) -> Answer:
    rows = [_row(each.as_dict()) for each in await database.pool.fetch(TASKS)]
    seconds = fleet.days * DAY_S
    count = max(1, len(rows))
    total = sum(ledger.minutes.values())
    usage = _Usage(fleet, rows, agents, ledger)
    return Answer(
        machines=fleet.machines,
        nodes=fleet.nodes,
        workspaces=fleet.tenants,
        days=fleet.days,
        seed=fleet.seed,
        tasks=len(rows),
        asked=sum(row.parent_task_id is None for row in rows),
        ends=_counted(_end(row) for row in rows),
        queueing_s={
            "dispatched": times(
                row.dispatched_at - row.claimable_at for row in rows if row.dispatched_at
            ),
            "started": times(row.started_at - row.claimable_at for row in rows if row.started_at),
        },
        recovery_s={kind: times(found) for kind, found in sorted(ledger.recoveries_s.items())},
        unrecovered=_unrecovered(ledger, rows),
        faults=dict(sorted(ledger.faults.items())),
        statements=Statements(
            total=total,
            per_s=round(total / seconds, 2),
            peak_minute_per_s=round(max(ledger.minutes.values(), default=0) / MINUTE_S, 1),
            per_task=round(total / count, 1),
            by_name=dict(ledger.statements_by_name().most_common(STATEMENTS_SHOWN)),
        ),
        busiest_agent=usage.busiest_agent(),
        agent_at_limit=usage.agent_at_limit(),
        busiest_machine=usage.busiest_machine(),
        machines_busy=usage.machines_busy(),
        laws=list(LAWS),
        violations=[*ledger.violations, *broken_laws(rows, agents, ledger)],
        coarse=list(coarse),
    )


def times(found: Iterable[float]) -> Times:
    ordered = sorted(found)
    if not ordered:
        return Times(count=0, p50=0.0, p90=0.0, p99=0.0, max=0.0)

    def at(part: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(part * len(ordered)))], 3)

    return Times(
        count=len(ordered), p50=at(0.5), p90=at(0.9), p99=at(0.99), max=round(ordered[-1], 3)
    )


def _row(found: dict[str, Any]) -> Row:
    def at(name: str) -> float | None:
        moment = found[name]
        return None if moment is None else (moment - EPOCH).total_seconds()

    created_at, fire_at = at("created_at"), at("fire_at")
    assert created_at is not None
    kept = {name: found[name] for name in Row.__struct_fields__ if not name.endswith("_at")}
    return Row(
        **kept,
        claimable_at=max(created_at, fire_at or created_at),
        dispatched_at=at("dispatched_at"),
        started_at=at("started_at"),
        completed_at=at("completed_at"),
    )


def _end(row: Row) -> str:
    return f"{row.status}: {row.failure_reason}" if row.failure_reason else row.status


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _unrecovered(ledger: Ledger, rows: Sequence[Row]) -> dict[str, int]:
    hurt = ledger.never_recovered()
    lost = (row for row in rows if row.status == "failed" and row.retry_task_id is None)
    return _counted(hurt[row.id] for row in lost if row.id in hurt)


# Laws


def broken_laws(rows: Sequence[Row], agents: Sequence[Agent], ledger: Ledger) -> list[str]:
    limits = {agent.id: agent.max_concurrent_tasks for agent in agents}
    held = [row for row in rows if row.dispatched_at is not None]
    return list(
        chain(
            _above_limit(held, limits),
            _side_by_side(held),
            _attempts(rows),
            _other_ends(rows, ledger),
        )
    )


def spans(rows: Iterable[Row]) -> list[tuple[float, int, Row]]:
    """When runs begin (+1) and end (-1), in order; who ends makes room for who begins then."""
    marks = list[tuple[float, int, Row]]()
    for row in rows:
        assert row.dispatched_at is not None
        marks.append((row.dispatched_at, 1, row))
        if row.completed_at is not None:
            marks.append((row.completed_at, -1, row))
    return sorted(marks, key=lambda mark: mark[:2])


def _above_limit(rows: Iterable[Row], limits: dict[UUID, int]) -> Iterable[str]:
    at_work: Counter[UUID] = Counter()
    for at, step, row in spans(rows):
        at_work[row.agent_id] += step
        if at_work[row.agent_id] > limits[row.agent_id]:
            yield f"{at:.0f} s: agent {row.agent_id} has {at_work[row.agent_id]} runs"


def _side_by_side(rows: Iterable[Row]) -> Iterable[str]:
    at_work: Counter[tuple[UUID, UUID | None]] = Counter()
    for at, step, row in spans(rows):
        place = row.agent_id, row.issue_id
        at_work[place] += step
        if at_work[place] > 1:
            yield f"{at:.0f} s: agent {row.agent_id} has two runs on issue {row.issue_id}"


def _attempts(rows: Sequence[Row]) -> Iterable[str]:
    known = {row.id: row for row in rows}
    parents: Counter[UUID] = Counter()
    for row in rows:
        if row.parent_task_id is None or row.attempt == 1:  # A person's rerun begins anew.
            continue
        parents[row.parent_task_id] += 1
        if parents[row.parent_task_id] > 1:
            yield f"{row.parent_task_id} has two successors"
        if row.attempt != known[row.parent_task_id].attempt + 1:
            yield f"{row.id} is attempt {row.attempt} after {known[row.parent_task_id].attempt}"


def _other_ends(rows: Sequence[Row], ledger: Ledger) -> Iterable[str]:
    for row in rows:
        told = ledger.acknowledged.get(row.id)
        if told == "completed" and row.status != told:
            yield f"{row.id} is {row.status}, its machine was told {told}"


# Who is busy


class _Usage:
    def __init__(
        self, fleet: Fleet, rows: Sequence[Row], agents: Sequence[Agent], ledger: Ledger
    ) -> None:
        self._agents = {agent.id: agent for agent in agents}
        self._seconds, self._slots, self._on_s = fleet.days * DAY_S, fleet.slots, ledger.on_s
        self._of_agents: defaultdict[UUID, float] = defaultdict(float)
        self._of_machines: defaultdict[str, float] = defaultdict(float)
        self._at_limit: defaultdict[UUID, float] = defaultdict(float)
        held = [row for row in rows if row.dispatched_at is not None]
        for row in held:
            assert row.dispatched_at is not None
            took_s = (row.completed_at or fleet.ends_s) - row.dispatched_at
            self._of_agents[row.agent_id] += took_s
            self._of_machines[row.daemon_id or ""] += took_s
        self._find_limits(held, fleet.ends_s)

    def _find_limits(self, held: Sequence[Row], ends_s: float) -> None:
        at_work: Counter[UUID] = Counter()
        full_since: dict[UUID, float] = {}
        for at, step, row in spans(held):
            agent_id = row.agent_id
            at_work[agent_id] += step
            if at_work[agent_id] >= self._agents[agent_id].max_concurrent_tasks:
                full_since.setdefault(agent_id, at)
            elif agent_id in full_since:
                self._at_limit[agent_id] += at - full_since.pop(agent_id)
        for agent_id, at in full_since.items():
            self._at_limit[agent_id] += ends_s - at

    def busiest_agent(self) -> Busiest:
        return _busiest(
            {
                agent.name: self._of_agents[agent.id] / self._seconds / agent.max_concurrent_tasks
                for agent in self._agents.values()
            }
        )

    def agent_at_limit(self) -> Busiest:
        return _busiest(
            {
                agent.name: self._at_limit[agent.id] / self._seconds
                for agent in self._agents.values()
            }
        )

    def busiest_machine(self) -> Busiest:
        """One that was on for less than an hour says nothing."""
        return _busiest(
            {
                name: busy_s / self._slots / self._on_s[name]
                for name, busy_s in self._of_machines.items()
                if self._on_s[name] >= self._seconds / 24
            }
        )

    def machines_busy(self) -> float:
        on_s = sum(self._on_s.values())
        busy_s = sum(self._of_machines.values())
        return round(busy_s / on_s / self._slots, 3) if on_s else 0.0


def _busiest(parts: dict[str, float]) -> Busiest:
    name = max(sorted(parts), key=lambda each: parts[each], default="")
    return Busiest(name=name, part=round(parts.get(name, 0.0), 3))
