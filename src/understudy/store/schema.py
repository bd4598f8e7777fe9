"""Bring a database to today's schema: all of `schema.sql`, or the numbered files it lacks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from understudy.store.connection import Connection

LOCK: Final = 0x756E6473  # "unds": nodes that start together take turns
NUMBERED: Final = re.compile(r"(\d{4})_(\w+)\.sql")


@dataclass(frozen=True)
class Migration:
    version: int
    name: str
    sql: str


class NewerDatabase(Exception):
    """The database was brought up by a later version of Understudy than this one."""


def schema_sql() -> str:
    return (files("understudy") / "schema.sql").read_text(encoding="utf-8")


def migrations() -> list[Migration]:
    """The files of `store/migrations/`, in order: `0002_what_it_does.sql`."""
    found = [
        Migration(int(match[1]), match[2], file.read_text(encoding="utf-8"))
        for file in (files("understudy.store") / "migrations").iterdir()
        if (match := NUMBERED.fullmatch(file.name))
    ]
    return sorted(found, key=lambda migration: migration.version)


async def bring_up(connection: Connection, known: list[Migration] | None = None) -> None:
    """Idempotent; many nodes may call it at once. Raises `NewerDatabase`."""
    steps = migrations() if known is None else known
    async with connection.transaction():
        await connection.execute("select pg_advisory_xact_lock($1)", LOCK)
        if await connection.fetchval("select to_regnamespace('understudy') is null"):
            await connection.run_script(schema_sql())
            await _note(connection, steps)
            return
        applied = {
            row["version"]
            for row in await connection.fetch("select version from understudy.migrations")
        }
        if unknown := applied - {step.version for step in steps}:
            raise NewerDatabase(
                f"the database has migration {max(unknown)}, which this version does not know: "
                "install the version of Understudy that last used it"
            )
        missing = [step for step in steps if step.version not in applied]
        for step in missing:
            await connection.run_script(step.sql)
        await _note(connection, missing)


async def _note(connection: Connection, steps: list[Migration]) -> None:
    for step in steps:
        await connection.execute(
            "insert into understudy.migrations (version, name) values ($1, $2)",
            step.version,
            step.name,
        )
