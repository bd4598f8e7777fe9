"""Agents: named workers."""

from __future__ import annotations

from uuid import UUID

import psycopg.errors

from understudy.core.records import Agent, Task
from understudy.store.database import Database, read, read_all
from understudy.wire.board import CreateAgent


class AgentExists(Exception):
    """An agent of that name is in the workspace already."""


async def create(database: Database, workspace_id: UUID, wanted: CreateAgent) -> Agent:
    """Raises `AgentExists`; names are told apart without regard to case."""
    try:
        row = await database.pool.fetchrow(
            "insert into understudy.agents (id, workspace_id, name, provider, runtime_id,"
            " instructions, model, custom_args, custom_env, mcp_config, max_concurrent_tasks)"
            " values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) returning *",
            database.new_id(),
            workspace_id,
            wanted.name,
            wanted.provider,
            wanted.runtime_id,
            wanted.instructions,
            wanted.model,
            wanted.custom_args,
            wanted.custom_env,
            wanted.mcp_config,
            wanted.max_concurrent_tasks,
        )
    except psycopg.errors.UniqueViolation:
        raise AgentExists(wanted.name) from None
    assert row is not None
    return read(row, Agent)


async def find(database: Database, workspace_id: UUID, name: str) -> Agent | None:
    """By id or by name, in any case; not one that was archived."""
    if "\x00" in name:
        return None  # PostgreSQL would not even look.
    row = await database.pool.fetchrow(
        "select * from understudy.agents where workspace_id = $1 and archived_at is null"
        " and (id::text = lower($2) or lower(name) = lower($2))",
        workspace_id,
        name,
    )
    return None if row is None else read(row, Agent)


async def of_task(database: Database, task: Task) -> Agent:
    """Also one that was archived since."""
    row = await database.pool.fetchrow(
        "select * from understudy.agents where id = $1", task.agent_id
    )
    assert row is not None, "a task goes with its agent"
    return read(row, Agent)


async def of_workspace(database: Database, workspace_id: UUID) -> list[Agent]:
    return read_all(
        await database.pool.fetch(
            "select * from understudy.agents where workspace_id = $1 and archived_at is null"
            " order by lower(name)",
            workspace_id,
        ),
        Agent,
    )
