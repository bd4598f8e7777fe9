"""The pool: never more than its size, in order of arrival, and back on its feet by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import psycopg
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from understudy.store.connection import Connection, open_connection
from understudy.store.embedded import EmbeddedServer
from understudy.store.errors import DatabaseUnavailable
from understudy.store.pool import Pool

LIMIT_S = 60
SIZE = 2


@pytest.fixture
async def pool(dsn: str) -> AsyncIterator[Pool]:
    pool = Pool(partial(open_connection, dsn), size=SIZE)
    yield pool
    await pool.aclose()


async def kill(dsn: str, pid: int) -> None:
    observer = await open_connection(dsn)
    await observer.execute("select pg_terminate_backend($1)", pid)
    gone = "select not exists (select from pg_stat_activity where pid = $1)"
    with trio.fail_after(LIMIT_S):
        while not await observer.fetchval(gone, pid):
            pass
    observer.close()


async def test_the_verbs_answer(pool: Pool) -> None:
    assert await pool.fetch("select generate_series(1, $1)", 2) == [(1,), (2,)]
    assert await pool.fetchrow("select 1, 2") == (1, 2)
    assert await pool.fetchval("select 1") == 1
    assert await pool.execute("select 1") == "SELECT 1"
    await pool.check()
    assert pool.statistics().opened == 1


async def test_a_pool_is_never_larger_than_its_size(pool: Pool) -> None:
    in_use = peak = 0

    async def query() -> None:
        nonlocal in_use, peak
        async with pool.connection() as connection:
            in_use += 1
            peak = max(peak, in_use)
            await connection.execute("select pg_sleep(0.001)")
            in_use -= 1

    async with trio.open_nursery() as nursery:
        for _ in range(30):
            nursery.start_soon(query)
    assert peak == SIZE
    assert pool.statistics().opened == SIZE


async def test_the_last_connection_used_is_the_next_one(pool: Pool) -> None:
    async with pool.connection() as first, pool.connection():
        pass
    async with pool.connection() as again:
        assert again is first


async def test_who_came_first_is_served_first(dsn: str) -> None:
    served: list[int] = []
    pool = Pool(partial(open_connection, dsn), size=1)

    async def ask(n: int) -> None:
        async with pool.connection():
            served.append(n)

    async with trio.open_nursery() as nursery:
        async with pool.connection():
            for n in range(5):
                nursery.start_soon(ask, n)
                await wait_all_tasks_blocked()
            assert pool.statistics().waiting == 5
        nursery.start_soon(ask, 5)
    assert served == list(range(6))
    await pool.aclose()


async def test_who_gives_up_waiting_takes_no_slot_along(pool: Pool) -> None:
    async with pool.connection(), pool.connection():
        with trio.move_on_after(0.01) as scope:
            await pool.fetchval("select 1")
        assert scope.cancelled_caught
    statistics = pool.statistics()
    assert (statistics.idle, statistics.in_use, statistics.waiting) == (SIZE, 0, 0)


async def test_a_transaction_commits_or_rolls_back(pool: Pool) -> None:
    await pool.execute("create table moved (n int)")
    async with pool.transaction() as connection:
        await connection.execute("insert into moved values (1)")
    with pytest.raises(ZeroDivisionError):
        async with pool.transaction() as connection:
            await connection.execute("insert into moved values (2)")
            raise ZeroDivisionError
    assert await pool.fetch("select n from moved") == [(1,)]


async def test_an_error_costs_no_connection(pool: Pool) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        await pool.fetchval("select 1 / 0")
    assert await pool.fetchval("select 1") == 1
    assert pool.statistics().opened == 1


async def test_a_connection_given_back_in_a_transaction_is_not_used_again(pool: Pool) -> None:
    async with pool.connection() as connection:
        await connection.execute("begin")
    assert connection.closed
    assert pool.statistics().discarded == 1
    assert await pool.fetchval("select 1") == 1


async def test_a_connection_given_back_in_use_is_not_used_again(pool: Pool) -> None:
    async def overstay(connection: Connection) -> None:
        with pytest.raises(DatabaseUnavailable):
            await connection.execute("select pg_sleep(3600)")

    async with trio.open_nursery() as nursery, pool.connection() as connection:
        nursery.start_soon(overstay, connection)
        await wait_all_tasks_blocked()
    assert await pool.fetchval("select 1") == 1


async def test_a_cancelled_query_costs_no_connection(pool: Pool) -> None:
    with trio.move_on_after(0.05) as scope:
        await pool.execute("select pg_sleep(3600)")
    assert scope.cancelled_caught
    assert await pool.fetchval("select 1") == 1
    assert pool.statistics().opened == 1


async def test_nobody_notices_that_an_idle_connection_was_killed(pool: Pool, dsn: str) -> None:
    async with pool.connection() as connection:
        pid = connection.backend_pid
    await kill(dsn, pid)
    assert await pool.fetchval("select 1") == 1
    assert (pool.statistics().opened, pool.statistics().discarded) == (2, 1)


async def test_a_connection_killed_in_use_is_replaced(pool: Pool, dsn: str) -> None:
    with pytest.raises(DatabaseUnavailable):
        async with pool.connection() as connection:
            await kill(dsn, connection.backend_pid)
            await connection.execute("select 1")
    assert await pool.fetchval("select 1") == 1


async def test_a_pool_outlives_its_server(pool: Pool, server: EmbeddedServer) -> None:
    async with pool.connection(), pool.connection():
        pass
    server.stop()
    try:
        with trio.fail_after(LIMIT_S):
            for _ in range(2 * SIZE):
                with pytest.raises(DatabaseUnavailable):
                    await pool.check()
    finally:
        server.start()
    await pool.check()
    statistics = pool.statistics()
    assert (statistics.idle, statistics.in_use, statistics.discarded) == (1, 0, SIZE)


async def test_a_server_that_dies_under_a_statement_fails_it(
    pool: Pool, server: EmbeddedServer
) -> None:
    async def fail() -> None:
        with pytest.raises(DatabaseUnavailable):
            await pool.execute("select pg_sleep(3600)")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail)
        nursery.start_soon(fail)
        await wait_until_all_sleep(server)
        await trio.to_thread.run_sync(server.stop)
        await trio.to_thread.run_sync(server.start)
    assert await pool.fetchval("select 1") == 1


async def wait_until_all_sleep(server: EmbeddedServer) -> None:
    observer = await open_connection(server.dsn("postgres"))
    sleeping = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'"
    with trio.fail_after(LIMIT_S):
        while await observer.fetchval(sleeping) < SIZE:
            pass
    observer.close()


async def test_who_waits_while_the_server_is_away_hears_of_it() -> None:
    refusals = 0
    gate = trio.Event()

    async def refuse() -> Connection:
        await gate.wait()
        raise DatabaseUnavailable("away")

    async def ask(pool: Pool) -> None:
        nonlocal refusals
        with pytest.raises(DatabaseUnavailable, match="away"):
            await pool.check()
        refusals += 1

    pool = Pool(refuse, size=1)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask, pool)
        await wait_all_tasks_blocked()
        gate.set()
    assert refusals == 3
    assert pool.statistics().in_use == 0


async def test_a_closed_pool_refuses_who_waits_and_who_comes(pool: Pool) -> None:
    async def be_refused() -> None:
        with pytest.raises(DatabaseUnavailable, match="closed"):
            await pool.fetchval("select 1")

    async with (
        trio.open_nursery() as nursery,
        pool.connection() as connection,
        pool.connection(),
    ):
        nursery.start_soon(be_refused)
        await wait_all_tasks_blocked()
        await pool.aclose()
        assert await connection.fetchval("select 1") == 1
    await be_refused()
    statistics = pool.statistics()
    assert (statistics.idle, statistics.in_use, statistics.waiting) == (0, 0, 0)
    assert connection.closed


async def test_waiting_is_measured(pool: Pool) -> None:
    async with (
        trio.open_nursery() as nursery,
        pool.connection() as connection,
        pool.connection(),
    ):
        before = pool.statistics()
        nursery.start_soon(pool.check)
        await wait_all_tasks_blocked()
        await connection.execute("select pg_sleep(0.1)")
    after = pool.statistics()
    assert after.acquire_wait_s_total >= before.acquire_wait_s_total + 0.09
    assert after.acquire_wait_s_total >= after.acquire_wait_s_max >= 0.09
