"""A statement that returned was executed; one that was cancelled was not, or all is broken."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from random import Random

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from understudy.store import session, transaction
from understudy.store.connection import Connection, open_connection
from understudy.store.errors import DatabaseUnavailable

LIMIT_S = 60
STORM = 150


@pytest.fixture
async def connection(dsn: str) -> AsyncIterator[Connection]:
    connection = await open_connection(dsn)
    yield connection
    connection.close()


@pytest.fixture
async def other(dsn: str) -> AsyncIterator[Connection]:
    connection = await open_connection(dsn)
    yield connection
    connection.close()


@pytest.fixture
def dice(request: pytest.FixtureRequest) -> Random:
    return Random(request.config.getoption("--seed"))


async def wait_until_busy(observer: Connection, pid: int) -> None:
    busy = "select state = 'active' from pg_stat_activity where pid = $1"
    with trio.fail_after(LIMIT_S):
        while not await observer.fetchval(busy, pid):
            pass


async def cancel_midway(
    connection: Connection, other: Connection, doing: Callable[[], Awaitable[object]]
) -> bool:
    """Whether what was done was cancelled, by a scope that ends once the server is at it."""
    scope = trio.CancelScope()

    async def do() -> None:
        with scope:
            await doing()

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(do)
            await wait_until_busy(other, connection.backend_pid)
            scope.cancel()
    return scope.cancelled_caught


async def test_a_cancelled_statement_leaves_the_connection_usable(
    connection: Connection, other: Connection
) -> None:
    async def sleep() -> None:
        await connection.execute("select pg_sleep(3600)")

    assert await cancel_midway(connection, other, sleep)
    assert await connection.fetchval("select 1") == 1


async def test_a_statement_that_ends_within_the_grace_returns(
    connection: Connection, other: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[int] = []

    async def ask() -> None:
        answers.append(await connection.fetchval("select 1 from pg_sleep(0.2)"))
        await connection.execute("select 2")

    monkeypatch.setattr(session, "GRACE_S", LIMIT_S)
    assert await cancel_midway(connection, other, ask)
    assert answers == [1]


async def test_a_cancelled_scope_sends_nothing(connection: Connection) -> None:
    await connection.execute("create temp table t (n int)")
    with trio.CancelScope() as scope:
        scope.cancel()
        await connection.execute("insert into t values (1)")
    assert scope.cancelled_caught
    assert await connection.fetch("select * from t") == []


async def test_no_cancelled_loop_of_statements_goes_on_for_ever(connection: Connection) -> None:
    with trio.move_on_after(0.01) as scope:
        while True:
            await connection.fetchval("select 1")
    assert scope.cancelled_caught


async def test_a_cancelled_transaction_is_rolled_back(
    connection: Connection, other: Connection
) -> None:
    async def work() -> None:
        async with connection.transaction():
            await connection.execute("insert into t values (1)")
            async with connection.transaction():
                await connection.execute("insert into t values (2)")
                await connection.execute("select pg_sleep(3600)")

    await connection.execute("create temp table t (n int)")
    assert await cancel_midway(connection, other, work)
    assert await connection.fetch("select * from t") == []


async def test_cancelled_before_commit_is_rolled_back(connection: Connection) -> None:
    await connection.execute("create temp table t (n int)")
    with trio.CancelScope() as scope:
        async with connection.transaction():
            await connection.execute("insert into t values (1)")
            scope.cancel()
    assert scope.cancelled_caught
    assert await connection.fetch("select * from t") == []
    assert not connection.closed


SLOW_COMMIT = """
create table {name} (n int);
create function {name}() returns trigger language plpgsql as $$
begin
  perform pg_sleep(0.3);
  return null;
end $$;
create constraint trigger slow after insert on {name}
  deferrable initially deferred for each row execute function {name}();
