"""What is written down of a simulated fleet while it lives: statements, faults, recoveries."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Final, final
from uuid import UUID

import trio

from understudy.wire.daemon import ClaimedTask

MINUTE_S: Final = 60.0
CALLED: Final = re.compile(r"understudy\.(\w+)\s*\(")
TABLE: Final = re.compile(r"(?:from|into|update|table)\s+understudy\.(\w+)")
CLOCK: Final = "now"
VIOLATIONS_MAX: Final = 100


@final
@dataclass
class Ledger:
    began_at: float
    is_database_away: bool = False
    faults: Counter[str] = field(default_factory=Counter)
    statements: Counter[str] = field(default_factory=Counter)
    minutes: Counter[int] = field(default_factory=Counter)
    """Statements, by the minute."""
    recoveries_s: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """By kind of fault: until a run that it struck goes on, or its next attempt has started."""
    violations: list[str] = field(default_factory=list)
    started: Counter[UUID] = field(default_factory=Counter)
    acknowledged: dict[UUID, str] = field(default_factory=dict)
    """How each run ended, as its machine was told."""
    on_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """For how long a machine was on, by name."""
    _on_since: dict[str, float] = field(default_factory=dict)
    _hurt: dict[UUID, tuple[str, float]] = field(default_factory=dict)
    _alive: defaultdict[tuple[UUID | None, UUID], set[UUID]] = field(
        default_factory=lambda: defaultdict(set)
    )

    def statement(self, sql: str) -> None:
        self.statements[sql] += 1
        self.minutes[int(trio.current_time() // MINUTE_S)] += 1

    def is_on(self, machine: str) -> None:
        self._on_since.setdefault(machine, trio.current_time())

    def is_off(self, machine: str) -> None:
        if (since := self._on_since.pop(machine, None)) is not None:
            self.on_s[machine] += trio.current_time() - since

    def close(self) -> None:
        """At the end of the time that is measured."""
        for machine in list(self._on_since):
            self.is_off(machine)

    # Faults, and what it takes to recover from them

    def strike(self, kind: str) -> None:
        self.faults[kind] += 1

    def hurt(self, kind: str, task_id: UUID) -> None:
        """The first fault counts, until it is recovered from."""
        self._hurt.setdefault(task_id, (kind, trio.current_time()))

    def inherits(self, task: ClaimedTask) -> None:
        """The next attempt of what was hurt."""
        if task.parent_task_id in self._hurt:
            assert task.parent_task_id is not None
            self._hurt[task.id] = self._hurt.pop(task.parent_task_id)

    def recovered(self, task_id: UUID) -> None:
        if task_id in self._hurt:
            kind, at = self._hurt.pop(task_id)
            self.recoveries_s[kind].append(trio.current_time() - at)

    def never_recovered(self) -> dict[UUID, str]:
        """The kind of fault of each run that has not gone on since."""
        return {task_id: kind for task_id, (kind, _) in self._hurt.items()}

    # Laws

    def starts(self, task_id: UUID) -> None:
        self.started[task_id] += 1
        if self.started[task_id] > 1:
            self.violate(f"{task_id} was started {self.started[task_id]} times")

    def runs(self, task: ClaimedTask) -> None:
        """A process is at work from now on, or again."""
        alive = self._alive[task.issue_id, task.agent_id]
        if others := alive - {task.id}:
            self.violate(f"{task.id} and {min(others)} are at work at the same time")
        alive.add(task.id)

    def stands_still(self, task: ClaimedTask) -> None:
        self._alive[task.issue_id, task.agent_id].discard(task.id)

    def violate(self, sentence: str) -> None:
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(f"{trio.current_time():.0f} s: {sentence}")

    # Figures

    def statements_by_name(self) -> Counter[str]:
        named: Counter[str] = Counter()
        for sql, times in self.statements.items():
            named[name_of(sql)] += times
        return named


def name_of(sql: str) -> str:
    """The function of ours that a statement calls, or else what it does with which table."""
    words = " ".join(sql.split())
    called = [name for name in CALLED.findall(words) if name != CLOCK]
    if called:
        return str(called[0 if words.startswith("with ") else -1])  # The innermost.
    table = TABLE.search(words)
    verb = words.partition(" ")[0].lower()
    return f"{verb} {table[1]}" if table else words[:40]
