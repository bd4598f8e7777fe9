"""Many at a long queue: how it is filled, and what its events must say of each commit.

The events are read in the order in which their transactions were committed, which is not that of
their ids: the server has to keep the times (`COMMIT_ORDERED`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final
from uuid import UUID

from understudy.core.records import Agent
from understudy.store.connection import Record
from understudy.store.database import Database
from understudy.testing.board import Board
from understudy.testing.postgres import HASTY

COMMIT_ORDERED: Final = {**HASTY, "track_commit_timestamp": "on"}
LIMITS: Final = [1 + number % 8 for number in range(20)]
ISSUES: Final = """
    with made as (
      insert into understudy.issues (id, workspace_id, number, title)
      select gen_random_uuid(), $1, n, 'Issue ' || n from generate_series(1, $2::int) n
      returning id, number
    ) select id from made order by number
"""
# Two agents on each issue, so that the runs of one issue meet.
ASSIGN: Final = """
    select count(*) from unnest($2::uuid[]) with ordinality i (id, n)
    cross join generate_series(0, 1) turn
    cross join lateral understudy.assign_to_agent(
      $1, i.id, ($3::uuid[])[1 + (2 * i.n + turn) % cardinality($3)], gen_random_uuid()) a
    where a.outcome = 'enqueued'
"""
HISTORY: Final = """
    select kind, task_id, payload from understudy.events where kind like 'task:%'
    order by pg_xact_commit_timestamp(xmin), id
"""
OVER: Final = """
    select a.name, count(*) from understudy.tasks t join understudy.agents a on a.id = t.agent_id
    where t.status in ('dispatched', 'running')
    group by a.id having count(*) > a.max_concurrent_tasks
"""
REQUEUED: Final = """
    select count(*) from understudy.events
    where kind = 'task:queued' and payload ->> 'move' = 'requeue'
"""
LEFT: Final = """
    select t.id, t.status, i.status as issue_status, count(c.id) as comments
    from understudy.tasks t join understudy.issues i on i.id = t.issue_id
    left join understudy.comments c on c.task_id = t.id
    group by t.id, i.id
    having t.status <> 'completed' or i.status <> 'in_review' or count(c.id) <> 1
"""
IN_FLIGHT: Final = {"task:dispatch", "task:running"}
LIFE: Final = ["task:running", "task:completed"]


async def hire(board: Board) -> list[Agent]:
    """Twenty agents, with limits from 1 to 8."""
    return [
        await board.agent(f"Agent {number}", max_concurrent_tasks=limit)
        for number, limit in enumerate(LIMITS)
    ]


async def fill(board: Board, agents: list[Agent], *, tasks: int) -> None:
    pool = board.database.pool
    rows = await pool.fetch(ISSUES, board.workspace_id, tasks // 2)
    ids = [row["id"] for row in rows]
    count = await pool.fetchval(ASSIGN, board.workspace_id, ids, [agent.id for agent in agents])
    assert count == tasks


async def over_their_limit(database: Database) -> list[str]:
    """At this moment: each statement sees what one commit has left."""
    return [f"{row['name']} runs {row['count']}" for row in await database.pool.fetch(OVER)]


async def wrongs(database: Database, agents: list[Agent], *, tasks: int) -> list[str]:
    """What the database says against a crowd that has come to the end of its queue."""
    pool = database.pool
    history = await pool.fetch(HISTORY)
    limits = {str(agent.id): agent.max_concurrent_tasks for agent in agents}
    stories: dict[UUID, list[str]] = {}
    for row in history:
        stories.setdefault(row["task_id"], []).append(row["kind"])
    return [
        *_limits_broken(history, limits),
        *(f"{task_id}: {story}" for task_id, story in stories.items() if not _is_sound(story)),
        *(f"{tuple(row)}" for row in await pool.fetch(LEFT)),
        *([f"{len(stories)} tasks"] if len(stories) != tasks else []),
    ]


def _limits_broken(history: Iterable[Record], limits: dict[str, int]) -> Iterator[str]:
    """R3.2, R3.3, at each commit."""
    at_work: dict[UUID, tuple[str, str]] = {}
    for row in history:
        agent, issue = row["payload"]["agent_id"], row["payload"]["issue_id"]
        at_work.pop(row["task_id"], None)
        if row["kind"] not in IN_FLIGHT:
            continue
        if (agent, issue) in at_work.values():
            yield f"{agent} is twice on {issue}"
        at_work[row["task_id"]] = agent, issue
        runs = Counter(who for who, _ in at_work.values())[agent]
        if runs > limits[agent]:
            yield f"{agent} runs {runs} of {limits[agent]}"


def _is_sound(story: list[str]) -> bool:
    """Queued and claimed, perhaps several times in turn; then started once and completed once."""
    waiting, life = story[:-2], story[-2:]
    turns = len(waiting) // 2
    return life == LIFE and turns >= 1 and waiting == ["task:queued", "task:dispatch"] * turns


async def requeued(database: Database) -> int:
    """How many claims came back."""
    count: int = await database.pool.fetchval(REQUEUED)
    return count
