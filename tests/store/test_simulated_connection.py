"""Under a virtual clock: a statement is one instant, and the seed alone decides the order."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import psycopg
import pytest
import trio
from trio.testing import MockClock

from understudy.store.connection import Connection, open_connection
from understudy.store.pool import Pool
from understudy.store.waits import BlockingWaits

TASKS = 4


async def open_simulated(dsn: str, patience_s: float = 60.0, **options: str) -> Connection:
    return await open_connection(dsn, options=options, waits=BlockingWaits(patience_s))


async def test_a_statement_takes_no_virtual_time(dsn: str, autojump_clock: MockClock) -> None:
    with trio.fail_after(0.001):
        connection = await open_simulated(dsn)
        async with connection.transaction():
            assert await connection.fetchval("select 1 from pg_sleep(0.1)") == 1
    assert trio.current_time() == 0
    connection.close()


async def test_nobody_runs_while_a_statement_is_under_way(dsn: str) -> None:
    steps: list[str] = []

    async def tick() -> None:
        while True:
            steps.append("tick")
            await trio.lowlevel.checkpoint()

    connection = await open_simulated(dsn)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        await connection.fetchval("select 1")  # Prepared.
        steps.clear()
        await connection.execute("select pg_sleep(0.1)")
        nursery.cancel_scope.cancel()
    assert len(steps) <= 2
    connection.close()


def trace(dsn: str, seed: int) -> list[int]:
    """In which order tasks that all could go got their rows in."""

    async def run() -> list[int]:
        pool = Pool(partial(open_simulated, dsn), size=TASKS)
        await pool.execute("create table traced (step serial, task int)")

        async def work(task: int) -> None:
            for _ in range(5):
                await pool.execute("insert into traced (task) values ($1)", task)

        async with trio.open_nursery() as nursery:
            for task in range(TASKS):
                nursery.start_soon(work, task)
        rows = await pool.fetch("select task from traced order by step")
        await pool.execute("drop table traced")
        await pool.aclose()
        return [row.task for row in rows]

    trio._core._run._r.seed(seed)  # Private; tests/conftest.py says why.
    return trio.run(run, clock=MockClock(autojump_threshold=0))


def test_a_seed_replays_its_interleaving_and_another_differs(dsn: str) -> None:
    assert trace(dsn, seed=1) == trace(dsn, seed=1)
    assert len({tuple(trace(dsn, seed=seed)) for seed in range(5)}) > 1


def test_tasks_alternate_between_statements(dsn: str) -> None:
    order = trace(dsn, seed=1)
    turns = sum(before != after for before, after in pairwise(order))
    assert turns > TASKS - 1


async def test_a_lock_that_is_held_is_an_error_at_once(dsn: str, autojump_clock: MockClock) -> None:
    holder = await open_simulated(dsn)
    other = await open_simulated(dsn, lock_timeout="1ms")
    await holder.run_script("create table held (n int); insert into held values (0)")
    async with holder.transaction():
        await holder.execute("update held set n = 1")
        for _ in range(3):
            with pytest.raises(psycopg.errors.LockNotAvailable):
                await other.execute("update held set n = 2")
    assert await other.execute("update held set n = 2") == "UPDATE 1"
    holder.close()
    other.close()


async def test_a_statement_that_waits_for_a_task_gives_the_loop_back(dsn: str) -> None:
    connection = await open_simulated(dsn, patience_s=0.05)
    with pytest.raises(RuntimeError, match="no answer in"):
        await connection.execute("select pg_sleep(3600)")
    assert connection.broken


async def test_a_pipeline_bigger_than_every_buffer_does_not_deadlock(dsn: str) -> None:
    connection = await open_simulated(dsn)
    big = "x" * 3_000_000
    rows = await connection.fetch_many("select $1::text as text", [(big,)] * 10)
    assert [len(row.text) for (row,) in rows] == [3_000_000] * 10
    connection.close()
