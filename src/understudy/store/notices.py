"""A nudge between nodes: somebody has committed. It says no more, and to lose one costs a poll.

NOTIFY makes all who commit wait in one line, so it never stands in the transaction of a move: one
notifier per node says it for all that were committed within `PACE_S`, on a connection of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Final, final
from uuid import UUID

import trio

from understudy.store.connection import Connection
from understudy.store.errors import DatabaseUnavailable

logger = logging.getLogger(__name__)

CHANNEL: Final = "understudy"
PACE_S: Final = 0.02
RETRY_S: Final = 2.0

Dial = Callable[[], Awaitable[Connection]]


@final
class Notifier:
    """Tells the other nodes, if there are any, that this one has committed."""

    def __init__(self, dial: Dial, node_id: UUID) -> None:
        self._dial = dial
        self.node_id = node_id
        self._due = trio.Event()
        self.has_peers = False

    def note(self) -> None:
        if self.has_peers:
            self._due.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        while True:
            try:
                await self._tell()
            except DatabaseUnavailable:
                self._due.set()
                await trio.sleep(RETRY_S)

    async def _tell(self) -> None:
        await self._due.wait()
        connection = await self._dial()
        try:
            while True:
                await self._due.wait()
                self._due = trio.Event()
                await connection.execute("select pg_notify($1, $2)", CHANNEL, str(self.node_id))
                await trio.sleep(PACE_S)
        finally:
            connection.close()


@final
class Listener:
    """Calls `nudged` when another node has committed, and when that may have been missed."""

    def __init__(self, dial: Dial, node_id: UUID, nudged: Callable[[], None]) -> None:
        self._dial = dial
        self._mine = str(node_id)
        self._nudged = nudged
        self._is_away = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        while True:
            try:
                await self._hear()
            except DatabaseUnavailable:
                if not self._is_away:
                    logger.warning("other nodes are not heard: the database is away")
                self._is_away = True
            await trio.sleep(RETRY_S)

    async def _hear(self) -> None:
        connection = await self._dial()
        try:
            await connection.listen(CHANNEL)
            self._is_away = False
            self._nudged()  # Nobody listened until now.
            async with aclosing(connection.notifications()) as notifications:
                async for notification in notifications:
                    if notification.payload != self._mine:
                        self._nudged()
        finally:
            connection.close()
