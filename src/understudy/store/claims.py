"""Claims: tasks handed to a runtime, each with its lease and all that its run needs (R3, R5.9)."""

from __future__ import annotations

import math
from dataclasses import dataclass
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
    with done as materialized (
      select array(select c from understudy.claim_tasks($1, $2, $3, $4) c) as claimed
    )
    select l.left_for, l.barred_s, (b.task).*, (b.agent).name as agent_name, (b.agent).instructions,
           (b.agent).custom_env, (b.agent).custom_args, (b.agent).mcp_config, (b.agent).model,
           (b.agent).runtime_id is null as is_movable,
           (b.issue).title, (b.issue).description, b.key, b.repository,
           b.prior_session_id, b.prior_work_dir, b.told as trigger_comment_content
    from done cross join lateral understudy.look_after_claim($1, done.claimed) l
      left join lateral understudy.brief_claims(done.claimed, $5) b on true
"""


@dataclass(frozen=True)
class Claims:
    """`left_for`: the runtimes for which something can be claimed after that; None: for each.

    `barred_s`: for so long the claimant gets nothing (R5.2, R9.4); negative if it may.
    """

    tasks: list[ClaimedTask]
    left_for: frozenset[UUID | None]
    barred_s: float


async def claim(
    database: Database, runtime_id: UUID, *, slots: int, fence: Fence, claim_s: float
) -> Claims:
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
    left_for, barred_s = rows[0]["left_for"], rows[0]["barred_s"]
    return Claims(
        [_claimed(row) for row in rows if row["id"] is not None],
        frozenset(left_for),
        -math.inf if barred_s is None else barred_s,
    )


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
