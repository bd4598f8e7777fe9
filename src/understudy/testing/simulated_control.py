"""A connection to a simulated keeper: its requests wait for the keeper's own task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import trio

from understudy.daemon.control import REQUEST_MAX


@dataclass(frozen=True)
class Listener:
    """The keeper's side."""

    ask: Callable[[Client, bytes], object]
    dismiss: Callable[[Client], object]


@final
class Client(trio.abc.Stream):
    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._request = bytearray()
        self._answers = bytearray()
        self._changed = trio.Event()
        self._is_hung_up = self._is_closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self._check_open()
        if self._is_hung_up:
            raise trio.BrokenResourceError("the keeper has hung up")
        *lines, self._request = (self._request + data).split(b"\n")
        for line in lines:
            self._listener.ask(self, bytes(line))
        if len(self._request) > REQUEST_MAX:
            self.hang_up()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()
        self._check_open()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        self._check_open()
        while not (self._answers or self._is_hung_up):
            await self._changed.wait()
        size = max_bytes or len(self._answers)
        data = bytes(self._answers[:size])
        del self._answers[:size]
        return data

    async def aclose(self) -> None:
        self._is_closed = True
        self._listener.dismiss(self)
        await trio.lowlevel.checkpoint()

    # The keeper's side

    def answer(self, line: bytes) -> None:
        self._answers += line
        self._tell()

    def hang_up(self) -> None:
        """What was answered can still be read."""
        self._is_hung_up = True
        self._listener.dismiss(self)
        self._tell()

    def _check_open(self) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError("this connection is closed")

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
