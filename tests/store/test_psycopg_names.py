"""What we use of psycopg beyond its documentation, name by name, for the next upgrade."""

from __future__ import annotations

import selectors
from collections.abc import Iterator
from contextlib import closing
from typing import TypeVar

import psycopg
import pytest
from psycopg import generators, pq
from psycopg.abc import PQGen
from psycopg.adapt import AdaptersMap, PyFormat, Transformer
from psycopg.conninfo import conninfo_attempts, timeout_from_conninfo
from psycopg.pq.abc import PGconn, PGresult
from psycopg.types.json import Jsonb, set_json_dumps, set_json_loads
from psycopg.waiting import Ready, Wait, wait

R = TypeVar("R")
BINARY = pq.Format.BINARY
INT4, JSONB = 23, 3802


@pytest.fixture
def pgconn(dsn: str) -> Iterator[PGconn]:
    pgconn = pq.PGconn.connect(dsn.encode())
    pgconn.nonblocking = 1
    yield pgconn
    pgconn.finish()


def drive(pgconn: PGconn, steps: PQGen[R]) -> R:
    return wait(steps, pgconn.socket)


def ask(pgconn: PGconn, sql: bytes) -> PGresult:
    pgconn.send_query(sql)
    results: list[PGresult] = drive(pgconn, generators.execute(pgconn))
    return results[0]


def test_waits_are_numbered_like_the_events_of_selectors() -> None:
    assert list(Wait) == [selectors.EVENT_READ, selectors.EVENT_WRITE, 3]
    assert list(Ready) == [0, selectors.EVENT_READ, selectors.EVENT_WRITE, 3]


def test_the_steps_of_execute_are_plain_python_to_be_resumed_with_none_ready(
    pgconn: PGconn,
) -> None:
    pgconn.send_query(b"select 1 from pg_sleep(0.1)")
    steps = generators.execute(pgconn)
    assert next(steps) == Wait.R
    assert steps.send(Ready.NONE) == Wait.R
    assert steps.send(Ready.NONE) == Wait.R
    assert pgconn.transaction_status == pq.TransactionStatus.ACTIVE


def test_execute_returns_errors_as_results_and_error_from_result_reads_them(
    pgconn: PGconn,
) -> None:
    result = ask(pgconn, b"select 1 / 0")
    assert result.status == pq.ExecStatus.FATAL_ERROR
    error = psycopg.errors.error_from_result(result)
    assert isinstance(error, psycopg.errors.DivisionByZero)
    assert error.diag.severity_nonlocalized == "ERROR"


def test_send_and_fetch_many_speak_pipeline(pgconn: PGconn) -> None:
    pgconn.enter_pipeline_mode()
    for number in (b"1", b"2"):
        pgconn.send_query_params(b"select $1", [number])
    pgconn.pipeline_sync()
    drive(pgconn, generators.send(pgconn))
    answers = [drive(pgconn, generators.fetch_many(pgconn)) for _ in range(3)]
    assert [answer[0].get_value(0, 0) for answer in answers[:2]] == [b"1", b"2"]
    assert [result.status for result in answers[2]] == [pq.ExecStatus.PIPELINE_SYNC]
    pgconn.exit_pipeline_mode()


def test_copy_generators_copy(pgconn: PGconn) -> None:
    ask(pgconn, b"create temp table t (n int)")
    assert ask(pgconn, b"copy t from stdin").status == pq.ExecStatus.COPY_IN
    drive(pgconn, generators.copy_to(pgconn, b"1\n2\n"))
    assert drive(pgconn, generators.copy_end(pgconn, None)).command_tuples == 2
    assert ask(pgconn, b"copy t to stdout").status == pq.ExecStatus.COPY_OUT
    lines = [drive(pgconn, generators.copy_from(pgconn)) for _ in range(3)]
    assert [bytes(line) for line in lines if isinstance(line, memoryview)] == [b"1\n", b"2\n"]
    assert pgconn.transaction_status == pq.TransactionStatus.IDLE


def test_copy_end_with_an_error_raises_that_it_failed(pgconn: PGconn) -> None:
    ask(pgconn, b"create temp table t (n int)")
    ask(pgconn, b"copy t from stdin")
    with pytest.raises(psycopg.errors.QueryCanceled):
        drive(pgconn, generators.copy_end(pgconn, b"never mind"))


def test_notifications_reach_the_handler_by_every_way(pgconn: PGconn, dsn: str) -> None:
    heard: list[bytes] = []
    pgconn.notify_handler = lambda note: heard.append(note.extra)
    ask(pgconn, b"listen x")
    ask(pgconn, b"notify x, 'execute'")
    with closing(psycopg.connect(dsn, autocommit=True)) as sender:
        sender.execute("notify x, 'notifies'")
        drive(pgconn, generators.notifies(pgconn))
    assert heard == [b"execute", b"notifies"]


def test_a_transformer_works_from_a_description_without_a_connection(pgconn: PGconn) -> None:
    pgconn.send_prepare(b"s", b"select $1::int as n, $2::jsonb as j")
    drive(pgconn, generators.execute(pgconn))
    pgconn.send_describe_prepared(b"s")
    ((description,), transformer) = (drive(pgconn, generators.execute(pgconn)), Transformer())
    transformer.set_dumper_types([INT4, JSONB], BINARY)
    transformer.set_pgresult(description, format=BINARY)
    dumped = transformer.dump_sequence((7, {"a": 1}), (PyFormat.AUTO,) * 2)
    pgconn.send_query_prepared(b"s", dumped, [BINARY, BINARY], BINARY)
    (result,) = drive(pgconn, generators.execute(pgconn))
    transformer.set_pgresult(result, set_loaders=False)
    assert transformer.load_row(0, tuple) == (7, {"a": 1})
    assert transformer.load_rows(0, 1, list) == [[7, {"a": 1}]]


def test_json_functions_are_set_for_one_map_only() -> None:
    ours = AdaptersMap(psycopg.adapters)
    set_json_dumps(lambda value: b"[]", ours)
    set_json_loads(lambda data: "loaded", ours)
    ours.register_dumper(dict, ours.get_dumper(Jsonb, PyFormat.TEXT))
    transformer = Transformer(ours)
    assert transformer.dump_sequence(({},), [PyFormat.TEXT]) == [b"[]"]
    assert transformer.get_loader(JSONB, pq.Format.TEXT).load(b"1") == "loaded"
    assert Transformer().get_loader(JSONB, pq.Format.TEXT).load(b"1") == 1


def test_conninfo_attempts_gives_one_set_of_parameters_per_address() -> None:
    hosts = {"host": "/a,127.0.0.1", "port": "1,2"}
    first, second = conninfo_attempts(hosts)
    assert (first["host"], first["port"]) == ("/a", "1")
    assert (second["hostaddr"], second["port"]) == ("127.0.0.1", "2")


def test_timeout_from_conninfo_is_in_seconds() -> None:
    assert timeout_from_conninfo({"connect_timeout": "7"}) == 7


def test_our_libpq_cancels_without_blocking(pgconn: PGconn) -> None:
    assert pq.version() >= 170000
    request = pgconn.cancel_conn()
    request.start()
    assert request.poll() in {pq.PollingStatus.READING, pq.PollingStatus.WRITING}
    request.finish()
