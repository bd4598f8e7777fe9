"""Claims: tasks handed to a runtime, each with its lease and all that its run needs (R3, R5.9)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import msgspec

from understudy.core.failures import POLICIES
from understudy.core.records import Task
from understudy.store.connection import Record
from understudy.store.database import Database, read
from understudy.store.tasks import Fence
from understudy.store.tokens import agent_key
from understudy.wire.daemon import AgentBrief, ClaimedTask, IssueBrief, Repository

UNSAFE: Final = [str(reason) for reason, policy in POLICIES.items() if not policy.resume]
"""After these no session is continued (R5.1)."""

CLAIM: Final = """
    select c.*, a.name as agent_name, a.instructions, a.custom_env, a.custom_args, a.mcp_config,
           a.model, a.runtime_id is null as is_movable,
           i.title, i.description, w.issue_prefix || '-' || i.number as key,
           coalesce(i.repository, w.repository) as repository,
           prior.session_id as prior_session_id, prior.work_dir as prior_work_dir,
           called.content as trigger_comment_content
    from understudy.claim_tasks($1, $2, $3, $4) c
    join understudy.agents a on a.id = c.agent_id
    join understudy.workspaces w on w.id = c.workspace_id
    left join understudy.issues i on i.id = c.issue_id
    left join lateral (
      -- R5.9: what the agent's newest run on the issue left behind, on the machine that has it.
      select p.work_dir, case when not c.is_fresh
               and coalesce(p.failure_reason, '') <> all ($5)
               and not exists (select from understudy.refused_sessions r
                               where r.workspace_id = p.workspace_id
                                 and r.session_id = p.session_id)
             then p.session_id end as session_id
      from (
        select * from understudy.tasks t
        where t.issue_id = c.issue_id and t.agent_id = c.agent_id
          and t.status in ('completed', 'failed') and t.started_at is not null
        order by t.created_at desc, t.id limit 1
      ) p where p.runtime_id = c.runtime_id
    ) prior on true
    left join lateral (
      select string_agg(coalesce(u.name, au.name, 'somebody') || ': ' || m.body, E'\n\n'
                        order by m.created_at, m.id) as content
      from understudy.calls l join understudy.comments m on m.id = l.comment_id
      left join understudy.users u on u.id = m.author_user_id
      left join understudy.agents au on au.id = m.author_agent_id
      where l.task_id = c.id
    ) called on true
    order by c.rank, c.id
"""


async def claim(
    database: Database, runtime_id: UUID, *, slots: int, fence: Fence, claim_s: float
) -> list[ClaimedTask]:
    """Take up to `slots` queued tasks for a runtime that has just proved to be alive (R3.1-R3.4).

    Its own expired claims go back into the queue first (R3.8). One statement: what is claimed is
    handed over whole.
    """
    rows = await database.pool.fetch(
        CLAIM,
        runtime_id,
        [database.new_id() for _ in range(slots)],
        fence,
        timedelta(seconds=claim_s),
        UNSAFE,
    )
    return [_claimed(row) for row in rows]


def _claimed(row: Record) -> ClaimedTask:
    found: dict[str, Any] = row.as_dict()
    issue = None
    if found["issue_id"] is not None:
        issue = msgspec.convert(found | {"id": found["issue_id"]}, IssueBrief)
    agent = found | {"id": found["agent_id"], "name": found["agent_name"]}
    token, repository = found["claim_token"], found["repository"]
    return ClaimedTask(
        **msgspec.structs.asdict(read(row, Task)),
        claim_token=token,
        claim_expires_at=found["claim_expires_at"],
        agent=msgspec.convert(agent, AgentBrief),
        issue=issue,
        repos=[] if repository is None else [Repository(url=str(repository))],
        is_movable=found["is_movable"],
        prior_session_id=found["prior_session_id"],
        prior_work_dir=found["prior_work_dir"],
        trigger_comment_id=found["trigger_comment_id"],
        trigger_comment_content=found["trigger_comment_content"],
        auth_token=None if token is None else agent_key(found["id"], token),
    )
