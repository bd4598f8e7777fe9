"""One libpq connection, driven by trio.

psycopg's generators do no I/O: they yield what they wait for and are resumed when it has happened.
A session serves those waits, so there is no thread, no asyncio and no blocking call between a
statement and its answer. It also keeps two promises that everything above it is built on.

Turns. One exchange at a time: `async with session:` waits for the turn, in order of arrival.

Cancellation. trio may cancel at any wait; libpq wants each exchange finished. So a cancelled
exchange is still seen through, shielded and within a limit, and its answer decides what is raised:

- It may end by itself for `GRACE_S`. If it succeeds the caller gets the result as if nothing had
  happened, and the next statement raises `trio.Cancelled`.
- Then the server is asked to stop, over a connection of its own as the protocol wants, and the
  answer is read. "Canceling statement" means that it was not executed: `trio.Cancelled`.
- No answer within `STOP_S`, or the connection is lost: what happened is unknown. The session is
  abandoned and `trio.Cancelled` raised.

Hence the contract: *a statement that returned was executed; one that raised `trio.Cancelled` was
not, or the connection is `broken`.* A COMMIT that was sent is waited for and never asked to stop.

Closing. libpq's memory is freed only when no exchange is under way, because a generator that is
waiting points into it. Until then `close` shuts the socket down, which ends the waiting.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, TypeVar, final

import psycopg
import trio
from psycopg import pq
from psycopg.abc import PQGen
from psycopg.generators import execute
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import Ready

from understudy.store.errors import DatabaseUnavailable
from understudy.store.waits import Waits, shake_hands

GRACE_S: Final = 0.010
STOP_S: Final = 5.0
COMMIT_S: Final = 30.0  # Counted from the cancellation.

DONE: Final = {
    pq.ExecStatus.TUPLES_OK,
    pq.ExecStatus.COMMAND_OK,
    pq.ExecStatus.EMPTY_QUERY,
}

R = TypeVar("R")


@final
class Session:
    def __init__(self, pgconn: PGconn, waits: Waits) -> None:
        self.pgconn = pgconn
        self.waits = waits
        self.closed = False
        self.broken = False
        self._in_turn = False
        self._queue = trio.lowlevel.ParkingLot()
        self._unasked = select.poll()
        self._unasked.register(pgconn.socket, select.POLLIN)

    async def __aenter__(self) -> None:
        await self.waits.before_statement()
        if self._in_turn:
            await self._queue.park()  # Whoever leaves hands the turn over.
        self._in_turn = True

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error and self._is_in_doubt():
            self.abandon()
        self._end_turn()
        if isinstance(error, psycopg.errors.QueryCanceled) or (error and self.closed):
            await trio.lowlevel.checkpoint_if_cancelled()  # Who was cancelled hears that first.
        if isinstance(error, psycopg.Error) and self.closed:
            raise DatabaseUnavailable(str(error)) from error

    async def command(self, sql: bytes) -> bytes:
        """By the simple protocol: statements without arguments; the tag of the last."""
        async with self:
            self.pgconn.send_query(sql)
            return tag(await self.drive(execute(self.pgconn)))

    async def commit(self) -> bytes:
        async with self:
            self.pgconn.send_query(b"commit")
            return tag(await self._drive_commit(execute(self.pgconn)))

    async def drive(self, steps: PQGen[R]) -> R:
        """See an exchange through; on cancellation, stop the server."""
        try:
            return await self.serve(steps)
        except trio.Cancelled:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + GRACE_S + STOP_S):
                return await self._stop(steps)
            self.abandon()
            raise

    async def serve(self, steps: PQGen[R], ready: Ready | None = None) -> R:
        """Wait for what the steps wait for. Cancelled, it leaves them to be resumed with NONE."""
        wait_ready = self.waits.wait_ready
        try:
            fileno = self.pgconn.socket
            wait = next(steps) if ready is None else steps.send(ready)
            while True:
                wait = steps.send(await wait_ready(fileno, wait))
        except StopIteration as stop:
            answer: R = stop.value
            return answer

    async def stop_server(self) -> None:
        """Ask the server to stop what it does. Returns when the signal has been delivered."""
        request = self.pgconn.cancel_conn()
        request.start()
        try:
            await shake_hands(request, request.poll, self.waits)
        finally:
            request.finish()

    @property
    def is_idle(self) -> bool:
        """Between transactions, and no exchange under way."""
        return (
            not self.closed
            and not self._in_turn
            and self.pgconn.transaction_status == pq.TransactionStatus.IDLE
        )

    @property
    def in_transaction(self) -> bool:
        return self.pgconn.transaction_status in {
            pq.TransactionStatus.INTRANS,
            pq.TransactionStatus.INERROR,
        }

    def has_unasked_news(self) -> bool:
        """Whether the server speaks unasked, which usually is its farewell. No round trip."""
        return bool(self._unasked.poll(0))

    def close(self) -> None:
        """At once, from any task; an exchange under way raises `DatabaseUnavailable`."""
        self.closed = True
        if not self._in_turn:
            self.pgconn.finish()
            return
        with suppress(OSError, psycopg.OperationalError):  # It is shut down already.
            _shut_down(self.pgconn.socket)

    def abandon(self) -> None:
        if not self.closed:
            self.broken = True
            self.close()

    async def _drive_commit(self, steps: PQGen[R]) -> R:
        """On cancellation, wait for the end all the same."""
        try:
            return await self.serve(steps)
        except trio.Cancelled:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + COMMIT_S):
                return await self.serve(steps, Ready.NONE)
            self.abandon()
            raise

    async def _stop(self, steps: PQGen[R]) -> R:
        with trio.move_on_after(GRACE_S):
            return await self.serve(steps, Ready.NONE)
        await self.stop_server()
        return await self.serve(steps, Ready.NONE)

    def _is_in_doubt(self) -> bool:
        """Whether the connection is lost or out of step with the server."""
        return (
            self.pgconn.status != pq.ConnStatus.OK
            or self.pgconn.transaction_status == pq.TransactionStatus.ACTIVE
        )

    def _end_turn(self) -> None:
        if self._queue:
            self._queue.unpark()
        else:
            self._in_turn = False
        if self.closed:
            self.pgconn.finish()


def _shut_down(fileno: int) -> None:
    with socket.socket(fileno=os.dup(fileno)) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)


def check(results: Sequence[PGresult]) -> None:
    """Raise what the server says went wrong. In a pipeline, what follows the error is aborted."""
    for result in results:
        if result.status not in DONE:
            if result.status != pq.ExecStatus.FATAL_ERROR:
                raise ValueError(f"{pq.ExecStatus(result.status).name}: COPY has verbs of its own")
            raise psycopg.errors.error_from_result(result)


def tag(results: Sequence[PGresult]) -> bytes:
    check(results)
    return results[-1].command_status or b""
