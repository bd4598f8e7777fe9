"""Bringing databases up: new ones, old ones, many nodes at once, and ones that are ahead of us."""

from __future__ import annotations

import pytest
import trio

from understudy.core.lifecycle import guard_sql
from understudy.store import schema
from understudy.store.connection import Connection, Record, open_connection
from understudy.store.embedded import EmbeddedServer
from understudy.store.schema import Migration, NewerDatabase, bring_up, migrations, schema_sql
from understudy.testing.postgres import throwaway_database

STEPS = [
    Migration(1, "colour", "alter table understudy.issues add colour text not null default ''"),
    Migration(2, "index", "create index issues_by_colour on understudy.issues (colour)"),
]
CATALOG = {
    "columns": """
        select table_name, column_name, data_type, is_nullable, column_default
        from information_schema.columns where table_schema = 'understudy' order by 1, 2""",
    "constraints": """
        select conrelid::regclass::text as of, conname, pg_get_constraintdef(oid)
        from pg_constraint where connamespace = 'understudy'::regnamespace order by 1, 2""",
    "indexes": """
        select indexname, indexdef from pg_indexes where schemaname = 'understudy' order by 1""",
    "functions": """
        select proname, pg_get_functiondef(oid) from pg_proc
        where pronamespace = 'understudy'::regnamespace order by 1, 2""",
    "triggers": """
        select tgname, pg_get_triggerdef(t.oid) from pg_trigger t join pg_class c on c.oid = tgrelid
        where c.relnamespace = 'understudy'::regnamespace and not tgisinternal order by 1, 2""",
}


async def described(connection: Connection) -> dict[str, list[Record]]:
    return {name: await connection.fetch(sql) for name, sql in CATALOG.items()}


async def brought_up(dsn: str, *rounds: list[Migration]) -> dict[str, list[Record]]:
    connection = await open_connection(dsn)
    for steps in rounds:
        await bring_up(connection, steps)
    found = await described(connection)
    connection.close()
    return found


async def test_an_old_database_brought_up_is_the_same_as_a_new_one(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways end at one schema, whichever steps were applied when."""
    with throwaway_database(server) as old, throwaway_database(server) as new:
        grown = await brought_up(old, [], STEPS[:1], STEPS)
        whole = schema_sql() + ";".join(["", *(step.sql for step in STEPS)])
        monkeypatch.setattr(schema, "schema_sql", lambda: whole)
        assert await brought_up(new, STEPS) == grown


async def test_our_own_migrations_and_our_schema_agree(server: EmbeddedServer) -> None:
    """The numbered files are notes of what schema.sql contains already: none is missing there."""
    with throwaway_database(server) as dsn:
        await brought_up(dsn, migrations())
        connection = await open_connection(dsn)
        noted = await connection.fetch("select version, name from understudy.migrations order by 1")
        connection.close()
        assert [tuple(row) for row in noted] == [(m.version, m.name) for m in migrations()]


async def test_bringing_up_again_changes_nothing(server: EmbeddedServer) -> None:
    with throwaway_database(server) as dsn:
        once = await brought_up(dsn, STEPS)
        assert await brought_up(dsn, STEPS) == once


async def test_nodes_that_start_together_take_turns(server: EmbeddedServer) -> None:
    with throwaway_database(server) as dsn:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(6):
                    nursery.start_soon(brought_up, dsn, STEPS)
        connection = await open_connection(dsn)
        count = await connection.fetchval("select count(*) from understudy.migrations")
        connection.close()
        assert count == 2


async def test_a_database_of_a_later_version_is_refused_with_what_to_do(
    server: EmbeddedServer,
) -> None:
    with throwaway_database(server) as dsn:
        await brought_up(dsn, STEPS)
        with pytest.raises(NewerDatabase, match=r"migration 2, .*install the version"):
            await brought_up(dsn, STEPS[:1])


async def test_a_step_that_fails_leaves_the_database_as_it_was(server: EmbeddedServer) -> None:
    from psycopg.errors import SyntaxError as BadSql

    with throwaway_database(server) as dsn:
        before = await brought_up(dsn, [], STEPS[:1])
        with pytest.raises(BadSql):
            await brought_up(dsn, [*STEPS, Migration(3, "broken", "create tabel x ()")])
        assert await brought_up(dsn, STEPS[:1]) == before


def test_the_database_refuses_by_the_same_table_as_the_core() -> None:
    """R2.2"""
    assert guard_sql() in schema_sql()
