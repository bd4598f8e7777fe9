"""COPY, in PostgreSQL's text format."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from typing import Final

import psycopg
import trio
from psycopg import pq
from psycopg.adapt import PyFormat, Transformer
from psycopg.generators import copy_end, copy_from, copy_to, execute
from psycopg.pq import ExecStatus

from understudy.store.session import STOP_S, Session, check
from understudy.store.statements import ADAPTERS

BLOCK_BYTES: Final = 32_768
SPECIAL: Final = re.compile(rb"[\b\t\n\v\f\r\\]")
ESCAPES: Final = {
    b"\b": rb"\b",
    b"\t": rb"\t",
    b"\n": rb"\n",
    b"\v": rb"\v",
    b"\f": rb"\f",
    b"\r": rb"\r",
    b"\\": rb"\\",
}


async def copy_in(session: Session, sql: str, rows: Iterable[Sequence[object]]) -> int:
    """All rows or, when anything goes wrong on the way, none."""
    async with session:
        await _begin(session, sql, ExecStatus.COPY_IN)
        try:
            for block in _blocks(rows):
                await trio.lowlevel.checkpoint_if_cancelled()
                await session.serve(copy_to(session.pgconn, block))
        except BaseException:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + STOP_S):
                await _refuse(session)
            raise
        result = await session.drive(copy_end(session.pgconn, None))
        return result.command_tuples or 0


async def copy_out(session: Session, sql: str) -> AsyncGenerator[bytes]:
    """Line by line. Nobody else has the connection until the generator is closed."""
    async with session:
        await _begin(session, sql, ExecStatus.COPY_OUT)
        try:
            while isinstance(data := await session.serve(copy_from(session.pgconn)), memoryview):
                yield bytes(data)
                await session.waits.before_statement()
        except BaseException:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + STOP_S):
                await _drain(session)
            raise


async def _begin(session: Session, sql: str, expected: ExecStatus) -> None:
    session.pgconn.send_query(sql.encode())
    results = await session.drive(execute(session.pgconn))
    if results[0].status != expected:
        check(results)
        raise ValueError(f"{expected.name} expected: {sql}")


def _blocks(rows: Iterable[Sequence[object]]) -> Iterator[bytes]:
    transformer = Transformer(ADAPTERS)
    block = bytearray()
    for row in rows:
        fields = transformer.dump_sequence(row, [PyFormat.TEXT] * len(row))
        block += b"\t".join(rb"\N" if f is None else SPECIAL.sub(_escape, f) for f in fields)
        block += b"\n"
        if len(block) >= BLOCK_BYTES:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)


def _escape(special: re.Match[bytes]) -> bytes:
    return ESCAPES[special[0]]


async def _refuse(session: Session) -> None:
    """End the COPY as failed. What is still ACTIVE after this, the session abandons."""
    try:
        await session.serve(copy_end(session.pgconn, b"the client gave up"))
    except psycopg.Error:
        pass  # That it failed is what we wanted to hear.


async def _drain(session: Session) -> None:
    if session.pgconn.transaction_status != pq.TransactionStatus.ACTIVE:
        return
    try:
        await session.stop_server()
        while isinstance(await session.serve(copy_from(session.pgconn)), memoryview):
            pass
    except psycopg.Error:
        pass
