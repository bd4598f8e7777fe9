"""Keys: made once, shown once, kept as a hash. Those of agents at work are kept nowhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from hmac import compare_digest
from typing import Final, Literal
from uuid import UUID

from understudy.core.records import User, Workspace
from understudy.store.database import Database, read, read_all

LINK_S: Final = 15 * 60.0
"""How long a one-time login link is good."""
Kind = Literal["login", "session", "personal", "daemon"]
PREFIXES: dict[Kind, str] = {
    "login": "usl",
    "session": "uss",
    "personal": "usp",
    "daemon": "usd",
}
"""So that a leaked key says what it opens, and scanners can find it."""
AGENT: Final = "usa_"


@dataclass(frozen=True)
class Grant:
    """What a key opens."""

    kind: Kind | Literal["agent"]
    user_id: UUID | None = None
    workspace_id: UUID | None = None
    task_id: UUID | None = None


@dataclass(frozen=True)
class Keyholder:
    """Whose key it is, and the workspaces they belong to, the oldest first: their own place."""

    grant: Grant
    user: User | None = None
    workspaces: list[Workspace] = field(default_factory=list)


@dataclass(frozen=True)
class Owner:
    user_id: UUID | None = None
    workspace_id: UUID | None = None


async def create(
    database: Database, kind: Kind, owner: Owner, *, name: str = "", valid_s: float | None = None
) -> str:
    """The new key itself, which nobody can read again."""
    secret = f"{PREFIXES[kind]}_{database.dice.randbytes(24).hex()}"
    await database.pool.execute(
        "insert into understudy.tokens"
        " (id, kind, hash, name, user_id, workspace_id, expires_at)"
        " values ($1, $2, $3, $4, $5, $6, understudy.now() + $7::interval)",
        database.new_id(),
        kind,
        _hash(secret),
        name,
        owner.user_id,
        owner.workspace_id,
        None if valid_s is None else timedelta(seconds=valid_s),
    )
    return secret


async def find(database: Database, secret: str) -> Grant | None:
    """None for what was never valid, has expired or was revoked."""
    if secret.startswith(AGENT):
        return await _agent(database, secret)
    row = await database.pool.fetchrow(
        "select kind, user_id, workspace_id from understudy.tokens"
        " where hash = $1 and revoked_at is null"
        " and (expires_at is null or expires_at > understudy.now())",
        _hash(secret),
    )
    return None if row is None else read(row, Grant)


async def find_keyholder(database: Database, secret: str) -> Keyholder | None:
    """As `find`, and in the same round trip what each request of a person asks next."""
    if secret.startswith(AGENT):
        grant = await _agent(database, secret)
        return None if grant is None else Keyholder(grant)
    rows = await database.pool.fetch(
        """
        select t.kind, t.user_id, t.workspace_id, u.email, u.name as user_name, w.*
        from understudy.tokens t
        left join understudy.users u on u.id = t.user_id
        left join understudy.members m on m.user_id = t.user_id
        left join understudy.workspaces w on w.id = m.workspace_id
        where t.hash = $1 and t.revoked_at is null
          and (t.expires_at is null or t.expires_at > understudy.now())
        order by w.created_at, w.id
        """,
        _hash(secret),
    )
    if not rows:
        return None
    row, grant = rows[0], read(rows[0], Grant)
    if grant.user_id is None:
        return Keyholder(grant)
    user = User(id=grant.user_id, email=row["email"], name=row["user_name"])
    return Keyholder(grant, user, read_all((each for each in rows if each["id"]), Workspace))


def agent_key(task_id: UUID, claim_token: UUID) -> str:
    """The key of the agent at work under this claim; it dies with the claim (R9.5, R3.13).

    Nothing is stored: who holds the claim can make it, who sees it cannot make the claim of it.
    """
    return f"{AGENT}{task_id.hex}{sha256(b'agent' + claim_token.bytes).hexdigest()}"


async def _agent(database: Database, secret: str) -> Grant | None:
    try:
        task_id = UUID(secret.removeprefix(AGENT)[:32])
    except ValueError:
        return None
    row = await database.pool.fetchrow(
        "select workspace_id, claim_token from understudy.tasks"
        " where id = $1 and status in ('dispatched', 'running') and claim_token is not null",
        task_id,
    )
    if row is None or not compare_digest(agent_key(task_id, row["claim_token"]), secret):
        return None
    return Grant("agent", workspace_id=row["workspace_id"], task_id=task_id)


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
