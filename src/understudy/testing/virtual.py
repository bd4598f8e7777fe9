"""The database under a virtual clock (gate A): each statement is one instant of trio's time.

A transaction is one instant too: nobody runs between its statements, so nobody can meet its locks.
Races inside PostgreSQL are therefore not to be seen here; they have tests of their own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from typing import Final, Literal, Protocol, TypeVar, final

import trio
from psycopg.pq.abc import PGresult
from psycopg.waiting import Ready, Wait

from understudy.store import schema
from understudy.store.connection import Ask, Connection
from understudy.store.database import Database
from understudy.store.dialling import open_session
from understudy.store.errors import DatabaseUnavailable
from understudy.store.pool import Pool
from understudy.store.session import Session
from understudy.store.statements import Statement
from understudy.store.waits import BlockingWaits

EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
SET_TIME: Final = "select set_config('understudy.fake_now', $1, false)"
TABLES: Final = (
    "users", "workspaces", "members", "runtimes", "agents", "issues", "tasks", "task_messages",
    "usage", "comments", "tokens", "events", "nodes",
)  # fmt: skip
EMPTY: Final = "truncate {} restart identity cascade".format(
    ", ".join(f"understudy.{table}" for table in TABLES)
)

A = TypeVar("A")


@dataclass(frozen=True)
class Fault:
    """`lost_request`: the server never saw it. `lost_answer`: it was executed."""

    kind: Literal["lost_request", "lost_answer", "slow"]
    seconds: float = 0.0


class StatementFaults(Protocol):
    def __call__(self, sql: str) -> Fault | None: ...


def no_faults(sql: str) -> Fault | None:
    return None


@asynccontextmanager
async def open_virtual_database(
    dsn: str, dice: Random, *, faults: StatementFaults = no_faults, size: int = 8
) -> AsyncIterator[Database]:
    """The database at `dsn` with our schema and nothing in it."""
    pool = virtual_pool(dsn, faults, size=size)
    try:
        async with pool.connection() as connection:
            await schema.bring_up(connection)
            await connection.run_script(EMPTY)
        yield Database(pool, dice)
    finally:
        await pool.aclose()


def virtual_pool(dsn: str, faults: StatementFaults, *, size: int = 8) -> Pool:
    """Further connections to it, with faults of their own: another node's."""
    return Pool(partial(_open, dsn, faults), size=size)


async def _open(dsn: str, faults: StatementFaults) -> Connection:
    if (fault := faults("connect")) is not None and fault.kind == "lost_request":
        raise DatabaseUnavailable("nobody answers")
    waits = _Waits()
    options = {"lock_timeout": "100ms"}
    session = await open_session(dsn, options, waits)
    waits.session = session
    return VirtualConnection(session, faults)


@final
class _Waits:
    """Blocking; and no checkpoint inside a transaction."""

    def __init__(self) -> None:
        self._waits = BlockingWaits()
        self.session: Session | None = None

    async def before_statement(self) -> None:
        if self.session is None or not self.session.in_transaction:
            await self._waits.before_statement()

    async def wait_ready(self, fileno: int, wait: Wait) -> Ready:
        return await self._waits.wait_ready(fileno, wait)


@final
class VirtualConnection(Connection):
    def __init__(self, session: Session, faults: StatementFaults) -> None:
        super().__init__(session)
        self._faults = faults
        self._told_at: float | None = None

    async def _run(
        self, sql: str, arguments: Sequence[A], ask: Ask[A]
    ) -> tuple[list[PGresult], Statement]:
        fault = self._faults(sql)
        if fault is not None and fault.kind == "lost_request":
            self._lose("before it was executed")
        if fault is not None and fault.kind == "slow" and not self._session.in_transaction:
            await trio.sleep(fault.seconds)
        await self._tell_time()
        answer = await super()._run(sql, arguments, ask)
        if fault is not None and fault.kind == "lost_answer":
            self._lose("after it was executed")
        return answer

    async def _tell_time(self) -> None:
        now = trio.current_time()
        if now != self._told_at:
            moment = (EPOCH + timedelta(seconds=now)).isoformat()
            await super()._run(SET_TIME, [moment], Statement.ask)
            # What a transaction sets is taken back with it.
            self._told_at = None if self._session.in_transaction else now

    def _lose(self, when: str) -> None:
        self.close()
        raise DatabaseUnavailable(f"the connection was lost {when}")
