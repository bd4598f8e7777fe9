"""Tasks: every move as one round trip, with an outcome that says what happened (R2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final, Literal
from uuid import UUID

import msgspec

from understudy.core.failures import FailureReason
from understudy.core.records import Message, Task, Usage
from understudy.store.connection import Record
from understudy.store.database import Database, read, read_all

SHOWN_MAX: Final = 100
PENDING_MAX: Final = 200


class Outcome(StrEnum):
    """`schema.sql`, section 7, says when each is meant."""

    MOVED = "moved"
    REQUESTED = "requested"
    REPLAYED = "replayed"
    KEPT = "kept"
    FENCED = "fenced"
    ENDED = "ended"
    NOT_FOUND = "not_found"


@dataclass(frozen=True)
class Moved:
    """`task` is the newest row, whatever the outcome; None where there is none."""

    outcome: Outcome
    task: Task | None


Fence = Literal["none", "lease", "full"]
"""In what a claimant names tokens: nothing; its moves; all that it tells (R3.6, R3.13)."""


@dataclass(frozen=True)
class Failure:
    """`retry_after_s`: what the provider asks for. `refused_session`: dead for ever (R5.10)."""

    reason: FailureReason
    error: str
    retry_after_s: float | None = None
    refused_session: str | None = None


@dataclass(frozen=True)
class Holder:
    """Who acts on a task: the tenant, the task, and the claim it is held under (R3.13)."""

    workspace_id: UUID
    task_id: UUID
    claim_token: UUID | None


def moved(row: Record | None) -> Moved:
    """What a function of `schema.sql`, section 7, has answered."""
    assert row is not None, "a move always answers"
    outcome = Outcome(row["outcome"])
    return Moved(outcome, None if row["id"] is None else read(row, Task))


async def renew(database: Database, holder: Holder, *, by_s: float) -> Moved:
    return await _move(database, "renew_claim", holder, timedelta(seconds=by_s))


async def start(database: Database, holder: Holder) -> Moved:
    return await _move(database, "start_task", holder)


async def complete(
    database: Database,
    holder: Holder,
    result: dict[str, Any],
    *,
    session_id: str | None,
    work_dir: str | None,
) -> Moved:
    """Also writes the agent's final text as its comment and moves the issue on (R2.3, R10.3)."""
    return await _move(
        database, "complete_task", holder, result, session_id, work_dir, database.new_id()
    )


async def fail(
    database: Database,
    holder: Holder,
    failure: Failure,
    *,
    session_id: str | None,
    work_dir: str | None,
) -> Moved:
    """Also bears the retry, where its reason allows one (R5.4)."""
    return await _move(
        database,
        "fail_task",
        holder,
        str(failure.reason),
        failure.error,
        session_id,
        work_dir,
        failure.retry_after_s,
        failure.refused_session,
        database.dice.random(),
    )


async def confirm_stop(database: Database, holder: Holder, left: Sequence[str] = ()) -> Moved:
    """The second phase of a cancellation: no process of the run is left (R7.1), but for those
    named `left`, which nothing ends."""
    return await _move(database, "confirm_stop", holder, list(left))


async def pin_session(
    database: Database,
    holder: Holder,
    *,
    session_id: str | None,
    work_dir: str | None,
    refused_session: str | None = None,
) -> Moved:
    return await _move(database, "pin_session", holder, session_id, work_dir, refused_session)


async def set_progress(database: Database, holder: Holder, progress: dict[str, Any]) -> Moved:
    return await _move(database, "set_progress", holder, progress)


async def append_messages(database: Database, holder: Holder, messages: list[Message]) -> Moved:
    """Unique by (task, seq): a batch may be sent again (R6.9)."""
    return await _move(database, "append_messages", holder, msgspec.to_builtins(messages))


async def report_usage(database: Database, holder: Holder, usage: list[Usage]) -> Moved:
    return await _move(database, "report_usage", holder, msgspec.to_builtins(usage))


async def _move(database: Database, function: str, holder: Holder, *arguments: object) -> Moved:
    places = ", ".join(f"${n}" for n in range(1, 4 + len(arguments)))
    return moved(
        await database.pool.fetchrow(
            f"select m.outcome, (m.task).* from understudy.{function}({places}) m",  # noqa: S608
            holder.workspace_id,
            holder.task_id,
            holder.claim_token,
            *arguments,
        )
    )


