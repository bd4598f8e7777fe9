"""Those who share an installation and nothing in it: workspaces, each with a person and agents."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from understudy.core.records import Agent
from understudy.store import tokens
from understudy.store.database import Database
from understudy.store.tokens import Owner
from understudy.testing.board import Board

ADD: Final = """
    with person as (insert into understudy.users (id, email, name) values ($1, $3, $4)),
      place as (insert into understudy.workspaces (id, slug, name) values ($2, $4, $4))
    insert into understudy.members (workspace_id, user_id, role) values ($2, $1, 'owner')
"""


@dataclass(frozen=True)
class Tenant:
    """A workspace. Its person is a member of no other."""

    name: str
    board: Board
    person_key: str
    daemon_key: str
    agents: list[Agent] = field(default_factory=list)


async def add_tenant(database: Database, name: str) -> Tenant:
    board = await add_workspace(database, name)
    owner = Owner(user_id=board.user_id, workspace_id=board.workspace_id)
    person_key = await tokens.create(database, "personal", owner)
    daemon_key = await tokens.create(database, "daemon", owner)
    return Tenant(name, board, person_key, daemon_key)


async def add_workspace(database: Database, name: str) -> Board:
    """With its owner, and neither agents nor machines."""
    user_id, workspace_id = database.new_id(), database.new_id()
    email = f"{name}@example.org"
    await database.pool.execute(ADD, user_id, workspace_id, email, name)
    return Board(database, user_id, workspace_id, user_id, None)  # type: ignore[arg-type]
