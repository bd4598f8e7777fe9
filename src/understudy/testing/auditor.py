"""What must be true whatever happens, checked from outside.

The auditor knows nothing of tokens, leases or actors. It writes down what machines did and were
told, and compares it with what the database says at the end (`evidence.py`, `laws_of_*.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final, final
from uuid import UUID

import trio

from understudy.core.leases import Leases
from understudy.daemon.workshop import Workshop
from understudy.store.database import Database
from understudy.testing import (
    laws_of_calls,
    laws_of_explanations,
    laws_of_limits,
    laws_of_patience,
    laws_of_rest,
    laws_of_retries,
    laws_of_runs,
    laws_of_sessions,
    laws_of_tasks,
    laws_of_words,
    laws_of_workspaces,
)
from understudy.testing.evidence import Evidence, Explained, Machines, Run, Told, gather
from understudy.testing.laws import enacted_in
from understudy.testing.streams import MemoryStream

BOOKS: Final = (
    laws_of_tasks, laws_of_retries, laws_of_limits, laws_of_patience, laws_of_runs,
    laws_of_sessions, laws_of_calls, laws_of_words, laws_of_workspaces, laws_of_explanations,
    laws_of_rest,
)  # fmt: skip
ALL: Final = [law for book in BOOKS for law in enacted_in(book)]
LAWS: Final = {law.name: f"{law.sentence} ({law.rules})" for law in ALL}
"""For people: each law by name, with its sentence and the rules it stands for."""


def broken(evidence: Evidence) -> Iterator[str]:
    for law in ALL:
        yield from law.broken_by(evidence)


@final
@dataclass
class Auditor:
    log: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    machines: Machines = field(default_factory=Machines)
    shops: dict[str, Workshop] = field(default_factory=dict)
    """What the runs of each machine's newest daemon share."""

    connections: dict[str, list[MemoryStream]] = field(default_factory=dict)
    """All that a machine's daemons, or a node's lives, ever had."""
    leased_until: dict[str, float] = field(default_factory=dict)
    """By a node's life: the end of the lease that the database has on record."""
    is_over: bool = False
    """The world is being taken down: whoever crashes now is no news."""

    @property
    def runs(self) -> dict[UUID, Run]:
        return self.machines.runs

    def violated(self, sentence: str) -> None:
        self.violations.append(sentence)

    def note(self, line: str) -> None:
        self.log.append(f"{trio.current_time():9.3f} {line}")

    def claimed(self, machine: str, token: UUID, task_id: UUID) -> None:
        self.note(f"{machine} got {task_id}")
        self.machines.tokens.append((token, task_id, machine))

    def began(self, run: Run) -> None:
        """An agent starts to work."""
        self.note(f"{run.machine} began {run.task.id}")
        run.earlier = self.runs.get(run.task.id)
        self.runs[run.task.id] = run
        run.goes_on(trio.current_time())

    def reported(self, task_id: UUID) -> None:
        """Its end is in the outbox."""
        if (run := self.runs.get(task_id)) is not None:
            run.is_reported = True

    def acknowledged(self, task_id: UUID) -> None:
        """The daemon has forgotten its report."""
        if (run := self.runs.get(task_id)) is not None:
            self.note(f"the end of {task_id} on {run.machine} is acknowledged")
            run.is_acknowledged = True

    def lost_memory(self, machine: str, *, of_all: bool, but: Collection[str] = ()) -> None:
        """Its disk is gone; or its power was, and what it had not synced: all of the runs `but`
        those, whose end was on record."""
        for task_id, run in self.runs.items():
            if run.machine == machine and not run.is_acknowledged:
                run.is_forgotten |= of_all or not (run.is_reported or str(task_id) in but)
        if of_all:
            self.machines.wiped.setdefault(machine, []).append(trio.current_time())

    def let_go(self, machine: str, task_id: UUID) -> None:
        self.machines.let_go[machine, task_id] = trio.current_time()

    def heard(self, machine: str, since: float) -> None:
        now = trio.current_time()
        self.machines.heard.setdefault(machine, []).append((now, since))

    def promised(self, machine: str, until: float) -> None:
        now = trio.current_time()
        self.machines.promises.setdefault(machine, []).append((now, until))

    def disturbed(self, for_s: float = 0.0) -> None:
        """Something has gone wrong until now, or will have for so long."""
        until = trio.current_time() + for_s
        self.machines.disturbed_at = max(self.machines.disturbed_at, until)

    def surprised(self, logger: str, sentence: str) -> None:
        """An exception was logged that nothing in this world was to cause."""
        if self.is_over:
            return
        is_answer = logger == "understudy.http.errors"
        told = self.machines.broken_answers if is_answer else self.machines.surprises
        told.append(f"{sentence} at {trio.current_time():.3f}")

    def explained(self, task_id: str, asked_at: float, said: dict[str, Any] | None) -> None:
        told = Explained(asked_at, trio.current_time(), UUID(task_id), said)
        self.machines.explained.append(told)

    def check_stream(self, name: str, heard: list[int], written: list[int]) -> None:
        self.machines.told[name] = Told([*heard], written)

    async def examine(self, database: Database, limits: dict[UUID, int], leases: Leases) -> None:
        """Everything has come to rest: compare."""
        evidence = await gather(database, self.machines, limits, leases)
        self.log += [f"{e.at:9.3f} {e.kind} {e.task_id} {e.body}" for e in evidence.events]
        self.violations += broken(evidence)

    def digest(self) -> str:
        """Of everything that happened: the same for the same seed."""
        return blake2b("\n".join(self.log).encode(), digest_size=8).hexdigest()
