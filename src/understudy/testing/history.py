"""A past: finished tasks by the million with all that they leave behind, written in bulk."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from understudy.store.database import Database

# Four tasks to an issue. The newest are the densest: a hundredth of them is of the last minute.
ISSUES: Final = """
    insert into understudy.issues
      (id, workspace_id, number, title, status, assignee_agent_id, created_at, updated_at)
    select md5('past issue' || n)::uuid, a.workspace_id, 1000000 + n, 'Done long ago', 'in_review',
           a.id, ended.at, ended.at
    from generate_series($2::int + 1, $2 + $1::int, 4) n
    cross join lateral (
      select understudy.now() - interval '100 days' * (($1 + $2 - n)::float8 / $1) ^ 3 as at) ended
    join understudy.agents a on a.id = ($3::uuid[])[1 + n / 4 % cardinality($3)]
"""
TASKS: Final = """
    insert into understudy.tasks
      (id, workspace_id, issue_id, agent_id, runtime_id, provider, status, move, trigger, attempt,
       claim_token, fence, session_id, work_dir, result, failure_reason,
       rank, created_at, queued_at, dispatched_at, started_at, completed_at)
    select md5('past task' || n)::uuid, i.workspace_id, i.id, i.assignee_agent_id, $3, $4,
           case n % 10 when 0 then 'failed' when 1 then 'cancelled' else 'completed' end,
           case n % 10 when 0 then 'fail' when 1 then 'cancel' else 'complete' end,
           'assign', 1 + (n % 20 = 0)::int, md5('past claim' || n)::uuid, 'full',
           'past session ' || n, '/work', '{"output": "It is done."}',
           case n % 10 when 0 then 'agent_error' when 1 then 'cancelled' end,
           ended.at, ended.at, ended.at, ended.at, ended.at, ended.at
    from generate_series($2::int + 1, $2 + $1::int) n
    cross join lateral (
      select understudy.now() - interval '100 days' * (($1 + $2 - n)::float8 / $1) ^ 3 as at) ended
    join understudy.issues i on i.id = md5('past issue' || n - (n - $2 - 1) % 4)::uuid
"""
MESSAGES: Final = """
    insert into understudy.task_messages (task_id, seq, type, content, created_at)
    select t.id, 0, 'text', 'It is done.', t.created_at
    from understudy.tasks t where t.provider = $1
"""
USAGE: Final = """
    insert into understudy.usage (task_id, provider, model, output_tokens)
    select t.id, t.provider, 'model', 1 from understudy.tasks t where t.provider = $1
"""
COMMENTS: Final = """
    insert into understudy.comments
      (id, workspace_id, issue_id, author_agent_id, task_id, body, created_at)
    select md5('past comment' || t.id)::uuid, t.workspace_id, t.issue_id, t.agent_id, t.id,
           'It is done.', t.created_at
    from understudy.tasks t where t.provider = $1
"""
CALLS: Final = """
    insert into understudy.calls (comment_id, agent_id, issue_id, task_id, created_at)
    select md5('past comment' || t.id)::uuid, t.agent_id, t.issue_id, t.id, t.created_at
    from understudy.tasks t where t.provider = $1
"""
EVENTS: Final = """
    insert into understudy.events (workspace_id, kind, issue_id, task_id, payload, created_at)
    select t.workspace_id, kind, t.issue_id, t.id, '{}', t.created_at
    from understudy.tasks t cross join
         unnest(array['task:queued', 'task:dispatch', 'task:running', 'task:' || t.status]) kind
    where t.provider = $1 order by t.created_at
"""
QUEUE: Final = """
    with waiting as materialized (
      select gen_random_uuid() as id, 500000000 + n as number, a as agent, understudy.now() as at
      from generate_series($2::int + 1, $2 + $1::int) n
      join understudy.agents a on a.id = ($3::uuid[])[1 + n % cardinality($3)]
    ), made as (
      insert into understudy.issues (id, workspace_id, number, title, assignee_agent_id)
      select id, (agent).workspace_id, number, 'Wait', (agent).id from waiting
    )
    insert into understudy.tasks
      (id, workspace_id, issue_id, agent_id, runtime_id, provider, status, move, trigger,
       rank, created_at, queued_at)
    select gen_random_uuid(), (agent).workspace_id, id, (agent).id, (agent).runtime_id,
           (agent).provider, 'queued', 'enqueue', 'assign', at, at, at
    from waiting order by number
"""


async def write_past(
    database: Database, agent_ids: list[UUID], runtime_id: UUID, *, tasks: int, behind: int = 0
) -> None:
    """Tasks of these agents on this runtime. No trigger fires: nobody hears of them.

    `behind` counts those that have been written before.
    """
    provider = f"past {behind}"
    async with database.pool.transaction() as connection:
        await connection.execute("set local session_replication_role = replica")
        await connection.execute(ISSUES, tasks, behind, agent_ids)
        await connection.execute(TASKS, tasks, behind, runtime_id, provider)
        for statement in (MESSAGES, USAGE, COMMENTS, CALLS, EVENTS):
            await connection.execute(statement, provider)


async def write_queue(
    database: Database, agent_ids: list[UUID], *, tasks: int, behind: int = 0
) -> None:
    """Tasks that wait for these agents, in turn, each on an issue of its own."""
    async with database.pool.transaction() as connection:
        await connection.execute("set local session_replication_role = replica")
        await connection.execute(QUEUE, tasks, behind, agent_ids)
