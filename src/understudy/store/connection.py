"""PostgreSQL on trio: one connection, with verbs that take `$1` placeholders.

Arguments become what the server says their place is (a dict becomes jsonb, a list an array, an
aware datetime timestamptz); the first use of a statement prepares it, the next ones are one round
trip each. `session.py` says what cancellation means.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.generators import execute, notifies
from psycopg.pq import PGnotify
from psycopg.pq.abc import PGconn, PGresult

from understudy.store.copying import copy_in, copy_out
from understudy.store.dialling import open_session
from understudy.store.errors import DatabaseUnavailable
from understudy.store.record import Record, Value
from understudy.store.session import Session, check
from understudy.store.statements import Statement, StatementCache, means_outdated, prepare
from understudy.store.transaction import Transaction
from understudy.store.waits import SocketWaits, Waits

__all__ = [
    "Connection",
    "DatabaseUnavailable",
    "Notification",
    "Record",
    "Value",
    "open_connection",
]

PRODUCTION: Final = SocketWaits()
NO_OPTIONS: Final[Mapping[str, str]] = MappingProxyType({})
STATEMENTS_MAX: Final = 256

A_contra = TypeVar("A_contra", contravariant=True)
A = TypeVar("A")


class Ask(Protocol[A_contra]):
    def __call__(
        self, statement: Statement, pgconn: PGconn, arguments: Sequence[A_contra], /
    ) -> PQGen[list[PGresult]]: ...


@dataclass(frozen=True)
class Notification:
    channel: str
    payload: str
    sender_pid: int


async def open_connection(
    conninfo: str, *, options: Mapping[str, str] = NO_OPTIONS, waits: Waits = PRODUCTION
) -> Connection:
    """Options are the server's settings for the session: `{"lock_timeout": "5s"}`.

    Raises `DatabaseUnavailable`.
    """
    return Connection(await open_session(conninfo, options, waits))


class Connection:
    """May be shared by tasks: statements take turns. A transaction is for one task at a time."""

    def __init__(self, session: Session, *, statements_max: int = STATEMENTS_MAX) -> None:
        self._session = session
        self._pgconn = session.pgconn
        self._statements = StatementCache(statements_max)
        self._inbox: deque[Notification] = deque()
        self._pgconn.notify_handler = self._receive

    async def fetch(self, sql: str, *arguments: object) -> list[Record]:
        results, statement = await self._run(sql, arguments, Statement.ask)
        return statement.rows(results[0])

    async def fetchrow(self, sql: str, *arguments: object) -> Record | None:
        results, statement = await self._run(sql, arguments, Statement.ask)
        return statement.first_row(results[0])

    async def fetchval(self, sql: str, *arguments: object) -> Value:
        """The first column of the first row; None when there is no row."""
        results, statement = await self._run(sql, arguments, Statement.ask)
        return statement.first_value(results[0])

    async def execute(self, sql: str, *arguments: object) -> str:
        """Returns the command tag: `UPDATE 3`."""
        results, _ = await self._run(sql, arguments, Statement.ask)
        return (results[0].command_status or b"").decode()

    async def fetch_many(self, sql: str, rows: Iterable[Sequence[object]]) -> list[list[Record]]:
        """The statement once per row of arguments, pipelined, as one transaction."""
        results, statement = await self._run(sql, list(rows), Statement.ask_each)
        return [statement.rows(result) for result in results]

    async def run_script(self, sql: str) -> None:
        """Several statements, one transaction, no arguments and no results: a schema."""
        await self._session.command(sql.encode())

    async def copy_in(self, sql: str, rows: Iterable[Sequence[object]]) -> int:
        """`copy t (a, b) from stdin`; returns how many rows went in."""
        return await copy_in(self._session, sql, rows)

    def copy_out(self, sql: str) -> AsyncGenerator[bytes]:
        """`copy t to stdout`, line by line. Use it under `contextlib.aclosing`."""
        return copy_out(self._session, sql)

    def transaction(self) -> Transaction:
        """A transaction, or inside one a savepoint."""
        return Transaction(self._session)

    async def listen(self, channel: str) -> None:
        quoted = channel.replace('"', '""')
        await self.execute(f'listen "{quoted}"')

    async def notifications(self) -> AsyncGenerator[Notification]:
        """As they come. Use it under `contextlib.aclosing`, on a connection of its own.

        Statements of other tasks wait as long as this waits for news.
        """
        while True:
            while self._inbox:
                yield self._inbox.popleft()
            async with self._session:
                if not self._inbox:
                    await self._session.serve(notifies(self._pgconn))

    def is_usable(self) -> bool:
        """Between transactions, with nothing under way and no farewell from the server."""
        return self._session.is_idle and not self._session.has_unasked_news()

    def close(self) -> None:
        """At once and from anywhere; a statement under way raises `DatabaseUnavailable`."""
        self._session.close()

    @property
    def backend_pid(self) -> int:
        return self._pgconn.backend_pid

    @property
    def closed(self) -> bool:
        return self._session.closed

    @property
    def broken(self) -> bool:
        """Closed because it was lost, or because nobody knows what the server did last."""
        return self._session.broken

    async def _run(
        self, sql: str, arguments: Sequence[A], ask: Ask[A]
    ) -> tuple[list[PGresult], Statement]:
        async with self._session:
            try:
                return await self._ask(sql, arguments, ask)
            except psycopg.Error as error:
                if not means_outdated(error):
                    raise
                self._statements.clear()
                if self._session.in_transaction:
                    raise  # The transaction has failed with it.
            return await self._ask(sql, arguments, ask)

    async def _ask(
        self, sql: str, arguments: Sequence[A], ask: Ask[A]
    ) -> tuple[list[PGresult], Statement]:
        statement = self._statements.get(sql) or await self._prepare(sql)
        results = await self._session.drive(ask(statement, self._pgconn, arguments))
        check(results)
        return results, statement

    async def _prepare(self, sql: str) -> Statement:
        name = self._statements.new_name()
        results = await self._session.drive(prepare(self._pgconn, name, sql))
        check(results)
        statement = Statement(name, results[1])
        if outlived := self._statements.add(sql, statement):
            self._pgconn.send_query(b"deallocate " + outlived.name)
            check(await self._session.drive(execute(self._pgconn)))
        return statement

    def _receive(self, note: PGnotify) -> None:
        self._inbox.append(Notification(note.relname.decode(), note.extra.decode(), note.be_pid))
