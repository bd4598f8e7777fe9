"""Events: what happened, in one order that every reader agrees on (R2.4, R11.4).

Ids come from a sequence, so a transaction that drew id 5 may commit after the one that drew 6. A
reader that took 6 and went on would never see 5. So readers hold back at a gap, and the snapshot
says for how long: once every transaction that was open when the gap was met has ended, a missing id
belongs to one that was rolled back. Until then nothing behind the gap is delivered.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from understudy.core.records import Event
from understudy.store.connection import Connection
from understudy.store.database import Database, read_all


@dataclass(frozen=True)
class Page:
    """Committed events behind a cursor, and what was open when they were read.

    `oldest_open` and `next_new` are transaction ids: all below the first have ended, all from the
    second on had not begun.
    """

    events: list[Event]
    oldest_open: int
    next_new: int


async def record(
    connection: Connection, workspace_id: UUID, kind: str, payload: dict[str, object]
) -> None:
    """For what no trigger writes. Call it last in its transaction, behind the change itself."""
    await connection.execute(
        "insert into understudy.events (workspace_id, kind, payload) values ($1, $2, $3)",
        workspace_id,
        kind,
        payload,
    )


async def page_after(database: Database, cursor: int, *, rows_max: int) -> Page:
    rows = await database.pool.fetch(
        """
        select e.*, pg_snapshot_xmin(s)::text::bigint as oldest_open,
               pg_snapshot_xmax(s)::text::bigint as next_new
        from pg_current_snapshot() s
        left join lateral (
          select * from understudy.events where id > $1 order by id limit $2) e on true
        order by e.id
        """,
        cursor,
        rows_max,
    )
    return Page(
        read_all((row for row in rows if row["id"] is not None), Event),
        rows[0]["oldest_open"],
        rows[0]["next_new"],
    )


async def of_workspace(
    database: Database, workspace_id: UUID, *, after: int, up_to: int, rows_max: int
) -> list[Event]:
    """History for a stream that comes back; `up_to` is a cursor behind which no gap is open.

    Compared in pairs, as the index of a workspace's events has them: by the ids alone, PostgreSQL
    would look for those of a quiet workspace among everybody's.
    """
    return read_all(
        await database.pool.fetch(
            "select * from understudy.events where (workspace_id, id) > ($1, $2)"
            " and (workspace_id, id) <= ($1, $3) order by workspace_id, id limit $4",
            workspace_id,
            after,
            up_to,
            rows_max,
        ),
        Event,
    )


async def last_id(database: Database) -> int:
    """Where a tail that wants only news begins."""
    found: int = await database.pool.fetchval("select coalesce(max(id), 0) from understudy.events")
    return found
