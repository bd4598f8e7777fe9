"""Issues, their conversation, and who is on them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from understudy.core.records import Comment, Issue, Task
from understudy.store.connection import Record
from understudy.store.database import Database, read, read_all
from understudy.store.tasks import Moved, moved
from understudy.wire.board import Commented, CreateIssue, RerunIssue

SELECT: Final = """
    select i.*, w.issue_prefix || '-' || i.number as key, coalesce(a.name, u.name) as assignee_name
    from understudy.issues i
    join understudy.workspaces w on w.id = i.workspace_id
    left join understudy.agents a on a.id = i.assignee_agent_id
    left join understudy.users u on u.id = i.assignee_user_id
"""

KEY: Final = re.compile(r"((?P<prefix>[A-Za-z][A-Za-z0-9]{1,7})-)?(?P<number>[0-9]{1,9})", re.ASCII)
ISSUES_MAX: Final = 500
"""On a board; `store/board.py` counts as far."""
COMMENTS_MAX: Final = 500


@dataclass(frozen=True)
class Assignment:
    """`outcome`: enqueued, assigned, unchanged, pending, self, too_many_hops, issue_not_found or
    agent_not_found; what each means says `schema.sql`."""

    outcome: str
    task: Task | None


@dataclass(frozen=True)
class Rerun:
    """`outcome`: enqueued, pending, issue_not_found, task_not_found or agent_not_found.

    `cancelled` is what had to make room for it.
    """

    outcome: str
    task: Task | None
    cancelled: list[Moved]


@dataclass(frozen=True)
class Author:
    """A person, or the agent that works on a task."""

    user_id: UUID | None = None
    task_id: UUID | None = None


async def create(
    database: Database, workspace_id: UUID, user_id: UUID | None, wanted: CreateIssue
) -> Issue:
    """The next number of the workspace is drawn in the same transaction: numbers have no gaps."""
    async with database.pool.transaction() as connection:
        number = await connection.fetchval(
            "update understudy.workspaces set issue_counter = issue_counter + 1"
            " where id = $1 returning issue_counter",
            workspace_id,
        )
        issue_id = database.new_id()
        await connection.execute(
            "insert into understudy.issues (id, workspace_id, number, title, description, status,"
            " priority, repository, creator_user_id) values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            issue_id,
            workspace_id,
            number,
            wanted.title,
            wanted.description,
            wanted.status,
            int(wanted.priority),
            wanted.repository,
            user_id,
        )
        row = await connection.fetchrow(f"{SELECT} where i.id = $1", issue_id)
    assert row is not None
    return read(row, Issue)


async def find(database: Database, workspace_id: UUID, name: str) -> Issue | None:
    """By id, by key (`UND-7`, in any case) or by number."""
    try:
        return await get(database, workspace_id, UUID(name))
    except ValueError:
        pass
    if (key := KEY.fullmatch(name)) is None:
        return None
    row = await database.pool.fetchrow(
        f"{SELECT} where i.workspace_id = $1 and i.number = $2"
        " and w.issue_prefix = coalesce($3, w.issue_prefix)",
        workspace_id,
        int(key["number"]),
        key["prefix"] and key["prefix"].upper(),
    )
    return None if row is None else read(row, Issue)


async def get(database: Database, workspace_id: UUID, issue_id: UUID) -> Issue | None:
    row = await database.pool.fetchrow(
        f"{SELECT} where i.id = $2 and i.workspace_id = $1", workspace_id, issue_id
    )
    return None if row is None else read(row, Issue)


async def of_workspace(database: Database, workspace_id: UUID) -> list[Issue]:
    """The most recently changed first."""
    return read_all(
        await database.pool.fetch(
            f"{SELECT} where i.workspace_id = $1"
            " order by i.updated_at desc, i.number desc limit $2",
            workspace_id,
            ISSUES_MAX,
        ),
        Issue,
    )


async def assign(
    database: Database,
    workspace_id: UUID,
    issue_id: UUID,
    agent_id: UUID,
    *,
    by_task: UUID | None = None,
) -> Assignment:
    """Starts a task unless the issue is in the backlog or the agent is on it already (R10.1).

    `by_task` is the run of the agent that assigns.
    """
    row = await database.pool.fetchrow(
        "select m.outcome, (m.task).* from understudy.assign_to_agent($1, $2, $3, $4, $5) m",
        workspace_id,
        issue_id,
        agent_id,
        database.new_id(),
        by_task,
    )
    return _assignment(row)


async def rerun(
    database: Database, issue: Issue, wanted: RerunIssue, *, user_id: UUID | None
) -> Rerun:
    """R7.6: cancel what its agent has on the issue, and begin anew."""
    rows = await database.pool.fetch(
        "select m.outcome, (m.task).* from understudy.rerun_issue($1, $2, $3, $4, $5, $6, $7) m",
        issue.workspace_id,
        issue.id,
        database.new_id(),
        user_id,
        wanted.task_id,
        wanted.fresh,
        wanted.after,
    )
    first = _assignment(rows[0])
    return Rerun(first.outcome, first.task, [moved(row) for row in rows[1:]])


async def set_status(
    database: Database, workspace_id: UUID, issue_id: UUID, status: str
) -> Assignment:
    """Leaving the backlog starts its agent (R10.1); ending an issue stops nothing (R7.5)."""
    row = await database.pool.fetchrow(
        "select m.outcome, (m.task).* from understudy.set_issue_status($1, $2, $3, $4) m",
        workspace_id,
        issue_id,
        status,
        database.new_id(),
    )
    return _assignment(row)


def _assignment(row: Record | None) -> Assignment:
    assert row is not None
    return Assignment(row["outcome"], None if row["id"] is None else read(row, Task))


async def add_comment(
    database: Database, issue: Issue, body: str, author: Author
) -> Commented | None:
    """Also calls the agents that it mentions (R10.2); None if the issue is gone by now."""
    row = await database.pool.fetchrow(
        "select (m.comment).*, m.called, coalesce(a.name, u.name) as author_name"
        " from understudy.add_comment($1, $2, $3, $4, $5, $6) m"
        " left join understudy.agents a on a.id = (m.comment).author_agent_id"
        " left join understudy.users u on u.id = (m.comment).author_user_id",
        issue.workspace_id,
        issue.id,
        database.new_id(),
        author.user_id,
        author.task_id,
        body,
    )
    return None if row is None else read(row, Commented)


async def comments(database: Database, issue_id: UUID) -> list[Comment]:
    """Oldest first."""
    return read_all(
        await database.pool.fetch(
            "select c.*, coalesce(a.name, u.name) as author_name from understudy.comments c"
            " left join understudy.agents a on a.id = c.author_agent_id"
            " left join understudy.users u on u.id = c.author_user_id"
            " where c.issue_id = $1 order by c.created_at, c.id limit $2",
            issue_id,
            COMMENTS_MAX,
        ),
        Comment,
    )
