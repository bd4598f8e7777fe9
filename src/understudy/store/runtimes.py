"""Runtimes: who is there. The database holds the transitions; liveness is their actors' (R4.3)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import msgspec

from understudy.core.records import Runtime
from understudy.store.connection import Connection
from understudy.store.database import Database, read, read_all
from understudy.store.events import record


@dataclass(frozen=True)
class Machine:
    """The daemon that registers."""

    workspace_id: UUID
    daemon_id: str
    device_name: str
    incarnation: str | None


@dataclass(frozen=True)
class Offer:
    """One CLI of it, trimmed and with its defaults filled in."""

    provider: str
    name: str
    device_info: str
    version: str
    status: str
    problem: str | None


async def register(database: Database, machine: Machine, offers: list[Offer]) -> list[Runtime]:
    """Add or update one runtime per offer, in the order of the offers.

    What this daemon offered before and offers no longer goes offline. One `daemon:register` event.
    """
    async with database.pool.transaction() as connection:
        runtimes = [await _upsert(database, connection, machine, offer) for offer in offers]
        await connection.execute(
            "update understudy.runtimes set status = 'offline', offline_since = understudy.now()"
            " where workspace_id = $1 and daemon_id = $2 and id <> all ($3) and status = 'online'",
            machine.workspace_id,
            machine.daemon_id,
            [runtime.id for runtime in runtimes],
        )
        await record(
            connection, machine.workspace_id, "daemon:register",
            {"action": "register", "runtimes": [msgspec.to_builtins(r) for r in runtimes]},
        )  # fmt: skip
    return runtimes


async def _upsert(
    database: Database, connection: Connection, machine: Machine, offer: Offer
) -> Runtime:
    row = await connection.fetchrow(
        """
        insert into understudy.runtimes as r
          (id, workspace_id, daemon_id, incarnation, provider, name, device_name, device_info,
           status, problem, metadata, last_seen_at, offline_since)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, jsonb_build_object('version', $11::text),
                understudy.now(), case when $9 = 'offline' then understudy.now() end)
        on conflict (workspace_id, daemon_id, provider) do update set
          incarnation = excluded.incarnation, name = excluded.name,
          device_name = excluded.device_name, device_info = excluded.device_info,
          status = excluded.status, problem = excluded.problem, metadata = excluded.metadata,
          last_seen_at = excluded.last_seen_at,
          offline_since = case when excluded.status = 'offline'
                               then coalesce(r.offline_since, excluded.offline_since) end
        returning *
        """,
        database.new_id(),
        machine.workspace_id,
        machine.daemon_id,
        machine.incarnation,
        offer.provider,
        offer.name,
        machine.device_name,
        offer.device_info,
        offer.status,
        offer.problem,
        offer.version,
    )
    assert row is not None
    return read(row, Runtime)


async def go_offline(
    database: Database,
    runtime_ids: list[UUID],
    *,
    action: str,
    workspace_id: UUID | None = None,
    seen_at: datetime | None = None,
) -> list[UUID]:
    """Mark online runtimes offline; the ids that are known (R4.5: the others are skipped).

    One event for each workspace that is touched. `workspace_id` limits whose runtimes may be meant,
    `seen_at` to those that nobody, on any node, has registered since.
    """
    async with database.pool.transaction() as connection:
        rows = await connection.fetch(
            """
            with known as (
              select id, workspace_id, status from understudy.runtimes
              where id = any($1) and ($2::uuid is null or workspace_id = $2)
                and ($3::timestamptz is null or last_seen_at = $3)
              order by id for no key update
            ), gone as (
              update understudy.runtimes r
              set status = 'offline', offline_since = understudy.now(),
                  last_seen_at = understudy.now()
              from known where r.id = known.id and known.status = 'online' returning r.id
            )
            select known.id, known.workspace_id, gone.id is not null as went
            from known left join gone using (id)
            """,
            runtime_ids,
            workspace_id,
            seen_at,
        )
        for place in {row["workspace_id"] for row in rows if row["went"]}:
            ids = [str(row["id"]) for row in rows if row["went"] and row["workspace_id"] == place]
            await record(
                connection, place, "daemon:register", {"action": action, "runtime_ids": ids}
            )
    return [row["id"] for row in rows]


async def come_online(database: Database, runtime_id: UUID) -> datetime | None:
    """A runtime that was taken for silent has been heard again; when the row says it was seen.

    None where the row stays as it is: it is online, or has a problem that was not repaired.
    """
    async with database.pool.transaction() as connection:
        row = await connection.fetchrow(
            "update understudy.runtimes"
            " set status = 'online', offline_since = null, last_seen_at = understudy.now()"
            " where id = $1 and status = 'offline' and problem is null"
            " returning workspace_id, last_seen_at",
            runtime_id,
        )
        if row is None:
            return None
        await record(
            connection, row["workspace_id"], "daemon:register",
            {"action": "heard_again", "runtime_ids": [str(runtime_id)]},
        )  # fmt: skip
        seen_at: datetime = row["last_seen_at"]
        return seen_at


async def find(database: Database, runtime_id: UUID) -> Runtime | None:
    row = await database.pool.fetchrow(
        "select * from understudy.runtimes where id = $1", runtime_id
    )
    return None if row is None else read(row, Runtime)


async def online(database: Database) -> list[Runtime]:
    """All that the database believes to be there; a starting node gives each 45 s (R4.4)."""
    return read_all(
        await database.pool.fetch(
            "select * from understudy.runtimes where status = 'online' order by id"
        ),
        Runtime,
    )


async def of_workspace(database: Database, workspace_id: UUID) -> list[Runtime]:
    return read_all(
        await database.pool.fetch(
            "select * from understudy.runtimes where workspace_id = $1"
            " order by status desc, device_name, provider",
            workspace_id,
        ),
        Runtime,
    )
