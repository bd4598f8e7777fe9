"""Tasks that wait for an agent, as many as wanted at once: assigned by SQL, not one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from understudy.core.records import Agent
from understudy.store import agents, runtimes
from understudy.store.database import Database
from understudy.testing.history import write_queue
from understudy.wire.board import CreateAgent

PROVIDER: Final = "bench"
IN_FLIGHT_MAX: Final = 1000
TEXT: Final = "It is done."

VACUUM: Final = (
    "vacuum analyze understudy.tasks, understudy.issues, understudy.comments,"
    " understudy.task_messages, understudy.usage, understudy.calls, understudy.events"
)
MADE: Final = "select count(*)::int from understudy.issues"
WAITING: Final = "select count(*)::int from understudy.tasks where status = 'queued'"


@dataclass(frozen=True)
class Queue:
    """The tasks of one agent."""

    database: Database
    agent: Agent

    @classmethod
    async def open(cls, database: Database, workspace_id: UUID) -> Queue:
        wanted = CreateAgent(name="Nia", provider=PROVIDER, max_concurrent_tasks=IN_FLIGHT_MAX)
        return cls(database, await agents.create(database, workspace_id, wanted))

    async def fill(self, length: int) -> None:
        """Up to so many; then bring PostgreSQL's statistics up to date, as autovacuum would."""
        pool = self.database.pool
        missing = length - await pool.fetchval(WAITING)
        if missing > 0:
            made = await pool.fetchval(MADE)
            await write_queue(self.database, [self.agent.id], tasks=missing, behind=made)
            await pool.execute(VACUUM)

    async def runtime(self) -> UUID:
        """One that may claim, without a daemon behind it."""
        machine = runtimes.Machine(self.agent.workspace_id, "pgbench", "here", None)
        offer = runtimes.Offer(PROVIDER, PROVIDER, "here", "1", "online", None)
        (made,) = (await runtimes.register(self.database, machine, [offer])).runtimes
        return made.id
