"""What the pages ask and nobody else: the live run of each issue, and what runs have cost."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec

from understudy.core.records import Message, Task
from understudy.store.connection import Record
from understudy.store.database import Database, read

SELECT: Final = """
    select t.*, a.name as agent_name, r.device_name, i.title as issue_title,
           w.issue_prefix || '-' || i.number as issue_key, said.message
    from understudy.tasks t
    join understudy.agents a on a.id = t.agent_id
    join understudy.workspaces w on w.id = t.workspace_id
    left join understudy.runtimes r on r.id = t.runtime_id
    left join understudy.issues i on i.id = t.issue_id
    left join lateral (
      select jsonb_build_object('seq', m.seq, 'type', m.type, 'tool', m.tool,
                                'content', left(m.content, 1000), 'input', m.input) as message
      from understudy.task_messages m
      where m.task_id = t.id and m.type in ('text', 'tool_use')
      order by m.seq desc limit 1
    ) said on t.status = 'running'
"""

RUNS_MAX: Final = 100
ACTIVE_MAX: Final = 500
CALLS_MAX: Final = 1000

# Of each issue that the board shows (store/issues.py) the task in flight, else the newest; not one
# that another's late result has made needless.
LIVE: Final = """
    select live.id from (
      select id from understudy.issues where workspace_id = $1
      order by updated_at desc, number desc limit 500) shown
    cross join lateral (
      select o.id from understudy.tasks o where o.issue_id = shown.id
      order by array_position(array['running', 'dispatched', 'queued', 'deferred'], o.status),
               o.failure_reason is not distinct from 'superseded', o.created_at desc
      limit 1) live
"""

# What is in flight or waits, each by the index that the queue itself goes by.
ACTIVE: Final = """
    select o.id from understudy.agents w join understudy.tasks o on o.agent_id = w.id
      and o.status in ('dispatched', 'running') where w.workspace_id = $1
    union all
    select o.id from understudy.agents w join understudy.tasks o on o.agent_id = w.id
      and o.status = 'queued' where w.workspace_id = $1
    union all
    select o.id from understudy.tasks o where o.status = 'deferred' and o.workspace_id = $1
"""


@dataclass(frozen=True)
class Run:
    """A task with the names it is shown under; `said` is the last thing a running one told."""

    task: Task
    agent_name: str
    device_name: str | None
    issue_key: str | None
    issue_title: str | None
    said: Message | None


@dataclass(frozen=True)
class Call:
    """An agent that a comment called, and the task that answers; None until its run has ended."""

    agent_name: str
    task_id: UUID | None


@dataclass(frozen=True)
class Tokens:
    """What a run has cost, over all models."""

    fresh: int
    cached: int
    output: int


async def now(database: Database) -> datetime:
    """The time by which ages and durations on a page are counted: that of the rows themselves."""
    found: datetime = await database.pool.fetchval("select understudy.now()")
    return found


async def live_runs(database: Database, workspace_id: UUID) -> dict[UUID, Run]:
    """By issue: the run its card shows."""
    rows = await database.pool.fetch(f"{SELECT} where t.id in ({LIVE})", workspace_id)
    return {row["issue_id"]: _run(row) for row in rows}


async def runs_of_issue(database: Database, issue_id: UUID) -> list[Run]:
    """Newest first."""
    rows = await database.pool.fetch(
        f"{SELECT} where t.issue_id = $1 order by t.created_at desc limit $2", issue_id, RUNS_MAX
    )
    return [_run(row) for row in rows]


async def active_runs(database: Database, workspace_id: UUID) -> list[Run]:
    """What is in flight or waits, oldest first."""
    rows = await database.pool.fetch(
        f"{SELECT} where t.id in ({ACTIVE}) order by t.created_at limit $2",
        workspace_id,
        ACTIVE_MAX,
    )
    return [_run(row) for row in rows]


async def tokens_of_issue(database: Database, issue_id: UUID) -> dict[UUID, Tokens]:
    """By task; a run that has reported nothing is not in it."""
    rows = await database.pool.fetch(
        "select u.task_id, sum(u.input_tokens + u.cache_write_tokens)::bigint as fresh,"
        " sum(u.cache_read_tokens)::bigint as cached, sum(u.output_tokens)::bigint as output"
        " from understudy.usage u join understudy.tasks t on t.id = u.task_id"
        " where t.issue_id = $1 group by u.task_id",
        issue_id,
    )
    return {row["task_id"]: Tokens(row["fresh"], row["cached"], row["output"]) for row in rows}


async def calls_of_issue(database: Database, issue_id: UUID) -> dict[UUID, list[Call]]:
    """By comment; one that called nobody is not in it."""
    rows = await database.pool.fetch(
        "select c.comment_id, c.task_id, a.name from understudy.comments s"
        " join understudy.calls c on c.comment_id = s.id"
        " join understudy.agents a on a.id = c.agent_id"
        " where s.issue_id = $1 order by a.name limit $2",
        issue_id,
        CALLS_MAX,
    )
    found: dict[UUID, list[Call]] = {}
    for row in rows:
        found.setdefault(row["comment_id"], []).append(Call(row["name"], row["task_id"]))
    return found


def _run(row: Record) -> Run:
    said = row["message"]
    return Run(
        task=read(row, Task),
        agent_name=row["agent_name"],
        device_name=row["device_name"] or None,
        issue_key=row["issue_key"],
        issue_title=row["issue_title"],
        said=None if said is None else msgspec.convert(said, Message),
    )
