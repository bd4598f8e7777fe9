"""Synchronous psycopg, its cursor API, prepared and binary: the floor."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import final

import psycopg

from bench.trips.orders import ROWS, SELECT, UPDATE, Stopwatch, Trip, answer, orders, rows_of


@final
class Trips:
    def __init__(self, connection: psycopg.Connection, driver: int) -> None:
        self._connection = connection
        self._cursor = connection.cursor(binary=True)
        self._rows = rows_of(driver)

    def select(self, n: int) -> None:
        row = self._cursor.execute(SELECT_FORMAT, [n], prepare=True).fetchone()
        assert row == (n,)

    def update(self, n: int) -> None:
        row = self._cursor.execute(UPDATE_FORMAT, [1, self._rows[0]], prepare=True).fetchone()
        assert row is not None

    def rows(self, n: int) -> None:
        assert len(self._cursor.execute(ROWS_FORMAT, [0], prepare=True).fetchall()) == 100

    def transaction(self, n: int) -> None:
        with self._connection.transaction():
            self.update(n)

    def batch(self, n: int) -> None:
        self._cursor.executemany(UPDATE_FORMAT, [(1, row) for row in self._rows], returning=True)
        assert len([self._cursor.fetchall() for _ in self._cursor.results()]) == len(self._rows)


def _format(sql: str) -> str:
    return sql.replace("$1", "%s").replace("$2", "%s")


SELECT_FORMAT, UPDATE_FORMAT, ROWS_FORMAT = _format(SELECT), _format(UPDATE), _format(ROWS)


def main(dsn: str, driver: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.prepare_threshold = 0
        trips = Trips(connection, driver)
        by_name: dict[Trip, Callable[[int], None]] = {
            "select": trips.select,
            "update": trips.update,
            "rows": trips.rows,
            "transaction": trips.transaction,
            "batch": trips.batch,
        }
        for order in orders():
            trip, watch = by_name[order.trip], Stopwatch()
            for n in watch.count(order.seconds):
                trip(n)
            answer(watch.timing())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