"""


async def test_a_commit_once_sent_is_not_cancelled(
    connection: Connection, other: Connection
) -> None:
    committed = False

    async def work() -> None:
        nonlocal committed
        async with connection.transaction():
            await connection.execute("insert into slow values (1)")
        committed = True
        await connection.execute("select 1")

    await connection.run_script(SLOW_COMMIT.format(name="slow"))
    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:

        async def do() -> None:
            with scope:
                await work()

        nursery.start_soon(do)
        await wait_until_commits(other, connection.backend_pid)
        scope.cancel()
    assert committed
    assert scope.cancelled_caught
    assert await connection.fetch("select * from slow") == [(1,)]


async def wait_until_commits(observer: Connection, pid: int) -> None:
    commits = "select query = 'commit' and state = 'active' from pg_stat_activity where pid = $1"
    with trio.fail_after(LIMIT_S):
        while not await observer.fetchval(commits, pid):
            pass


async def test_a_cancelled_pipeline_did_nothing(connection: Connection, other: Connection) -> None:
    async def insert() -> None:
        slowly = "insert into t select $1::int from pg_sleep(0.05)"
        await connection.fetch_many(slowly, [(n,) for n in range(10_000)])

    await connection.execute("create temp table t (n int)")
    assert await cancel_midway(connection, other, insert)
    assert await connection.fetch("select * from t") == []


async def test_a_cancelled_copy_in_copied_nothing(
    connection: Connection, other: Connection
) -> None:
    def endless() -> Iterator[tuple[int]]:
        while True:
            yield (1,)

    async def copy() -> None:
        await connection.copy_in("copy t from stdin", endless())

    await connection.execute("create temp table t (n int)")
    assert await cancel_midway(connection, other, copy)
    assert await connection.fetch("select * from t") == []


async def test_a_cancelled_copy_out_leaves_the_connection_usable(
    connection: Connection, other: Connection
) -> None:
    endless = "copy (select generate_series(1, 1000000000)) to stdout"

    async def copy() -> None:
        async with aclosing(connection.copy_out(endless)) as lines:
            async for _ in lines:
                pass

    assert await cancel_midway(connection, other, copy)
    assert await connection.fetchval("select 1") == 1


@contextmanager
def frozen(connection: Connection) -> Iterator[None]:
    """Its server process answers nothing."""
    pid = connection.backend_pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_an_unanswered_cancellation_breaks_the_connection(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "STOP_S", 0.1)
    with frozen(connection), trio.move_on_after(0.01) as scope:
        await connection.execute("select 1")
    assert scope.cancelled_caught
    assert connection.broken


async def test_who_is_cancelled_while_the_server_dies_hears_of_the_cancellation(
    connection: Connection, other: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "GRACE_S", LIMIT_S)
    async with trio.open_nursery() as nursery:
        with frozen(connection):
            await other.execute("select pg_terminate_backend($1)", connection.backend_pid)
            nursery.start_soon(connection.execute, "select 1")
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert connection.broken


async def test_an_unanswered_commit_breaks_the_connection(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "COMMIT_S", 0.1)
    with ExitStack() as stack, trio.move_on_after(0.05) as scope:
        async with connection.transaction():
            stack.enter_context(frozen(connection))
    assert scope.cancelled_caught
    assert connection.broken


async def test_an_unanswered_rollback_breaks_the_connection(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "STOP_S", 0.05)
    monkeypatch.setattr(transaction, "ROLLBACK_S", 0.05)
    with ExitStack() as stack, pytest.raises(ZeroDivisionError):
        async with connection.transaction():
            stack.enter_context(frozen(connection))
            raise ZeroDivisionError
    assert connection.broken


async def test_a_rollback_that_gets_no_turn_breaks_the_connection(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def take_the_turn() -> None:
        with pytest.raises(DatabaseUnavailable):
            await connection.execute("select pg_sleep(3600)")

    monkeypatch.setattr(transaction, "ROLLBACK_S", 0.05)
    async with trio.open_nursery() as nursery:
        with pytest.raises(ZeroDivisionError):
            async with connection.transaction():
                nursery.start_soon(take_the_turn)
                await wait_all_tasks_blocked()
                raise ZeroDivisionError
    assert connection.broken


async def storm(dice: Random, attempt: Callable[[], Awaitable[None]]) -> int:
    """Cancel about every other attempt at a random time; returns how many returned."""
    returned = 0
    longest_s = 0.01
    with trio.fail_after(LIMIT_S):
        for _ in range(STORM):
            with trio.move_on_after(dice.uniform(0, longest_s)) as scope:
                await attempt()
                returned += 1
            longest_s *= 1.2 if scope.cancelled_caught else 0.8
    assert 0 < returned < STORM
    return returned


@pytest.fixture
async def counter(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> Connection:
    monkeypatch.setattr(session, "GRACE_S", 0.001)
    await connection.execute("create temp table t as select 0 as n")
    return connection


async def test_a_storm_of_cancelled_statements_counts_exactly(
    counter: Connection, dice: Random
) -> None:
    async def add() -> None:
        await counter.execute("update t set n = n + 1 from pg_sleep(0.004)")

    assert await storm(dice, add) == await counter.fetchval("select n from t")


async def test_a_storm_of_cancelled_pipelines_counts_exactly(
    counter: Connection, dice: Random
) -> None:
    async def add() -> None:
        rows = [(1,)] * 40
        await counter.fetch_many("update t set n = n + $1 from pg_sleep(0.0001)", rows)

    assert 40 * await storm(dice, add) == await counter.fetchval("select n from t")


async def test_a_storm_of_cancelled_transactions_counts_exactly(
    counter: Connection, dice: Random
) -> None:
    async def add() -> None:
        async with counter.transaction():
            await counter.execute("update t set n = n + 1 from pg_sleep(0.001)")
            await counter.execute("update t set n = n + 1 from pg_sleep(0.001)")

    assert 2 * await storm(dice, add) == await counter.fetchval("select n from t")
