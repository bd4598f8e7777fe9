"""Understudy's driver on trio: one connection, or the pool that all of the store goes through."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import final

import trio

from bench.trips.orders import ROWS, SELECT, UPDATE, Stopwatch, Trip, answer, orders, rows_of
from understudy.store.connection import Connection, open_connection
from understudy.store.pool import Pool


@final
class OnConnection:
    def __init__(self, connection: Connection, driver: int) -> None:
        self._connection = connection
        self._rows = rows_of(driver)
        self._batch = [(1, row) for row in self._rows]

    async def select(self, n: int) -> None:
        assert await self._connection.fetchval(SELECT, n) == n

    async def update(self, n: int) -> None:
        assert await self._connection.fetchval(UPDATE, 1, self._rows[0]) is not None

    async def rows(self, n: int) -> None:
        assert len(await self._connection.fetch(ROWS, 0)) == 100

    async def transaction(self, n: int) -> None:
        async with self._connection.transaction():
            await self.update(n)

    async def batch(self, n: int) -> None:
        assert len(await self._connection.fetch_many(UPDATE, self._batch)) == len(self._batch)


@final
class OnPool:
    def __init__(self, pool: Pool, driver: int) -> None:
        self._pool = pool
        self._driver = driver
        self._row = rows_of(driver)[0]

    async def select(self, n: int) -> None:
        assert await self._pool.fetchval(SELECT, n) == n

    async def update(self, n: int) -> None:
        assert await self._pool.fetchval(UPDATE, 1, self._row) is not None

    async def rows(self, n: int) -> None:
        assert len(await self._pool.fetch(ROWS, 0)) == 100

    async def transaction(self, n: int) -> None:
        async with self._pool.transaction() as connection:
            await connection.fetchval(UPDATE, 1, self._row)

    async def batch(self, n: int) -> None:
        async with self._pool.connection() as connection:
            await OnConnection(connection, self._driver).batch(n)


async def main(dsn: str, driver: int, through: str) -> None:
    pool = Pool(partial(open_connection, dsn), size=1)
    if through == "pool":
        await _measure(OnPool(pool, driver))
    else:
        async with pool.connection() as connection:
            await _measure(OnConnection(connection, driver))
    await pool.aclose()


async def _measure(trips: OnConnection | OnPool) -> None:
    by_name: dict[Trip, Callable[[int], Awaitable[None]]] = {
        "select": trips.select,
        "update": trips.update,
        "rows": trips.rows,
        "transaction": trips.transaction,
        "batch": trips.batch,
    }
    for order in orders():
        trip, watch = by_name[order.trip], Stopwatch()
        for n in watch.count(order.seconds):
            await trip(n)
        answer(watch.timing())


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]), sys.argv[3])
