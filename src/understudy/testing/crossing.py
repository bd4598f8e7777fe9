"""A daemon's way to its server, to be cut and mended."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import final

from trio_websocket import WebSocketConnection

from understudy.daemon.link import Dial


@final
class Crossing:
    """`dial` goes to a daemon in place of its own; `refused` counts what it tried in vain."""

    def __init__(self, dial: Dial) -> None:
        self._dial = dial
        self._connection: WebSocketConnection | None = None
        self._is_cut = False
        self.refused = 0

    async def cut(self) -> None:
        self._is_cut = True
        if self._connection is not None:
            await self._connection.aclose()

    def mend(self) -> None:
        self._is_cut = False

    @asynccontextmanager
    async def dial(self) -> AsyncIterator[WebSocketConnection]:
        if self._is_cut:
            self.refused += 1
            raise ConnectionRefusedError("the crossing is cut")
        async with self._dial() as connection:
            self._connection = connection
            yield connection
