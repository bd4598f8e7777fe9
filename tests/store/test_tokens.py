"""Keys: what opens, what no longer does, and that two cannot use one code."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from random import Random
from uuid import UUID

import pytest
import trio

from understudy.core.failures import FailureReason
from understudy.store import people, tasks, tokens
from understudy.store.connection import open_connection
from understudy.store.database import Database
from understudy.store.pool import Pool
from understudy.store.tasks import Failure, Holder
from understudy.store.tokens import Owner
from understudy.testing.board import Board


@pytest.fixture
async def board(database: Database) -> Board:
    return await Board.set_up(database)


@pytest.fixture
async def alone(dsn: str, database: Database) -> AsyncIterator[Database]:
    """One connection, so that the time can be set for all that is asked."""
    pool = Pool(partial(open_connection, dsn), size=1)
    yield Database(pool, Random(1))
    await pool.aclose()


async def set_time(database: Database, time: str) -> None:
    await database.pool.fetchval("select set_config('understudy.fake_now', $1, false)", time)


async def test_a_key_opens_until_the_second_it_expires(alone: Database, board: Board) -> None:
    await set_time(alone, "2026-01-01 12:00:00+00")
    key = await tokens.create(alone, "session", Owner(user_id=board.user_id), valid_s=60)
    await set_time(alone, "2026-01-01 12:00:59.9+00")
    assert await tokens.find(alone, key)
    assert await tokens.find_keyholder(alone, key)
    await set_time(alone, "2026-01-01 12:01:00+00")
    assert await tokens.find(alone, key) is None
    assert await tokens.find_keyholder(alone, key) is None


async def test_a_code_expires_too(alone: Database, board: Board) -> None:
    await set_time(alone, "2026-01-01 12:00:00+00")
    code = await tokens.create(alone, "login", Owner(user_id=board.user_id), valid_s=60)
    await set_time(alone, "2026-01-01 12:01:00+00")
    assert await tokens.redeem_login(alone, code, session_s=60) is None


async def test_a_revoked_key_opens_nothing(database: Database, board: Board) -> None:
    key = await tokens.create(database, "personal", Owner(user_id=board.user_id))
    assert await tokens.find(database, key)
    assert await tokens.find_keyholder(database, key)
    await tokens.revoke(database, key)
    assert await tokens.find(database, key) is None
    assert await tokens.find_keyholder(database, key) is None


async def test_a_keyholder_is_a_person_and_where_they_belong(
    database: Database, board: Board
) -> None:
    """What three statements find is found by one."""
    await join(database, board, "older")
    await database.pool.execute(
        "update understudy.workspaces set created_at = '2020-1-1' where slug = 'older'"
    )
    own = Owner(user_id=board.user_id, workspace_id=board.workspace_id)
    for owner in (own, Owner(user_id=board.user_id)):
        key = await tokens.create(database, "personal", owner)
        holder = await tokens.find_keyholder(database, key)
        assert holder is not None
        assert holder.grant == await tokens.find(database, key)
        assert (holder.user.id if holder.user else None) == board.user_id
        assert [each.slug for each in holder.workspaces] == ["older", "home"]
        assert holder.workspaces == await people.workspaces_of(database, board.user_id)


async def test_who_belongs_nowhere_holds_a_key_that_leads_nowhere(
    database: Database, board: Board
) -> None:
    key = await tokens.create(database, "personal", Owner(user_id=board.user_id))
    await database.pool.execute("delete from understudy.members")
    holder = await tokens.find_keyholder(database, key)
    assert holder is not None
    assert holder.user is not None
    assert holder.workspaces == []


async def test_a_machines_key_has_no_person(database: Database, board: Board) -> None:
    key = await tokens.create(database, "daemon", Owner(workspace_id=board.workspace_id))
    holder = await tokens.find_keyholder(database, key)
    assert holder is not None
    assert (holder.grant.kind, holder.user, holder.workspaces) == ("daemon", None, [])


async def join(database: Database, board: Board, slug: str) -> None:
    identity = database.new_id()
    await database.pool.execute(
        "insert into understudy.workspaces (id, slug, name) values ($1, $2, $2)", identity, slug
    )
    await database.pool.execute(
        "insert into understudy.members (workspace_id, user_id) values ($1, $2)",
        identity,
        board.user_id,
    )


@pytest.mark.parametrize("end", ["complete", "fail"])
async def test_a_tasks_key_dies_with_its_task(database: Database, board: Board, end: str) -> None:
    """R9.5"""
    (claim,) = await board.dispatched("A thing")
    assert claim.claim_token is not None
    key = tokens.agent_key(claim.task.id, claim.claim_token)
    holder = Holder(board.workspace_id, claim.task.id, claim.claim_token)
    grant = await tokens.find(database, key)
    assert grant is not None
    assert (grant.kind, grant.task_id) == ("agent", claim.task.id)
    await tasks.start(database, holder)
    assert await tokens.find(database, key)
    said = {"session_id": None, "work_dir": None}
    if end == "complete":
        await tasks.complete(database, holder, {"output": "x"}, **said)
    else:
        await tasks.fail(database, holder, Failure(FailureReason.AUTH, "x"), **said)
    assert await tokens.find(database, key) is None


async def test_the_key_itself_is_nowhere_in_the_database(database: Database, board: Board) -> None:
    key = await tokens.create(database, "personal", Owner(user_id=board.user_id))
    row = await database.pool.fetchval("select to_jsonb(t)::text from understudy.tokens t")
    assert key not in row
    assert key.removeprefix("usp_") not in row


async def test_of_many_who_redeem_one_code_one_gets_in(database: Database, board: Board) -> None:
    code = await tokens.create(database, "login", Owner(user_id=board.user_id), valid_s=60)
    sessions: list[str | None] = []

    async def redeem() -> None:
        sessions.append(await tokens.redeem_login(database, code, session_s=60))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(redeem)
    assert sum(session is not None for session in sessions) == 1


async def test_a_key_has_an_owner_of_its_kind(database: Database, board: Board) -> None:
    from psycopg.errors import CheckViolation, ForeignKeyViolation

    with pytest.raises(CheckViolation):
        await tokens.create(database, "daemon", Owner(user_id=board.user_id))
    with pytest.raises(ForeignKeyViolation):
        await tokens.create(database, "personal", Owner(user_id=UUID(int=9)))
