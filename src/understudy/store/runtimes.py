"""Runtimes: who is there. The database holds the transitions; liveness is their actors' (R4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from uuid import UUID

import msgspec
import trio

from understudy.core.records import Runtime
from understudy.store.connection import Connection, Record
from understudy.store.database import Database, read, read_all
from understudy.store.events import record


@dataclass(frozen=True)
class Machine:
    """The daemon that registers."""

    workspace_id: UUID
    daemon_id: str
    device_name: str
    incarnation: str | None
    node_id: UUID | None = None
    """The server node that it registers with."""
    after: frozenset[str] | None = None
    """The incarnations in whose place it comes; None where it cannot know."""


@dataclass(frozen=True)
class Offer:
    """One CLI of it, trimmed and with its defaults filled in."""

    provider: str
    name: str
    device_info: str
    version: str
    status: str
    problem: str | None


@dataclass(frozen=True)
class Registered:
    """`same_process`: what an earlier process had left was given up before; its runs are its own.

    `taken_by`: nothing has changed, because this device has the identity and is heard.
    """

    runtimes: list[Runtime]
    same_process: bool
    taken_by: str | None = None


async def register(database: Database, machine: Machine, offers: list[Offer]) -> Registered:
    """Add or update one runtime per offer, in the order of the offers.

    What this daemon offered before and offers no longer goes offline. One `daemon:register` event.
    """
    async with database.pool.transaction() as connection:
        before = await connection.fetch(
            "select incarnation, recovered_for, node_id, device_name from understudy.runtimes"
            " where workspace_id = $1 and daemon_id = $2 order by id for no key update",
            machine.workspace_id,
            machine.daemon_id,
        )
        if (holder := next(filter(partial(_has_taken, machine), before), None)) is not None:
            return Registered([], same_process=False, taken_by=holder["device_name"])
        runtimes = [await _upsert(database, connection, machine, offer) for offer in offers]
        await connection.execute(
            "update understudy.runtimes set status = 'offline', offline_since = understudy.now(),"
            " online_since = null, node_id = null"
            " where workspace_id = $1 and daemon_id = $2 and id <> all ($3) and status = 'online'",
            machine.workspace_id,
            machine.daemon_id,
            [runtime.id for runtime in runtimes],
        )
        await record(
            connection, machine.workspace_id, "daemon:register",
            {"action": "register", "runtimes": [msgspec.to_builtins(r) for r in runtimes]},
        )  # fmt: skip
    same_process = machine.incarnation is not None and all(
        row["recovered_for"] == machine.incarnation for row in before
    )
    return Registered(runtimes, same_process)


async def note_recovered(database: Database, registered: Registered) -> None:
    """What earlier processes had left is given up, as far as this one is concerned. Until that is
    on record its next registration does it again."""
    await database.pool.execute(
        "update understudy.runtimes set recovered_for = incarnation"
        " where id = any($1) and incarnation = $2 and recovered_for is distinct from $2",
        [each.id for each in registered.runtimes],
        registered.runtimes[0].incarnation,
    )


def _has_taken(machine: Machine, row: Record) -> bool:
    """A process that this one does not come after is heard under its name: one is a copy."""
    is_other = row["incarnation"] not in {None, machine.incarnation}
    knows = machine.after is None or row["incarnation"] in machine.after
    return is_other and not knows and row["node_id"] is not None


async def _upsert(
    database: Database, connection: Connection, machine: Machine, offer: Offer
) -> Runtime:
    row = await connection.fetchrow(
        """
        insert into understudy.runtimes as r
          (id, workspace_id, daemon_id, incarnation, provider, name, device_name, device_info,
           status, problem, metadata, node_id, last_seen_at, online_since, offline_since)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, jsonb_build_object('version', $11::text),
                $12, understudy.now(), case when $9 = 'online' then understudy.now() end,
                case when $9 = 'offline' then understudy.now() end)
        on conflict (workspace_id, daemon_id, provider) do update set
          incarnation = excluded.incarnation, name = excluded.name,
          device_name = excluded.device_name, device_info = excluded.device_info,
          status = excluded.status, problem = excluded.problem, metadata = excluded.metadata,
          last_seen_at = excluded.last_seen_at, node_id = excluded.node_id, retired_at = null,
          online_since = case when excluded.status = 'online'
                              then coalesce(r.online_since, excluded.online_since) end,
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
        machine.node_id,
    )
    assert row is not None
    return read(row, Runtime)


async def go_offline(
    database: Database,
    runtime_ids: list[UUID],
    *,
    action: str,
    workspace_id: UUID | None = None,
    node_id: UUID | None = None,
    silent_s: float = 0.0,
) -> list[UUID]:
    """Mark online runtimes offline; the ids that are known (R4.5: the others are skipped).

    One event for each workspace that is touched. `workspace_id` limits whose runtimes may be meant,
    `node_id` to those that no other node has heard since. `silent_s`: so long ago they were heard.
    Who has been on record since then is left alone, too, a second allowed for clocks.
    """
    async with database.pool.transaction() as connection:
        rows = await connection.fetch(
            """
            with known as (
              select id, workspace_id, status from understudy.runtimes
              where id = any($1) and ($2::uuid is null or workspace_id = $2)
                and ($3::uuid is null or node_id = $3) and retired_at is null
                and last_seen_at <= understudy.now() - make_interval(secs => $4::float8 - 1)
              order by id for no key update
            ), gone as (
              update understudy.runtimes r
              set status = 'offline', offline_since = understudy.now(), online_since = null,
                  node_id = null, last_seen_at = understudy.now() - make_interval(secs => $4)
              from known
              where r.id = known.id and (known.status = 'online' or r.node_id is not null)
              returning r.id
            )
            select known.id, known.workspace_id, gone.id is not null as went
            from known left join gone using (id)
            """,
            runtime_ids,
            workspace_id,
            node_id,
            silent_s,
        )
        for place in {row["workspace_id"] for row in rows if row["went"]}:
            ids = [str(row["id"]) for row in rows if row["went"] and row["workspace_id"] == place]
            await record(
                connection, place, "daemon:register", {"action": action, "runtime_ids": ids}
            )
    return [row["id"] for row in rows]


