"""All or nothing: a transaction, or inside one a savepoint."""

from __future__ import annotations

from types import TracebackType
from typing import Final

import psycopg
import trio

from understudy.store.errors import DatabaseUnavailable
from understudy.store.session import Session

ROLLBACK_S: Final = 5.0


class Transaction:
    """Leaving it by an exception, or cancelled before COMMIT was sent, rolls back.

    A COMMIT that was sent is waited for. One that finds its transaction failed, because an error
    inside was swallowed, raises `InFailedSqlTransaction` where PostgreSQL rolls back in silence.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._is_savepoint = False

    async def __aenter__(self) -> None:
        self._is_savepoint = self._session.in_transaction
        await self._session.command(b"savepoint nested" if self._is_savepoint else b"begin")

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            await self._roll_back()
            return
        try:
            await self._commit()
        except BaseException:
            await self._roll_back()
            raise

    async def _commit(self) -> None:
        if self._is_savepoint:
            await self._session.command(b"release savepoint nested")
        elif await self._session.commit() == b"ROLLBACK":
            raise psycopg.errors.InFailedSqlTransaction("a statement had failed: rolled back")

    async def _roll_back(self) -> None:
        """Shielded and limited. What cannot be rolled back is closed: the server then does it."""
        if self._session.closed or self._session.is_idle:
            return
        with trio.CancelScope(shield=True, deadline=trio.current_time() + ROLLBACK_S):
            try:
                if self._is_savepoint:
                    await self._session.command(b"rollback to savepoint nested")
                    await self._session.command(b"release savepoint nested")
                else:
                    await self._session.command(b"rollback")
                return
            except (psycopg.Error, DatabaseUnavailable):
                pass
        self._session.abandon()
