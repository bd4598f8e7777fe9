"""Keys: made once, shown once, kept as a hash."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import Final, Literal
from uuid import UUID

import msgspec

from understudy.store.database import Database

LINK_S: Final = 15 * 60.0
"""How long a one-time login link is good."""
Kind = Literal["login", "session", "personal", "daemon", "task"]
PREFIXES: dict[Kind, str] = {
    "login": "usl",
    "session": "uss",
    "personal": "usp",
    "daemon": "usd",
    "task": "ust",
}
"""So that a leaked key says what it opens, and scanners can find it."""


@dataclass(frozen=True)
class Grant:
    """What a key opens."""

    kind: Kind
    user_id: UUID | None
    workspace_id: UUID | None
    task_id: UUID | None


@dataclass(frozen=True)
class Owner:
    user_id: UUID | None = None
    workspace_id: UUID | None = None
    task_id: UUID | None = None


async def create(
    database: Database, kind: Kind, owner: Owner, *, name: str = "", valid_s: float | None = None
) -> str:
    """The new key itself, which nobody can read again."""
    secret = f"{PREFIXES[kind]}_{database.dice.randbytes(24).hex()}"
    await database.pool.execute(
        "insert into understudy.tokens"
        " (id, kind, hash, name, user_id, workspace_id, task_id, expires_at)"
        " values ($1, $2, $3, $4, $5, $6, $7, understudy.now() + $8::interval)",
        database.new_id(),
        kind,
        _hash(secret),
        name,
        owner.user_id,
        owner.workspace_id,
        owner.task_id,
        None if valid_s is None else timedelta(seconds=valid_s),
    )
    return secret


async def find(database: Database, secret: str) -> Grant | None:
    """None for what was never valid, has expired or was revoked. A task's dies with its task."""
    row = await database.pool.fetchrow(
        """
        select k.kind, k.user_id, k.workspace_id, k.task_id
        from understudy.tokens k left join understudy.tasks t on t.id = k.task_id
        where k.hash = $1 and k.revoked_at is null
          and (k.expires_at is null or k.expires_at > understudy.now())
          and (k.task_id is null or t.status in ('dispatched', 'running'))
        """,
        _hash(secret),
    )
    return None if row is None else msgspec.convert(row.as_dict(), Grant)


async def redeem_login(database: Database, code: str, *, session_s: float) -> str | None:
    """Trade a one-time code for a session key; None the second time, however close the two are."""
    row = await database.pool.fetchrow(
        "update understudy.tokens set revoked_at = understudy.now()"
        " where hash = $1 and kind = 'login' and revoked_at is null"
        " and expires_at > understudy.now() returning user_id",
        _hash(code),
    )
    if row is None:
        return None
    return await create(database, "session", Owner(user_id=row["user_id"]), valid_s=session_s)


async def revoke(database: Database, secret: str) -> None:
    await database.pool.execute(
        "update understudy.tokens set revoked_at = understudy.now()"
        " where hash = $1 and revoked_at is null",
        _hash(secret),
    )


def _hash(secret: str) -> bytes:
    # Keys are 192 random bits: a plain hash cannot be searched backwards, and is quick to look up.
    return sha256(secret.encode()).digest()