async def take_over(
    database: Database, runtime_id: UUID, node_id: UUID, *, heard_at: float | None = None
) -> Runtime | None:
    """This node has heard the runtime: it attends and judges it from now on (R4.3).

    None if there is none; the row as it is where another node has heard it since `heard_at`, on
    trio's clock, by default now. One that was taken for silent is online again, unless it has a
    problem. A node that attended it hears of that: the machine may be there after all.
    """
    async with database.pool.transaction() as connection:
        was = await connection.fetchrow(
            "select *, understudy.now() as read_at from understudy.runtimes"
            " where id = $1 and retired_at is null for no key update",
            runtime_id,
        )
        if was is None:
            return None
        if heard_at is not None and was["node_id"] not in {None, node_id}:
            sign_at = was["read_at"] - timedelta(seconds=trio.current_time() - heard_at)
            if was["last_seen_at"] >= sign_at:
                return read(was, Runtime)
        comes_back = was["status"] == "offline" and was["problem"] is None
        row = await connection.fetchrow(
            "update understudy.runtimes set node_id = $2, last_seen_at = understudy.now(),"
            " status = case when $3 then 'online' else status end,"
            " online_since = case when $3 then understudy.now() else online_since end,"
            " offline_since = case when $3 then null else offline_since end"
            " where id = $1 returning *",
            runtime_id,
            node_id,
            comes_back,
        )
        assert row is not None
        if comes_back or was["node_id"] not in {None, node_id}:
            action = "heard_again" if comes_back else "heard_elsewhere"
            await record(
                connection, row["workspace_id"], "daemon:register",
                {"action": action, "runtime_ids": [str(runtime_id)]},
            )  # fmt: skip
        return read(row, Runtime)


@dataclass(frozen=True)
class Held:
    """A task in flight: `lease_left_s` while it is prepared, `age_s` once it runs."""

    task_id: UUID
    lease_left_s: float | None
    age_s: float | None
    is_stopping: bool


async def held(database: Database, runtime_id: UUID) -> list[Held]:
    """What a runtime has in flight, for an actor that has just begun."""
    rows = await database.pool.fetch(
        "select id as task_id,"
        " extract(epoch from claim_expires_at - understudy.now())::float8 as lease_left_s,"
        " extract(epoch from understudy.now() - started_at)::float8 as age_s,"
        " cancel_requested_at is not null as is_stopping from understudy.tasks"
        " where runtime_id = $1 and status in ('dispatched', 'running') order by id",
        runtime_id,
    )
    return [Held(**row.as_dict()) for row in rows]


async def delete(database: Database, workspace_id: UUID, runtime_id: UUID) -> bool | None:
    """Remove it; False while runs are in flight on it, None if there is none. The history stays."""
    async with database.pool.transaction() as connection:
        found = await connection.fetchrow(
            "select exists (select from understudy.tasks t where t.runtime_id = r.id"
            " and t.status in ('dispatched', 'running')) as is_at_work from understudy.runtimes r"
            " where id = $1 and workspace_id = $2 and retired_at is null for no key update of r",
            runtime_id,
            workspace_id,
        )
        if found is None or found["is_at_work"]:
            return None if found is None else False
        await connection.execute(
            "update understudy.runtimes set retired_at = understudy.now(), status = 'offline',"
            " offline_since = coalesce(offline_since, understudy.now()), online_since = null,"
            " node_id = null where id = $1",
            runtime_id,
        )
        await record(
            connection, workspace_id, "daemon:register",
            {"action": "deleted", "runtime_ids": [str(runtime_id)]},
        )  # fmt: skip
    return True


async def find(database: Database, runtime_id: UUID) -> Runtime | None:
    row = await database.pool.fetchrow(
        "select * from understudy.runtimes where id = $1 and retired_at is null", runtime_id
    )
    return None if row is None else read(row, Runtime)


async def of_node(database: Database, node_id: UUID) -> list[Runtime]:
    """The online ones that a node attends."""
    return read_all(
        await database.pool.fetch(
            "select * from understudy.runtimes where status = 'online' and node_id = $1"
            " order by id",
            node_id,
        ),
        Runtime,
    )


async def of_workspace(
    database: Database, workspace_id: UUID, *, and_these: Sequence[UUID] = ()
) -> list[Runtime]:
    """`and_these`: also if they have been removed meanwhile."""
    return read_all(
        await database.pool.fetch(
            "select * from understudy.runtimes"
            " where workspace_id = $1 and (retired_at is null or id = any ($2))"
            " order by status desc, device_name, provider",
            workspace_id,
            list(and_these),
        ),
        Runtime,
    )
