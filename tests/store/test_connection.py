"""What a connection promises its callers, on a real server."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import psycopg
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from understudy.store.connection import Connection, open_connection
from understudy.store.dialling import open_session
from understudy.store.errors import DatabaseUnavailable
from understudy.store.waits import SocketWaits

LIMIT_S = 60


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


async def wait_until_busy(observer: Connection, pid: int) -> None:
    busy = "select state = 'active' from pg_stat_activity where pid = $1"
    with trio.fail_after(LIMIT_S):
        while not await observer.fetchval(busy, pid):
            pass


async def wait_until_gone(observer: Connection, pid: int) -> None:
    gone = "select not exists (select from pg_stat_activity where pid = $1)"
    with trio.fail_after(LIMIT_S):
        while not await observer.fetchval(gone, pid):
            pass


async def kill(observer: Connection, victim: Connection) -> None:
    pid = victim.backend_pid
    await observer.execute("select pg_terminate_backend($1)", pid)
    await wait_until_gone(observer, pid)


async def count(connection: Connection, table: str) -> int:
    found: int = await connection.fetchval(f"select count(*) from {table}")
    return found


# Rows.


async def test_a_record_is_read_by_position_name_and_attribute(connection: Connection) -> None:
    row = await connection.fetchrow("select 7 as id, 'x' as state, 3 as count")
    assert row is not None
    assert list(row) == [7, "x", 3]
    assert (row[0], row[-1], row[:2]) == (7, 3, (7, "x"))
    assert (row["state"], row.state, row["count"]) == ("x", "x", 3)
    assert row.as_dict() == {"id": 7, "state": "x", "count": 3}


async def test_a_column_that_is_not_there_is_named(connection: Connection) -> None:
    row = await connection.fetchrow("select 7 as id, 'x' as state")
    assert row is not None
    with pytest.raises(AttributeError, match="no column status among id, state"):
        _ = row.status
    with pytest.raises(KeyError, match="status"):
        _ = row["status"]


async def test_no_row_is_none(connection: Connection) -> None:
    assert await connection.fetchrow("select 1 where false") is None
    assert await connection.fetchval("select 1 where false") is None
    assert await connection.fetch("select 1 where false") == []


async def test_execute_says_what_was_done(connection: Connection) -> None:
    await connection.execute("create temp table t (n int)")
    assert await connection.execute("insert into t values ($1), ($2)", 1, 2) == "INSERT 0 2"
    assert await connection.execute("delete from t") == "DELETE 2"


# Types.


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("bigint", 2**62),
        ("int", None),
        ("text", "ü\n\\"),
        ("boolean", True),
        ("double precision", 0.1),
        ("numeric", Decimal("1.50")),
        ("bytea", b"\x00\xff"),
        ("uuid", UUID(int=7)),
        ("date", date(2026, 2, 28)),
        ("interval", timedelta(days=2, seconds=0.5)),
        ("timestamptz", datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)),
        ("jsonb", {"a": [1, None, {"b": "\u2028"}]}),
        ("jsonb", [1, "two"]),
        ("json", {"a": 0.5}),
        ("text[]", ["a", None, 'b"c']),
        ("uuid[]", [UUID(int=1), UUID(int=2)]),
        ("bigint[]", []),
        ("jsonb[]", [{"a": 1}, {"b": [2]}]),
    ],
)
async def test_a_value_comes_back_as_it_went(
    connection: Connection, kind: str, value: object
) -> None:
    found = await connection.fetchval(f"select $1::{kind}", value)
    assert found == value
    assert type(found) is type(value)


async def test_the_server_infers_what_an_argument_is(connection: Connection) -> None:
    await connection.execute("create temp table t (id bigint, payload jsonb, labels text[])")
    await connection.execute("insert into t values ($1, $2, $3)", 5, {"a": [1]}, ["x", "y"])
    assert await connection.fetchrow("select * from t where payload = $1", {"a": [1]}) == (
        5,
        {"a": [1]},
        ["x", "y"],
    )


async def test_times_come_back_in_utc_whatever_the_client_says(dsn: str) -> None:
    connection = await open_connection(f"{dsn} options='-c timezone=Asia/Tokyo'")
    assert await connection.fetchval("show timezone") == "UTC"
    found = await connection.fetchval("select '2026-01-02 03:04+05'::timestamptz")
    assert found.utcoffset() == timedelta(0)
    connection.close()


async def test_a_naive_datetime_is_refused(connection: Connection) -> None:
    with pytest.raises(TypeError):
        await connection.fetchval("select $1::timestamptz", datetime(2026, 1, 1))  # noqa: DTZ001 - that is the point
    assert await connection.fetchval("select 1") == 1


async def test_a_missing_argument_is_refused_before_anything_is_sent(
    connection: Connection,
) -> None:
    with pytest.raises(TypeError, match="2 arguments expected, got 1"):
        await connection.fetchval("select $1::int + $2::int", 1)
    assert await connection.fetchval("select $1::int + $2::int", 1, 2) == 3


# The session.


async def test_options_are_the_sessions_settings(dsn: str) -> None:
    options = {"lock_timeout": "7s", "search_path": r'"a b", "c\d"'}
    connection = await open_connection(dsn, options=options)
    assert await connection.fetchval("show lock_timeout") == "7s"
    assert await connection.fetchval("show search_path") == r'"a b", "c\d"'
    assert await connection.fetchval("show application_name") == "understudy"
    connection.close()


async def test_no_thread_is_started_on_the_way_to_an_answer(dsn: str) -> None:
    before = set(threading.enumerate())
    connection = await open_connection(dsn)
    with trio.move_on_after(0.01):
        await connection.execute("select pg_sleep(60)")
    await connection.fetchval("select 1")
    connection.close()
    assert set(threading.enumerate()) <= before


async def test_a_notice_is_not_printed(
    connection: Connection, capfd: pytest.CaptureFixture[str]
) -> None:
    await connection.execute("do $$ begin raise notice 'psst'; end $$")
    assert capfd.readouterr() == ("", "")


# Prepared statements.

PREPARED = "select count(*) from pg_prepared_statements"


async def test_a_statement_is_prepared_once(connection: Connection) -> None:
    for n in range(5):
        assert await connection.fetchval("select $1::int", n) == n
    assert await connection.fetchval(PREPARED) == 2


async def test_no_more_statements_are_kept_than_agreed(dsn: str) -> None:
    connection = Connection(await open_session(dsn, {}, SocketWaits()), statements_max=3)
    for n in range(10):
        assert await connection.fetchval(f"select {n}") == n
        assert await connection.fetchval(PREPARED) <= 3
    kept = await connection.fetch("select statement from pg_prepared_statements")
    assert {row.statement for row in kept} >= {PREPARED, "select 9"}
    connection.close()


async def test_a_changed_table_costs_no_error(connection: Connection, other: Connection) -> None:
    await connection.execute("create table changing (a int)")
    await connection.execute("insert into changing values (1)")
    assert await connection.fetch("select * from changing") == [(1,)]
    await other.execute("alter table changing add b text default 'x'")
    row = await connection.fetchrow("select * from changing")
    assert row is not None
    assert row.as_dict() == {"a": 1, "b": "x"}
    await other.execute("alter table changing drop a")
    assert await connection.fetch_many("select * from changing", [(), ()]) == [[("x",)]] * 2


async def test_a_changed_table_fails_the_transaction_it_surprises(
    connection: Connection, other: Connection
) -> None:
    await connection.execute("create table surprising (a int)")
    await connection.fetch("select * from surprising")
    await other.execute("alter table surprising add b text")
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        async with connection.transaction():
            await connection.fetch("select * from surprising")
    async with connection.transaction():
        assert await connection.fetch("select * from surprising") == []


async def test_statements_the_server_forgot_are_prepared_again(connection: Connection) -> None:
    assert await connection.fetchval("select 1") == 1
    await connection.run_script("deallocate all")
    assert await connection.fetchval("select 1") == 1


async def test_a_refusal_that_looks_like_a_changed_table_passes(connection: Connection) -> None:
    await connection.execute("create temp sequence executions")
    refuse = """do $$ begin
      perform nextval('executions'); raise exception 'no' using errcode = '0A000'; end $$"""
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="no"):
        await connection.execute(refuse)
    assert await connection.fetchval("select nextval('executions')") == 2


# Errors.


async def test_a_violated_constraint_leaves_the_connection_usable(connection: Connection) -> None:
    await connection.execute("create temp table t (n int primary key)")
    await connection.execute("insert into t values (1)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        await connection.execute("insert into t values (1)")
    assert await count(connection, "t") == 1


async def test_statement_timeout_is_not_a_cancellation(dsn: str) -> None:
    connection = await open_connection(dsn, options={"statement_timeout": "10ms"})
    with pytest.raises(psycopg.errors.QueryCanceled):
        await connection.execute("select pg_sleep(60)")
    assert await connection.fetchval("select 1") == 1
    connection.close()


async def test_a_lock_is_waited_for_no_longer_than_agreed(dsn: str, connection: Connection) -> None:
    await connection.execute("create table locked (n int)")
    hasty = await open_connection(dsn, options={"lock_timeout": "10ms"})
    async with connection.transaction():
        await connection.execute("lock table locked")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            await hasty.fetch("select * from locked")
    assert await hasty.fetch("select * from locked") == []
    hasty.close()


async def test_copy_by_the_wrong_verb_breaks_the_connection(connection: Connection) -> None:
    await connection.execute("create temp table t (n int)")
    with pytest.raises(ValueError, match="COPY_IN"):
        await connection.execute("copy t from stdin")
    assert connection.broken


# Scripts and pipelines.


async def test_a_script_is_all_or_nothing(connection: Connection) -> None:
    await connection.run_script("create table one (n int); insert into one values (1), (2)")
    assert await count(connection, "one") == 2
    with pytest.raises(psycopg.errors.DivisionByZero):
        await connection.run_script("delete from one; select 1 / 0; drop table one")
    assert await count(connection, "one") == 2


async def test_an_empty_script_is_fine(connection: Connection) -> None:
    await connection.run_script("-- nothing yet")


async def test_fetch_many_answers_each_row_of_arguments(connection: Connection) -> None:
    series = "select generate_series(1, $1::int) as n"
    assert await connection.fetch_many(series, [(2,), (0,), (1,)]) == [[(1,), (2,)], [], [(1,)]]
    assert await connection.fetch_many(series, []) == []


async def test_fetch_many_is_one_transaction(connection: Connection) -> None:
    await connection.execute("create temp table t (n int primary key)")
    insert = "insert into t values ($1)"
    with pytest.raises(psycopg.errors.UniqueViolation):
        await connection.fetch_many(insert, [(n % 150,) for n in range(200)])
    assert await count(connection, "t") == 0
    await connection.fetch_many(insert, [(n,) for n in range(200)])
    assert await count(connection, "t") == 200


async def test_fetch_many_raises_what_only_its_commit_finds(connection: Connection) -> None:
    await connection.execute(
        "create temp table t (n int unique deferrable initially deferred)",
    )
    with pytest.raises(psycopg.errors.UniqueViolation):
        await connection.fetch_many("insert into t values ($1)", [(1,), (1,)])
    assert await count(connection, "t") == 0


async def test_a_pipeline_bigger_than_every_buffer_does_not_deadlock(
    connection: Connection,
) -> None:
    big = "x" * 3_000_000
    with trio.fail_after(LIMIT_S):
        rows = await connection.fetch_many("select $1::text as text", [(big,)] * 10)
    assert [len(row.text) for (row,) in rows] == [3_000_000] * 10


# COPY.


async def test_copied_rows_come_back_as_they_went(connection: Connection) -> None:
    await connection.execute("create temp table t (id int, text text, payload jsonb)")
    rows = [(1, "tab\tline\nback\\slash", {"a": "\n"}), (2, None, None), (3, r"\N", {})]
    assert await connection.copy_in("copy t from stdin", rows) == 3
    assert await connection.fetch("select * from t order by id") == rows


async def test_copying_more_than_a_block(connection: Connection) -> None:
    await connection.execute("create temp table t (n int, text text)")
    copied = await connection.copy_in("copy t from stdin", ((n, "x" * 99) for n in range(20_000)))
    assert copied == 20_000
    async with aclosing(
        connection.copy_out("copy (select n from t order by n) to stdout")
    ) as lines:
        assert [int(line) async for line in lines] == list(range(20_000))


async def test_a_failing_source_copies_nothing(connection: Connection) -> None:
    def rows() -> Iterator[tuple[int]]:
        yield from ((n,) for n in range(50_000))
        raise ZeroDivisionError

    await connection.execute("create temp table t (n int)")
    with pytest.raises(ZeroDivisionError):
        await connection.copy_in("copy t from stdin", rows())
    assert await count(connection, "t") == 0


async def test_a_row_the_server_refuses_copies_nothing(connection: Connection) -> None:
    await connection.execute("create temp table t (n int)")
    with pytest.raises(psycopg.errors.InvalidTextRepresentation):
        await connection.copy_in("copy t from stdin", [(1,), ("two",)])
    assert await count(connection, "t") == 0


@pytest.mark.parametrize("sql", ["select 1", "copy t to stdout"])
async def test_copy_in_wants_a_copy_from_stdin(connection: Connection, sql: str) -> None:
    await connection.execute("create temp table t (n int)")
    with pytest.raises(ValueError, match="COPY_"):
        await connection.copy_in(sql, [(1,)])


async def test_a_copy_of_what_is_not_there_is_refused(connection: Connection) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable):
        await connection.copy_in("copy atlantis from stdin", [(1,)])
    assert await connection.fetchval("select 1") == 1


async def test_a_copy_that_fails_half_way_raises(connection: Connection) -> None:
    failing = "copy (select 1 / (n - 3) from generate_series(1, 5) n) to stdout"
    with pytest.raises(psycopg.errors.DivisionByZero):
        async with aclosing(connection.copy_out(failing)) as lines:
            async for _ in lines:
                pass
    assert await connection.fetchval("select 1") == 1


async def test_a_copy_left_half_way_frees_the_connection(connection: Connection) -> None:
    endless = "copy (select generate_series(1, 1000000000)) to stdout"
    async with aclosing(connection.copy_out(endless)) as lines:
        assert await anext(lines) == b"1\n"
    assert await connection.fetchval("select 1") == 1


# Transactions.


async def test_a_transaction_commits_or_rolls_back(connection: Connection) -> None:
    await connection.execute("create temp table t (n int)")
    async with connection.transaction():
        await connection.execute("insert into t values (1)")
    with pytest.raises(ZeroDivisionError):
        async with connection.transaction():
            await connection.execute("insert into t values (2)")
            raise ZeroDivisionError
    assert await connection.fetch("select n from t") == [(1,)]


async def test_a_nested_transaction_is_undone_alone(connection: Connection) -> None:
    await connection.execute("create temp table t (n int primary key)")
    async with connection.transaction():
        await connection.execute("insert into t values (1)")
        async with connection.transaction():
            await connection.execute("insert into t values (2)")
            with pytest.raises(psycopg.errors.UniqueViolation):
                async with connection.transaction():
                    await connection.execute("insert into t values (3)")
                    await connection.execute("insert into t values (1)")
        with pytest.raises(ZeroDivisionError):
            async with connection.transaction():
                await connection.execute("insert into t values (4)")
                raise ZeroDivisionError
    assert await connection.fetch("select n from t order by n") == [(1,), (2,)]


@pytest.mark.parametrize("nested", [False, True])
async def test_a_swallowed_error_cannot_pass_for_a_commit(
    connection: Connection, *, nested: bool
) -> None:
    async def swallow() -> None:
        async with connection.transaction():
            with pytest.raises(psycopg.errors.DivisionByZero):
                await connection.execute("select 1 / 0")

    if nested:
        async with connection.transaction():
            with pytest.raises(psycopg.errors.InFailedSqlTransaction):
                await swallow()
            assert await connection.fetchval("select 1") == 1
    else:
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            await swallow()
    assert await connection.fetchval("select 1") == 1


async def test_a_commit_that_fails_raises_and_undoes(connection: Connection) -> None:
    await connection.execute("create temp table t (n int unique deferrable initially deferred)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        async with connection.transaction():
            await connection.execute("insert into t values (1), (1)")
    assert await count(connection, "t") == 0


# Sharing.


async def test_tasks_on_one_connection_take_turns(connection: Connection) -> None:
    answers: list[int] = []

    async def ask(n: int) -> None:
        answers.append(await connection.fetchval("select $1::int from pg_sleep(0.001)", n))

    async with trio.open_nursery() as nursery:
        for n in range(20):
            nursery.start_soon(ask, n)
    assert sorted(answers) == list(range(20))


async def test_who_gives_up_the_queue_holds_nobody_up(
    connection: Connection, other: Connection
) -> None:
    answers: list[int] = []

    async def ask(n: int) -> None:
        answers.append(await connection.fetchval("select $1::int", n))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.execute, "select pg_sleep(0.2)")
        await wait_until_busy(other, connection.backend_pid)
        async with trio.open_nursery() as impatient:
            impatient.start_soon(ask, 1)
            await wait_all_tasks_blocked()
            nursery.start_soon(ask, 2)
            await wait_all_tasks_blocked()
            impatient.cancel_scope.cancel()
    assert answers == [2]


# Notifications.


async def test_notifications_arrive_in_order(connection: Connection, other: Connection) -> None:
    channel = 'odd "name"'
    await connection.listen(channel)
    async with aclosing(connection.notifications()) as notifications:
        for payload in ("1", "2"):
            await other.execute("select pg_notify($1, $2)", channel, payload)
        with trio.fail_after(LIMIT_S):
            first, second = await anext(notifications), await anext(notifications)
    assert (first.payload, second.payload) == ("1", "2")
    assert (first.channel, first.sender_pid) == (channel, other.backend_pid)


async def test_a_notification_behind_an_answer_is_kept(connection: Connection) -> None:
    await connection.listen("self")
    await connection.execute("select pg_notify('self', 'x')")
    assert await connection.fetchval("select 1") == 1
    async with aclosing(connection.notifications()) as notifications:
        with trio.fail_after(LIMIT_S):
            assert (await anext(notifications)).payload == "x"


async def test_who_stops_listening_leaves_the_connection_usable(connection: Connection) -> None:
    await connection.listen("silence")
    with trio.move_on_after(0.01) as scope:
        async with aclosing(connection.notifications()) as notifications:
            await anext(notifications)
    assert scope.cancelled_caught
    assert await connection.fetchval("select 1") == 1


# Loss.


async def test_a_statement_whose_server_process_is_killed_raises(
    connection: Connection, other: Connection
) -> None:
    async def be_killed() -> None:
        with pytest.raises(DatabaseUnavailable):
            await connection.execute("select pg_sleep(3600)")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(be_killed)
        await wait_until_busy(other, connection.backend_pid)
        await kill(other, connection)
    assert connection.broken
    with pytest.raises(DatabaseUnavailable):
        await connection.fetchval("select 1")


async def test_a_transaction_whose_server_process_is_killed_raises(
    connection: Connection, other: Connection
) -> None:
    with pytest.raises(DatabaseUnavailable):
        async with connection.transaction():
            await connection.execute("select 1")
            await kill(other, connection)
            await connection.execute("select 1")
    assert connection.broken


async def test_what_ended_a_transaction_is_raised_though_rolling_back_fails(
    connection: Connection, other: Connection
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with connection.transaction():
            await kill(other, connection)
            raise ZeroDivisionError
    assert connection.broken


async def test_a_commit_whose_server_process_is_killed_raises(
    connection: Connection, other: Connection
) -> None:
    with pytest.raises(DatabaseUnavailable):
        async with connection.transaction():
            await connection.execute("select 1")
            await kill(other, connection)


async def test_a_timeout_that_ends_the_session_makes_it_unavailable(
    dsn: str, other: Connection
) -> None:
    options = {"idle_in_transaction_session_timeout": "10ms"}
    connection = await open_connection(dsn, options=options)
    with pytest.raises(DatabaseUnavailable):
        async with connection.transaction():
            await wait_until_gone(other, connection.backend_pid)
            await connection.execute("select 1")
    assert connection.broken


async def test_a_listener_hears_that_the_server_is_gone(
    connection: Connection, other: Connection
) -> None:
    async def listen() -> None:
        async with aclosing(connection.notifications()) as notifications:
            with pytest.raises(DatabaseUnavailable):
                await anext(notifications)

    await connection.listen("silence")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await wait_all_tasks_blocked()
        await kill(other, connection)


def is_open(fileno: int) -> bool:
    try:
        os.fstat(fileno)
    except OSError:
        return False
    return True


async def test_close_wakes_who_waits(connection: Connection, other: Connection) -> None:
    async def wait() -> None:
        with pytest.raises(DatabaseUnavailable):
            await connection.execute("select pg_sleep(3600)")

    fileno = connection._session.pgconn.socket
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_until_busy(other, connection.backend_pid)
        connection.close()
    assert connection.closed
    assert not connection.broken
    assert not is_open(fileno)


async def test_close_during_a_copy_frees_the_socket_as_the_copy_is_left(
    connection: Connection,
) -> None:
    fileno = connection._session.pgconn.socket
    endless = "copy (select generate_series(1, 1000000000)) to stdout"
    async with aclosing(connection.copy_out(endless)) as lines:
        await anext(lines)
        connection.close()
    assert not is_open(fileno)


async def test_close_ends_the_session_and_frees_the_socket(
    connection: Connection, other: Connection
) -> None:
    pid, fileno = connection.backend_pid, connection._session.pgconn.socket
    connection.close()
    connection.close()
    assert not is_open(fileno)
    await wait_until_gone(other, pid)


# No way in.


async def test_nobody_there_is_unavailable(dsn: str) -> None:
    with pytest.raises(DatabaseUnavailable, match="nowhere"):
        await open_connection(f"{dsn} host=/nowhere")


async def test_an_unknown_database_is_unavailable_and_named(dsn: str) -> None:
    with pytest.raises(DatabaseUnavailable, match='"atlantis" does not exist'):
        await open_connection(f"{dsn} dbname=atlantis")


async def test_too_many_clients_are_unavailable(dsn: str, connection: Connection) -> None:
    await connection.execute("create role crowded login connection limit 0")
    with pytest.raises(DatabaseUnavailable, match="too many connections"):
        await open_connection(f"{dsn} user=crowded")
    await connection.execute("drop role crowded")


async def test_a_host_name_is_looked_up_and_each_address_tried() -> None:
    (listener, *_) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    with pytest.raises(DatabaseUnavailable, match=f"port {port} failed"):
        await open_connection(f"host=localhost port={port}")


async def test_an_unknown_host_name_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: object, **__: object) -> None:
        raise socket.gaierror("never heard of it")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(DatabaseUnavailable, match="never heard of it"):
        await open_connection("host=nowhere.invalid")


async def test_the_next_host_is_tried(dsn: str) -> None:
    parameters = psycopg.conninfo.conninfo_to_dict(dsn)
    parameters["host"] = f"/nowhere,{parameters['host']}"
    parameters["port"] = f"{parameters['port']},{parameters['port']}"
    connection = await open_connection(psycopg.conninfo.make_conninfo("", **parameters))
    assert await connection.fetchval("select 1") == 1
    connection.close()


async def test_a_server_that_says_nothing_is_unavailable() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    async with listener:
        with pytest.raises(DatabaseUnavailable, match="connect_timeout"):
            await open_connection(f"host=127.0.0.1 port={port} connect_timeout=2")


async def test_connecting_can_be_cancelled() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    async with listener:
        with trio.move_on_after(0.01) as scope:
            await open_connection(f"host=127.0.0.1 port={port}")
    assert scope.cancelled_caught
