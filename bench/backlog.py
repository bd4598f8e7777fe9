"""Tasks that wait for an agent, as many as wanted at once: assigned by SQL, not one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from understudy.core.records import Agent
from understudy.store import agents, runtimes
from understudy.store.database import Database
from understudy.wire.board import CreateAgent

PROVIDER: Final = "bench"
IN_FLIGHT_MAX: Final = 1000
TEXT: Final = "It is done."

ISSUES: Final = """
insert into understudy.issues (id, workspace_id, number, title)
select gen_random_uuid(), $1, newest + n, 'A lifecycle'
from generate_series(1, $2::int) n,
     (select coalesce(max(number), 0) as newest from understudy.issues where workspace_id = $1) i
"""
TASKS: Final = """
select count(*) from understudy.agents a
join understudy.issues i on i.workspace_id = a.workspace_id
cross join lateral understudy.enqueue_task(gen_random_uuid(), i, a, 'assign') t
where a.id = $1 and not exists (select from understudy.tasks t where t.issue_id = i.id)
"""
# Or the server would read thousands of them while it is being measured.
NO_EVENTS: Final = "set local session_replication_role = replica"
VACUUM: Final = (
    "vacuum analyze understudy.tasks, understudy.issues, understudy.comments,"
    " understudy.task_messages, understudy.events"
)
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
            async with pool.transaction() as connection:
                await connection.execute(NO_EVENTS)
                await connection.execute(ISSUES, self.agent.workspace_id, missing)
                await connection.execute(TASKS, self.agent.id)
            await pool.execute(VACUUM)

    async def runtime(self) -> UUID:
        """One that may claim, without a daemon behind it."""
        machine = runtimes.Machine(self.agent.workspace_id, "pgbench", "here", None)
        offer = runtimes.Offer(PROVIDER, PROVIDER, "here", "1", "online", None)
        (made,) = await runtimes.register(self.database, machine, [offer])
        return made.id
