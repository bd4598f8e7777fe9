"""What must be true whatever happens, checked from outside.

The auditor knows nothing of tokens, leases or actors. It writes down what machines did and were
told, and compares it with what the database says at the end (`evidence.py`, the three `laws_of_*`).
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import final
from uuid import UUID

import trio

from understudy.core.leases import Leases
from understudy.store.database import Database
from understudy.testing import laws_of_calls, laws_of_runs, laws_of_tasks
from understudy.testing.evidence import Machines, Run, gather


@final
@dataclass
class Auditor:
    log: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    machines: Machines = field(default_factory=Machines)
    tokens: dict[UUID, str] = field(default_factory=dict)

    @property
    def runs(self) -> dict[UUID, Run]:
        return self.machines.runs

    def violated(self, sentence: str) -> None:
        self.violations.append(sentence)

    def note(self, line: str) -> None:
        self.log.append(f"{trio.current_time():9.3f} {line}")

    def claimed(self, machine: str, token: UUID, task_id: UUID) -> None:
        """R3.4: no token is given twice."""
        self.note(f"{machine} got {task_id}")
        if token in self.tokens:
            self.violations.append(f"{task_id} on {machine} has the token of {self.tokens[token]}")
        self.tokens[token] = f"{task_id} on {machine}"

    def began(self, run: Run) -> None:
        """An agent starts to work; for one task that happens once."""
        self.note(f"{run.machine} began {run.task.id}")
        if run.task.id in self.runs:
            self.violations.append(f"{run.task.id} is executed by {run.machine} and was before")
        self.runs[run.task.id] = run
        run.goes_on(trio.current_time())

    def acknowledged(self, task_id: UUID) -> None:
        """The daemon has forgotten its report."""
        if (run := self.runs.get(task_id)) is not None:
            self.note(f"the end of {task_id} on {run.machine} is acknowledged")
            run.is_acknowledged = True

    def let_go(self, machine: str, task_id: UUID) -> None:
        self.machines.let_go[machine, task_id] = trio.current_time()

    def heard(self, machine: str, at: float) -> None:
        insort(self.machines.heard.setdefault(machine, []), at)

    def promised(self, machine: str, until: float) -> None:
        now = trio.current_time()
        self.machines.promises.setdefault(machine, []).append((now, until))

    def registers(self, machine: str, at: float) -> None:
        insort(self.machines.registered.setdefault(machine, []), at)

    async def examine(self, database: Database, limits: dict[UUID, int], leases: Leases) -> None:
        """Everything has come to rest: compare."""
        evidence = await gather(database, self.machines, limits, leases)
        self.log += [f"{e.at:9.3f} {e.kind} {e.task_id} {e.body}" for e in evidence.events]
        active = [row for row in evidence.tasks.values() if not row["completed_at"]]
        self.violations += [f"{row['id']} is still {row['status']}" for row in active]
        if not active:
            self.violations += laws_of_tasks.broken(evidence)
            self.violations += laws_of_runs.broken(evidence)
            self.violations += laws_of_calls.broken(evidence)

    def check_stream(self, name: str, heard: list[int], written: list[int]) -> None:
        """A reader hears each event once and in order, over all its reconnections."""
        if heard != written:
            missed, twice = set(written) - set(heard), len(heard) - len(set(heard))
            self.violations.append(
                f"{name}: missed {sorted(missed)}, {twice} twice, or out of order"
            )

    def digest(self) -> str:
        """Of everything that happened: the same for the same seed."""
        return blake2b("\n".join(self.log).encode(), digest_size=8).hexdigest()
