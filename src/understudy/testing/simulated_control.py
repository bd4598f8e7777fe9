"""A connection to a simulated keeper: its requests wait for the keeper's own task."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import final

import trio

from understudy.daemon.control import CLIENTS_MAX, REQUEST_MAX


@final
class SimulatedControl:
    """The keeper's side. `is_asked` is called when there is a request."""

    def __init__(self, run_dir: Path, is_asked: Callable[[], object]) -> None:
        self.is_listening = False
        self.requests: deque[tuple[Client, bytes]] = deque()
        self._is_asked = is_asked
        self._directory = run_dir.stat()
        self._clients: set[Client] = set()

    def listens_in(self, directory: os.stat_result) -> bool:
        """A socket is its directory's, by whatever path."""
        return self.is_listening and os.path.samestat(directory, self._directory)

    def accept(self) -> Client:
        client = Client(self)
        if len(self._clients) < CLIENTS_MAX:
            self._clients.add(client)
        else:
            client.hang_up()
        return client

    def ask(self, client: Client, line: bytes) -> None:
        self.requests.append((client, line))
        self._is_asked()

    def dismiss(self, client: Client) -> None:
        self._clients.discard(client)

    def close(self) -> None:
        self.is_listening = False
        for client in [*self._clients]:
            client.hang_up()


@final
class Client(trio.abc.Stream):
    def __init__(self, control: SimulatedControl) -> None:
        self._control = control
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
            self._control.ask(self, bytes(line))
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
        self._control.dismiss(self)
        await trio.lowlevel.checkpoint()

    # The keeper's side

    def answer(self, line: bytes) -> None:
        self._answers += line
        self._tell()

    def hang_up(self) -> None:
        """What was answered can still be read."""
        self._is_hung_up = True
        self._control.dismiss(self)
        self._tell()

    def _check_open(self) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError("this connection is closed")

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
