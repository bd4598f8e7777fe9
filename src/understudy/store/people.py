"""Users, workspaces and who belongs where."""

from __future__ import annotations

from uuid import UUID

from understudy.core.records import User, Workspace
from understudy.store.database import Database, read, read_all


async def first_user(database: Database, *, name: str, email: str) -> tuple[User, Workspace]:
    """The owner of a fresh installation and their workspace; made by the first caller only."""
    async with database.pool.transaction() as connection:
        await connection.execute("lock table understudy.users in share row exclusive mode")
        row = await connection.fetchrow(
            "select * from understudy.users order by created_at, id limit 1"
        )
        if row is None:
            row = await connection.fetchrow(
                "insert into understudy.users (id, email, name) values ($1, $2, $3) returning *",
                database.new_id(),
                email,
                name,
            )
            assert row is not None
            workspace_id = database.new_id()
            await connection.execute(
                "insert into understudy.workspaces (id, slug, name) values ($1, 'home', 'Home')",
                workspace_id,
            )
            await connection.execute(
                "insert into understudy.members (workspace_id, user_id, role)"
                " values ($1, $2, 'owner')",
                workspace_id,
                row["id"],
            )
    user = read(row, User)
    return user, (await workspaces_of(database, user.id))[0]


async def workspaces_of(database: Database, user_id: UUID) -> list[Workspace]:
    """The oldest first: a person's own place."""
    return read_all(
        await database.pool.fetch(
            "select w.* from understudy.workspaces w"
            " join understudy.members m on m.workspace_id = w.id where m.user_id = $1"
            " order by w.created_at, w.id",
            user_id,
        ),
        Workspace,
    )


async def find_workspace(database: Database, workspace_id: UUID) -> Workspace | None:
    row = await database.pool.fetchrow(
        "select * from understudy.workspaces where id = $1", workspace_id
    )
    return None if row is None else read(row, Workspace)


async def set_repository(database: Database, workspace_id: UUID, repository: str) -> None:
    await database.pool.execute(
        "update understudy.workspaces set repository = $2 where id = $1", workspace_id, repository
    )
