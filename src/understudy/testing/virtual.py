"""The database under a virtual clock (gate A): each statement is one instant of trio's time.

A transaction is one instant too: nobody runs between its statements, so nobody can meet its locks.
Races inside PostgreSQL are therefore not to be seen here; they have tests of their own. So all
connections of a world can share one session, whose plans are made once.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from random import Random
from types import TracebackType
from typing import Final, Literal, Protocol, TypeVar, final

import trio
from psycopg.pq.abc import PGresult
from psycopg.waiting import Ready, Wait

from understudy.server import PLANS
from understudy.store import schema
from understudy.store.connection import Ask, Connection, Notification
from understudy.store.database import Database
from understudy.store.dialling import open_session
from understudy.store.errors import DatabaseUnavailable
from understudy.store.pool import Pool
from understudy.store.session import Session, check
from understudy.store.statements import Statement, StatementCache, pipeline
from understudy.store.transaction import Transaction
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
COMMIT: Final = "commit"
TIMELY: Final = re.compile(r"understudy\.\w+ *\(|\b(insert|update|delete|merge)\b", re.IGNORECASE)
HEARD_MAX: Final = 1000

A = TypeVar("A")


@dataclass(frozen=True)
class Fault:
    """`lost_request`: the server never saw it. `lost_answer`: it was executed. `slow`: it came
    there late. `late_answer`: its answer did."""

    kind: Literal["lost_request", "lost_answer", "slow", "late_answer"]
    seconds: float = 0.0


class StatementFaults(Protocol):
    def __call__(self, sql: str) -> Fault | None:
        """Asked of each statement, of `connect` and of `commit`."""
        ...


def no_faults(sql: str) -> Fault | None:
    return None


@asynccontextmanager
async def open_virtual_database(
    dsn: str, dice: Random, *, faults: StatementFaults = no_faults, size: int = 8
) -> AsyncIterator[Database]:
    """The database at `dsn` with our schema and nothing in it."""
    postgres = await VirtualPostgres.open(dsn)
    try:
        async with postgres.open_database(dice, faults=faults, size=size) as database:
            yield database
    finally:
        postgres.close()


@final
class VirtualPostgres:
    """PostgreSQL as the worlds that come one after the other see it."""

    def __init__(self, session: Session, waits: _Waits) -> None:
        self.session = session
        self.statements = StatementCache(1000)
        self.statements_run = 0
        self.told_at: float | None = None
        self.witnesses: list[Callable[[str], object]] = []
        """Told of each statement when it is done, before anybody else hears of it."""
        self._waits = waits
        self._listeners: list[trio.MemorySendChannel[Notification]] = []
        self.loses_notice: Callable[[], bool] = lambda: False

    @classmethod
    async def at(cls, dsn: str) -> VirtualPostgres:
        """The one of the worlds before, if there was one and it is in order."""
        known = OPEN.get(dsn)
        if known is None or not known.session.is_idle:
            known = OPEN[dsn] = await cls.open(dsn)
        return known

    @classmethod
    async def open(cls, dsn: str) -> VirtualPostgres:
        """With our schema."""
        waits = _Waits()
        session = await open_session(dsn, {**PLANS, "lock_timeout": "100ms"}, waits)
        waits.session = session
        postgres = cls(session, waits)
        await schema.bring_up(await postgres.connect(no_faults))
        return postgres

    @asynccontextmanager
    async def open_database(
        self, dice: Random, *, faults: StatementFaults = no_faults, size: int = 4
    ) -> AsyncIterator[Database]:
        """A world's: nothing is in it."""
        await self.empty()
        pool = Pool(partial(self.connect, faults), size=size)
        try:
            yield Database(pool, dice)
        finally:
            await pool.aclose()

    async def empty(self) -> None:
        """For the next world."""
        self.told_at, self.statements_run = None, 0
        self.witnesses.clear()
        self._listeners.clear()
        await self.session.command(EMPTY.encode())

    async def connect(self, faults: StatementFaults) -> Connection:
        await trio.lowlevel.checkpoint()
        if (fault := faults("connect")) is not None and fault.kind == "lost_request":
            raise DatabaseUnavailable("nobody answers")
        return VirtualConnection(self, faults)

    def notify(self, channel: str, payload: str) -> None:
        for listener in self._listeners:
            if self.loses_notice():
                continue
            try:
                listener.send_nowait(Notification(channel, payload, 0))
            except (trio.WouldBlock, trio.BrokenResourceError):
                pass  # Its connection is gone, or nobody reads it any more.

    def listen(self) -> trio.MemoryReceiveChannel[Notification]:
        send, receive = trio.open_memory_channel[Notification](HEARD_MAX)
        self._listeners.append(send)
        return receive

    def close(self) -> None:
        self.session.close()


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
    def __init__(self, postgres: VirtualPostgres, faults: StatementFaults) -> None:
        super().__init__(postgres.session)
        self._statements = postgres.statements
        self._postgres = postgres
        self._faults = faults
        self._is_closed = False
        self._news: trio.MemoryReceiveChannel[Notification] | None = None

    async def _run(
        self, sql: str, arguments: Sequence[A], ask: Ask[A]
    ) -> tuple[list[PGresult], Statement]:
        self.check_open()
        fault = self._faults(sql)
        if fault is not None and fault.kind == "lost_request":
            self.lose("before it was executed")
        if fault is not None and fault.kind == "slow" and not self._session.in_transaction:
            await trio.sleep(fault.seconds)
        self.check_open()
        self._postgres.statements_run += 1
        answer = await super()._run(sql, arguments, ask)
        for witness in self._postgres.witnesses:
            witness(sql)
        if "pg_notify" in sql:
            channel, payload = arguments
            self._postgres.notify(str(channel), str(payload))
        if fault is not None and fault.kind == "lost_answer":
            self.lose("after it was executed")
        if fault is not None and fault.kind == "late_answer" and not self._session.in_transaction:
            await trio.sleep(fault.seconds)
        return answer

    async def _ask(
        self, sql: str, arguments: Sequence[A], ask: Ask[A]
    ) -> tuple[list[PGresult], Statement]:
        """In one round trip with what tells the time, if that has gone on and is asked for."""
        self.check_open()  # Who waited for the session may have died meanwhile.
        now = trio.current_time()
        if now == self._postgres.told_at or not reads_time(sql):
            return await super()._ask(sql, arguments, ask)
        moment = (EPOCH + timedelta(seconds=now)).isoformat()
        set_time = self._statements.get(SET_TIME) or await self._prepare(SET_TIME)
        statement = self._statements.get(sql) or await self._prepare(sql)
        self._postgres.told_at = None
        if ask is not Statement.ask:
            check(await self._session.drive(set_time.ask(self._pgconn, [moment])))
            return await super()._ask(sql, arguments, ask)
        results = await self._session.drive(
            pipeline(
                self._pgconn,
                [
                    partial(set_time.send, self._pgconn, [moment]),
                    partial(statement.send, self._pgconn, arguments),
                ],
            )
        )
        check(results)
        # What a transaction sets is taken back with it.
        self._postgres.told_at = None if self._session.in_transaction else now
        return results[1:], statement

    def transaction(self) -> Transaction:
        self.check_open()
        return VirtualTransaction(self._session, self, self._faults)

    async def listen(self, channel: str) -> None:
        await self.execute("select 1")
        self._news = self._postgres.listen()

    async def notifications(self) -> AsyncGenerator[Notification]:
        assert self._news is not None
        async for notification in self._news:
            self.check_open()
            yield notification
        raise DatabaseUnavailable("the connection was lost")

    def is_usable(self) -> bool:
        return not self._is_closed and self._session.is_idle

    def close(self) -> None:
        self._is_closed = True
        if self._news is not None:
            self._news.close()

    @property
    def closed(self) -> bool:
        return self._is_closed

    def check_open(self) -> None:
        if self._is_closed:
            raise DatabaseUnavailable("the connection is closed")

    def lose(self, when: str) -> None:
        self.close()
        raise DatabaseUnavailable(f"the connection was lost {when}")


@final
class VirtualTransaction(Transaction):
    """Its commit, too, may be lost on the way there or on the way back."""

    def __init__(
        self, session: Session, connection: VirtualConnection, faults: StatementFaults
    ) -> None:
        super().__init__(session)
        self._connection = connection
        self._faults = faults

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        fault = None if error is not None or self._is_savepoint else self._faults(COMMIT)
        if fault is not None and fault.kind == "lost_request":
            await self._roll_back()
            self._connection.lose("before the commit")
        await super().__aexit__(kind, error, traceback)
        if fault is not None and fault.kind == "lost_answer":
            self._connection.lose("after the commit")


@cache
def reads_time(sql: str) -> bool:
    """Whether a function of ours is called, or a row written: what just looks at rows does not."""
    return TIMELY.search(sql) is not None


OPEN: Final[dict[str, VirtualPostgres]] = {}
"""By the database: plans are dear, and the next world has the same."""
