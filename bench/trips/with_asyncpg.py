"""asyncpg on asyncio's own loop: what a program without trio would use."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any, final

import asyncpg
from psycopg.conninfo import conninfo_to_dict

from bench.trips.orders import ROWS, SELECT, UPDATE, Stopwatch, Trip, answer, orders, rows_of


@final
class Trips:
    def __init__(self, connection: Any, driver: int) -> None:
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
        assert len(await self._connection.fetchmany(UPDATE, self._batch)) == len(self._batch)


async def main(dsn: str, driver: int) -> None:
    place = conninfo_to_dict(dsn)
    connection = await asyncpg.connect(
        host=place["host"], port=place["port"], user=place["user"], database=place["dbname"]
    )
    trips = Trips(connection, driver)
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
    await connection.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
