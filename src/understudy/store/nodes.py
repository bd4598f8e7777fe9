"""Server nodes that share this database, and whether they live (R4.3, R4.4)."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from understudy.store.database import Database


async def renew(database: Database, node_id: UUID, address: str, *, lease_s: float) -> bool:
    """Say that this node lives; whether it has peers: others that live, or whose machines are there
    still and may come here any moment."""
    has_peers: bool = await database.pool.fetchval(
        """
        with mine as (
          insert into understudy.nodes as n (id, address, lease_since, lease_expires_at)
          values ($1, $2, understudy.now(), understudy.now() + $3)
          on conflict (id) do update set
            lease_since = case when n.lease_expires_at < understudy.now() then understudy.now()
                               else n.lease_since end,
            lease_expires_at = excluded.lease_expires_at
          returning id
        ) select exists (select from understudy.nodes n, mine
                         where n.id <> mine.id and n.lease_expires_at > understudy.now())
              or exists (select from understudy.runtimes r, mine
                         where r.status = 'online' and r.node_id is distinct from mine.id)
        """,
        node_id,
        address,
        timedelta(seconds=lease_s),
    )
    return has_peers


async def leave(database: Database, node_id: UUID) -> None:
    """A node that stops in good order: its lease is over now."""
    await database.pool.execute(
        "update understudy.nodes set lease_expires_at = least(lease_expires_at, understudy.now())"
        " where id = $1",
        node_id,
    )


async def stops_due(database: Database, node_id: UUID) -> list[tuple[UUID, UUID]]:
    """The runs to be stopped (R7.1) on the machines that this node attends: task and runtime."""
    rows = await database.pool.fetch(
        "select t.id, t.runtime_id from understudy.runtimes r join understudy.tasks t"
        " on t.runtime_id = r.id and t.status = 'running'"
        " where r.status = 'online' and r.node_id = $1 and t.cancel_requested_at is not null"
        " order by t.id",
        node_id,
    )
    return [(row["id"], row["runtime_id"]) for row in rows]
