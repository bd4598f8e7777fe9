"""Prepared statements: binary both ways, the types of the arguments inferred by the server."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final, final

import msgspec
import psycopg
from psycopg import pq
from psycopg.abc import Buffer, PQGen
from psycopg.adapt import AdaptersMap, PyFormat, Transformer
from psycopg.generators import execute, fetch_many, send
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.types.json import Jsonb, set_json_dumps, set_json_loads

from understudy.store.record import Record, Value, record_maker

BINARY: Final = pq.Format.BINARY
FLUSH_EVERY: Final = 64  # requests of a pipeline

ADAPTERS: Final = AdaptersMap(psycopg.adapters)
set_json_dumps(msgspec.json.encode, ADAPTERS)
set_json_loads(msgspec.json.decode, ADAPTERS)
ADAPTERS.register_dumper(dict, ADAPTERS.get_dumper(Jsonb, PyFormat.TEXT))  # COPY has no types.


@final
class Statement:
    """What the server calls it, and how its arguments and rows are written."""

    __slots__ = ("_argument_formats", "_record", "_transformer", "_wire_formats", "name")

    def __init__(self, name: bytes, description: PGresult) -> None:
        self.name = name
        parameters = [description.param_type(n) for n in range(description.nparams)]
        columns = [(description.fname(n) or b"").decode() for n in range(description.nfields)]
        self._record = record_maker(columns)
        self._argument_formats = (PyFormat.AUTO,) * len(parameters)
        self._wire_formats = [BINARY] * len(parameters)
        self._transformer = Transformer(ADAPTERS)
        self._transformer.set_dumper_types(parameters, BINARY)
        self._transformer.set_pgresult(description, format=BINARY)

    def ask(self, pgconn: PGconn, arguments: Sequence[object]) -> PQGen[list[PGresult]]:
        """Send it; the steps that follow give one result."""
        self.send(pgconn, arguments)
        steps: PQGen[list[PGresult]] = execute(pgconn)
        return steps

    def send(self, pgconn: PGconn, arguments: Sequence[object]) -> None:
        self._send(pgconn, self._dumped(arguments))

    def ask_each(self, pgconn: PGconn, rows: Sequence[Sequence[object]]) -> PQGen[list[PGresult]]:
        """One result for each row of arguments; the server takes all of them or none."""
        dumped = [self._dumped(row) for row in rows]
        return pipeline(pgconn, [partial(self._send, pgconn, row) for row in dumped])

    def rows(self, result: PGresult) -> list[Record]:
        self._transformer.set_pgresult(result, set_loaders=False)
        rows = self._transformer.load_rows(0, result.ntuples, self._record)
        self._transformer.set_pgresult(None, set_loaders=False)  # Or it would be kept.
        return rows

    def first_row(self, result: PGresult) -> Record | None:
        if not result.ntuples:
            return None
        self._transformer.set_pgresult(result, set_loaders=False)
        return self._transformer.load_row(0, self._record)

    def first_value(self, result: PGresult) -> Value:
        if not result.ntuples:
            return None
        self._transformer.set_pgresult(result, set_loaders=False)
        return self._transformer.load_row(0, tuple)[0]

    def _dumped(self, arguments: Sequence[object]) -> Sequence[Buffer | None] | None:
        if len(arguments) != len(self._wire_formats):
            raise TypeError(f"{len(self._wire_formats)} arguments expected, got {len(arguments)}")
        return self._transformer.dump_sequence(arguments, self._argument_formats) or None

    def _send(self, pgconn: PGconn, dumped: Sequence[Buffer | None] | None) -> None:
        pgconn.send_query_prepared(self.name, dumped, self._wire_formats, BINARY)


@final
class StatementCache:
    """The statements a connection has prepared, those of late last. Names are never used again."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._statements: OrderedDict[str, Statement] = OrderedDict()
        self._named = 0

    def get(self, sql: str) -> Statement | None:
        if statement := self._statements.get(sql):
            self._statements.move_to_end(sql)
        return statement

    def new_name(self) -> bytes:
        self._named += 1
        return b"s%d" % self._named

    def add(self, sql: str, statement: Statement) -> Statement | None:
        """Returns the one that had to make room."""
        self._statements[sql] = statement
        if len(self._statements) > self._size:
            return self._statements.popitem(last=False)[1]
        return None

    def clear(self) -> None:
        self._statements.clear()


def prepare(pgconn: PGconn, name: bytes, sql: str) -> PQGen[list[PGresult]]:
    """Parse and describe in one round trip; the description is the second result."""
    return pipeline(
        pgconn,
        [
            partial(pgconn.send_prepare, name, sql.encode()),
            partial(pgconn.send_describe_prepared, name),
        ],
    )


def pipeline(pgconn: PGconn, requests: Iterable[Callable[[], None]]) -> PQGen[list[PGresult]]:
    """Send everything before reading the answers, except when the server cannot go on unread."""
    pgconn.enter_pipeline_mode()
    for count, request in enumerate(requests, start=1):
        request()
        if count % FLUSH_EVERY == 0:
            yield from send(pgconn)
    pgconn.pipeline_sync()
    yield from send(pgconn)
    results: list[PGresult] = []
    while (answer := (yield from fetch_many(pgconn)))[0].status != ExecStatus.PIPELINE_SYNC:
        results += answer  # An error of the commit itself comes last, with no request of its own.
    pgconn.exit_pipeline_mode()
    return results


def means_outdated(error: psycopg.Error) -> bool:
    """Whether the statement must be prepared anew: nothing of it has been executed."""
    if isinstance(error, psycopg.errors.InvalidSqlStatementName):
        return True
    return (
        isinstance(error, psycopg.errors.FeatureNotSupported)
        and error.diag.source_function == "RevalidateCachedQuery"
    )