async def cancel(database: Database, workspace_id: UUID, task_id: UUID, *, by: UUID) -> Moved:
    """R7.1: `moved` if it is cancelled now, `requested` if its machine has to stop it first."""
    return moved(
        await database.pool.fetchrow(
            "select m.outcome, (m.task).* from understudy.cancel_task($1, $2, $3) m",
            workspace_id,
            task_id,
            by,
        )
    )


async def cancel_issue(
    database: Database, workspace_id: UUID, issue_id: UUID, *, by: UUID
) -> list[Moved]:
    """Everything that is active on it, and the issue itself."""
    rows = await database.pool.fetch(
        "select m.outcome, (m.task).* from understudy.cancel_issue($1, $2, $3) m",
        workspace_id,
        issue_id,
        by,
    )
    return [moved(row) for row in rows]


async def find(database: Database, workspace_id: UUID, task_id: UUID) -> Task | None:
    row = await database.pool.fetchrow(
        "select * from understudy.tasks where id = $1 and workspace_id = $2", task_id, workspace_id
    )
    return None if row is None else read(row, Task)


async def of_issue(database: Database, issue_id: UUID) -> list[Task]:
    """Newest first."""
    return read_all(
        await database.pool.fetch(
            "select * from understudy.tasks where issue_id = $1 order by created_at desc limit $2",
            issue_id,
            SHOWN_MAX,
        ),
        Task,
    )


async def of_workspace(database: Database, workspace_id: UUID) -> list[Task]:
    """Newest first."""
    return read_all(
        await database.pool.fetch(
            "select * from understudy.tasks where workspace_id = $1"
            " order by created_at desc limit $2",
            workspace_id,
            SHOWN_MAX,
        ),
        Task,
    )


async def pending_of_runtime(
    database: Database, workspace_id: UUID, runtime_id: UUID
) -> list[Task]:
    """What it may claim, and what it has claimed and not started."""
    return read_all(
        await database.pool.fetch(
            """
            select t.* from understudy.runtimes r
            join understudy.agents a on a.workspace_id = r.workspace_id
              and a.provider = r.provider and a.archived_at is null
            join understudy.tasks t on t.agent_id = a.id and t.status = 'queued'
              and (t.runtime_id = r.id or t.runtime_id is null)
            where r.id = $2 and r.workspace_id = $1
            union all
            select t.* from understudy.tasks t
            where t.runtime_id = $2 and t.workspace_id = $1 and t.status = 'dispatched'
            order by rank, id limit $3
            """,
            workspace_id,
            runtime_id,
            PENDING_MAX,
        ),
        Task,
    )


@dataclass(frozen=True)
class InFlight:
    """By which claim a task is held, and whether its machine is to stop it (R7.1)."""

    claim_token: UUID | None
    is_stopping: bool


async def in_flight(
    database: Database, workspace_id: UUID, task_ids: list[UUID]
) -> dict[UUID, InFlight]:
    """Of these tasks the ones that have not ended."""
    rows = await database.pool.fetch(
        "select id, claim_token, cancel_requested_at is not null as is_stopping"
        " from unnest($2::uuid[]) id join understudy.tasks using (id)"
        " where workspace_id = $1 and status in ('dispatched', 'running')",
        workspace_id,
        task_ids,
    )
    return {row["id"]: InFlight(row["claim_token"], row["is_stopping"]) for row in rows}


async def messages(
    database: Database, task_id: UUID, *, after: int = -1, rows_max: int = 500
) -> list[Message]:
    """In order of `seq`, from the one behind `after`."""
    return read_all(
        await database.pool.fetch(
            "select * from understudy.task_messages where task_id = $1 and seq > $2"
            " order by seq limit $3",
            task_id,
            after,
            rows_max,
        ),
        Message,
    )


async def usage(database: Database, task_id: UUID) -> list[Usage]:
    return read_all(
        await database.pool.fetch(
            "select * from understudy.usage where task_id = $1 order by provider, model", task_id
        ),
        Usage,
    )
