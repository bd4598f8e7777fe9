"""Connections, a fixed number at most, the last one used first.

A slot is the right to have a connection; slots are handed on in order of arrival, and only who has
one takes an idle connection or opens another. Giving back is synchronous, so it cannot be
cancelled, and a connection in doubt is closed rather than repaired.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import final

import trio

from understudy.store.connection import Connection, Record, Value
from understudy.store.errors import DatabaseUnavailable


@dataclass(frozen=True)
class PoolStatistics:
    size: int
    idle: int
    in_use: int
    waiting: int
    opened: int
    discarded: int
    acquire_wait_s_total: float
    acquire_wait_s_max: float


@final
class Pool:
    def __init__(self, open_connection: Callable[[], Awaitable[Connection]], *, size: int) -> None:
        self._open_connection = open_connection
        self._size = size
        self._in_use = 0
        self._idle: list[Connection] = []
        self._queue = trio.lowlevel.ParkingLot()
        self._closed = False
        self._opened = 0
        self._discarded = 0
        self._wait_s_total = 0.0
        self._wait_s_max = 0.0

    async def fetch(self, sql: str, *arguments: object) -> list[Record]:
        connection = await self.acquire()
        try:
            return await connection.fetch(sql, *arguments)
        finally:
            self.release(connection)

    async def fetchrow(self, sql: str, *arguments: object) -> Record | None:
        connection = await self.acquire()
        try:
            return await connection.fetchrow(sql, *arguments)
        finally:
            self.release(connection)

    async def fetchval(self, sql: str, *arguments: object) -> Value:
        connection = await self.acquire()
        try:
            return await connection.fetchval(sql, *arguments)
        finally:
            self.release(connection)

    async def execute(self, sql: str, *arguments: object) -> str:
        connection = await self.acquire()
        try:
            return await connection.execute(sql, *arguments)
        finally:
            self.release(connection)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        connection = await self.acquire()
        try:
            yield connection
        finally:
            self.release(connection)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def check(self) -> None:
        """Raise `DatabaseUnavailable` unless the server answers."""
        await self.fetchval("select 1")

    async def acquire(self) -> Connection:
        """Raises `DatabaseUnavailable` when there is none to be had, from the server or from us."""
        await trio.lowlevel.checkpoint_if_cancelled()
        asked_at = trio.current_time()
        if self._in_use < self._size:
            self._in_use += 1
        else:
            await self._queue.park()  # Whoever leaves hands the slot over.
        try:
            connection = self._take_idle() or await self._open()
        except BaseException:
            self._hand_on_slot()
            raise
        self._note_wait(trio.current_time() - asked_at)
        return connection

    def release(self, connection: Connection) -> None:
        if connection.is_usable() and not self._closed:
            self._idle.append(connection)
        else:
            self._discard(connection)
        self._hand_on_slot()

    def statistics(self) -> PoolStatistics:
        return PoolStatistics(
            size=self._size,
            idle=len(self._idle),
            in_use=self._in_use,
            waiting=len(self._queue),
            opened=self._opened,
            discarded=self._discarded,
            acquire_wait_s_total=self._wait_s_total,
            acquire_wait_s_max=self._wait_s_max,
        )

    async def aclose(self) -> None:
        """Close what is idle and refuse who waits; what is in use is closed as it comes back."""
        self._closed = True
        while self._idle:
            self._discard(self._idle.pop())
        while self._queue:
            self._in_use += 1
            self._queue.unpark()
        await trio.lowlevel.checkpoint()

    def _take_idle(self) -> Connection | None:
        if self._closed:
            raise DatabaseUnavailable("the pool is closed")
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable():
                return connection
            self._discard(connection)  # The server hung up while it was idle.
        return None

    async def _open(self) -> Connection:
        connection = await self._open_connection()
        self._opened += 1
        return connection

    def _discard(self, connection: Connection) -> None:
        connection.close()
        self._discarded += 1

    def _hand_on_slot(self) -> None:
        if self._queue:
            self._queue.unpark()
        else:
            self._in_use -= 1

    def _note_wait(self, waited_s: float) -> None:
        self._wait_s_total += waited_s
        self._wait_s_max = max(self._wait_s_max, waited_s)
