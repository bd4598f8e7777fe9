"""Sweeps: each one call, one transaction, a bounded number of rows (spec section 2, R4, R5.5).

A sweep that another node is at finds nothing to do. What it returns has been committed.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from understudy.core.leases import Leases
from understudy.core.records import Runtime, Task
from understudy.store.database import Database, read_all
from understudy.store.events import record

BATCH_MAX: Final = 100
EVENTS_MAX: Final = 200
SPARED_S: Final = 60.0
"""A push to the same process may be under way for as long as its registration may take."""


async def recover(
    database: Database,
    workspace_id: UUID,
    runtime_id: UUID,
    *,
    kept: list[UUID],
    same_process: bool,
    at: datetime | None = None,
) -> list[Task]:
    """Fail what an earlier process of the daemon left in flight, but for `kept` (R6.1, R6.2).

    `at`: when the one that speaks registered; what was dispatched since then is not meant.
    """
    rows = await database.pool.fetch(
        "select * from understudy.recover_runtime($1, $2, $3, $4, $5, $6)",
        workspace_id,
        runtime_id,
        kept,
        timedelta(seconds=SPARED_S if same_process else 0.0),
        at,
        database.dice.random(),
    )
    return read_all(rows, Task)


async def lose(database: Database, leases: Leases) -> list[Task]:
    """In flight on a runtime that is offline past its grace (R4.2)."""
    return await _swept(
        database,
        "lose_tasks",
        timedelta(seconds=leases.takeover_grace_s),
        timedelta(seconds=leases.alone_grace_s),
        BATCH_MAX,
        database.dice.random(),
    )


async def time_out(database: Database, leases: Leases) -> list[Task]:
    """The wall clocks of R4.10, and cancellations that nobody confirmed (R7.1)."""
    return await _swept(
        database,
        "time_out_tasks",
        timedelta(seconds=leases.dispatched_max_s),
        timedelta(seconds=leases.running_max_s),
        timedelta(seconds=leases.takeover_grace_s),
        timedelta(seconds=leases.cancel_unconfirmed_s),
        BATCH_MAX,
        database.dice.random(),
    )


async def expire(database: Database, leases: Leases) -> list[Task]:
    return await _swept(database, "expire_tasks", timedelta(seconds=leases.queued_max_s), BATCH_MAX)


async def promote(database: Database) -> list[Task]:
    """Deferred tasks that are due, into the queue."""
    return await _swept(database, "promote_tasks", BATCH_MAX)


async def next_due_in(database: Database) -> float | None:
    """Seconds until the next deferred task is due, by the database's clock."""
    found: float | None = await database.pool.fetchval(
        "select extract(epoch from min(fire_at) - understudy.now())::float8"
        " from understudy.tasks where status = 'deferred' and fire_at > understudy.now()"
    )
    return found


async def judge(database: Database, node_id: UUID, leases: Leases) -> list[Runtime]:
    """Take the runtimes of dead nodes off, if nobody has heard them in time (R4.4)."""
    return await _tell_machines(
        database,
        "stale_sweep",
        "select * from understudy.judge_runtimes($1, $2, $3)",
        node_id,
        timedelta(seconds=leases.offline_after_s),
        BATCH_MAX,
    )


async def retire(database: Database, leases: Leases) -> list[Runtime]:
    """Remove runtimes that nobody needs any more (R4.9)."""
    return await _tell_machines(
        database,
        "retired",
        "select * from understudy.retire_runtimes($1, $2)",
        timedelta(seconds=leases.retire_after_s),
        BATCH_MAX,
    )


async def prune(database: Database, leases: Leases) -> int:
    """Forget the oldest events and transcripts; how many rows went."""
    count: int = await database.pool.fetchval(
        "select understudy.prune_history($1, $2)",
        timedelta(seconds=leases.history_kept_s),
        EVENTS_MAX,
    )
    return count


async def _swept(database: Database, function: str, *arguments: object) -> list[Task]:
    places = ", ".join(f"${n}" for n in range(1, 1 + len(arguments)))
    return read_all(
        await database.pool.fetch(f"select * from understudy.{function}({places})", *arguments),  # noqa: S608
        Task,
    )


async def _tell_machines(
    database: Database, action: str, statement: str, *arguments: object
) -> list[Runtime]:
    """One `daemon:register` event for each workspace touched, in the same transaction (R2.4)."""
    async with database.pool.transaction() as connection:
        touched = read_all(await connection.fetch(statement, *arguments), Runtime)
        for workspace_id in sorted({row.workspace_id for row in touched}):
            ids = [str(row.id) for row in touched if row.workspace_id == workspace_id]
            await record(
                connection, workspace_id, "daemon:register", {"action": action, "runtime_ids": ids}
            )
    return touched
