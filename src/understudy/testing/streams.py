"""Two streams in memory, joined by a wire with latency, backpressure and resets.

There are no pump tasks: a sender stamps its bytes with the moment they arrive and the reader waits
for it. So a connection costs no task, latency is exact, and the same seed gives the same order.
"""

from __future__ import annotations

import operator
from collections import deque
from typing import Literal, TypeAlias, final

import trio

Address: TypeAlias = tuple[str, int]
Direction: TypeAlias = Literal["up", "down"]
"""`up` is from the client to the server."""

PIPE_MAX = 256 * 1024


def open_memory_pair(*, latency_s: float = 0.0) -> tuple[MemoryStream, MemoryStream]:
    """Give a client's end and a server's."""
    wire = Wire(latency_s)
    client, server = ("10.0.0.1", 40_000), ("10.0.0.2", 80)
    return (
        MemoryStream(wire, "up", local=client, peer=server),
        MemoryStream(wire, "down", local=server, peer=client),
    )


@final
class MemoryStream(trio.abc.HalfCloseableStream):
    """One end of a wire. Understands `reset`, and tells its addresses as a socket would."""

    def __init__(self, wire: Wire, sends: Direction, *, local: Address, peer: Address) -> None:
        self._wire = wire
        self._sends: Direction = sends
        self._outgoing = wire.pipes[sends]
        self._incoming = wire.pipes["down" if sends == "up" else "up"]
        self._sending = _OneTask("sending")
        self._receiving = _OneTask("receiving")
        self.local = local
        self.peer = peer

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with self._sending:
            await trio.lowlevel.checkpoint()
            self._outgoing.check_open()
            for start in range(0, len(data), PIPE_MAX):
                await self._wire.carry(self._sends, bytes(data[start : start + PIPE_MAX]))

    async def wait_send_all_might_not_block(self) -> None:
        with self._sending:
            await trio.lowlevel.checkpoint()
            self._outgoing.check_open()
            await self._outgoing.wait_room()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be positive")
        with self._receiving:
            return await self._incoming.get(max_bytes or PIPE_MAX)

    async def send_eof(self) -> None:
        with self._sending:
            await trio.lowlevel.checkpoint()
            self._outgoing.end(self._wire.due)

    async def aclose(self) -> None:
        self._outgoing.end(self._wire.due)
        if self._outgoing.is_lost:
            self._incoming.lose()  # The reset that answers late bytes would be lost as well.
        self._incoming.abandon()
        await trio.lowlevel.checkpoint()

    def reset(self) -> None:
        self._wire.reset()

    @property
    def is_open(self) -> bool:
        """It was neither closed here nor reset."""
        return self._outgoing.is_open

    def is_readable(self) -> bool:
        """What an HTTP client asks before it uses an idle connection again."""
        return self._incoming.is_readable


@final
class _OneTask:
    """Guards what two tasks must not do at once."""

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._is_busy = False

    def __enter__(self) -> None:
        if self._is_busy:
            raise trio.BusyResourceError(f"another task is {self._doing}")
        self._is_busy = True

    def __exit__(self, *_: object) -> None:
        self._is_busy = False


class Wire:
    """What joins two streams: a pipe for each direction."""

    def __init__(self, latency_s: float) -> None:
        self.pipes: dict[Direction, Pipe] = {"up": Pipe(), "down": Pipe()}
        self._latency_s = latency_s

    @property
    def due(self) -> float:
        """When bytes that leave now arrive."""
        return trio.current_time() + self._latency_s

    async def carry(self, direction: Direction, data: bytes) -> None:
        await self.pipes[direction].put(data, self.due)

    def reset(self) -> None:
        for pipe in self.pipes.values():
            pipe.reset()


@final
class Pipe:
    """One direction of a connection. A full one makes the sender wait, as a full socket does."""

    def __init__(self) -> None:
        self._chunks: deque[tuple[float, bytes]] = deque()  # An empty chunk is the end.
        self._size = 0
        self._is_ended = self._is_lost = self._is_reset = self._is_abandoned = False
        self._changed = trio.lowlevel.ParkingLot()

    @property
    def is_readable(self) -> bool:
        return bool(self._chunks) or self._is_reset

    @property
    def is_lost(self) -> bool:
        return self._is_lost

    @property
    def is_open(self) -> bool:
        return not (self._is_ended or self._is_reset)

    async def put(self, data: bytes, due: float) -> None:
        await self.wait_room()
        if data and self._accepts():
            self._append(data, due)

    async def wait_room(self) -> None:
        while self._size >= PIPE_MAX and self._accepts():
            await self._changed.park()

    def check_open(self) -> None:
        if self._is_ended:
            raise trio.ClosedResourceError("this end is closed")

    def _accepts(self) -> bool:
        self.check_open()
        if self._is_lost:
            return False
        if self._is_reset or self._is_abandoned:
            raise trio.BrokenResourceError("connection reset")
        return True

    def _append(self, data: bytes, due: float) -> None:
        self._chunks.append((due, data))
        self._size += len(data)
        self._changed.unpark_all()

    async def get(self, max_bytes: int) -> bytes:
        """One step of the schedule where there is something, and one for each change till then."""
        if self._has_come():
            await trio.lowlevel.checkpoint()
        while not self._has_come():
            await self._wait_change()
        if self._is_abandoned:
            raise trio.ClosedResourceError("this end is closed")
        if not self._chunks:
            raise trio.BrokenResourceError("connection reset")
        return self._take(max_bytes)

    def _has_come(self) -> bool:
        """Bytes, or an end of whatever kind."""
        if self._is_abandoned or not self._chunks:
            return self._is_abandoned or self._is_reset
        return self._chunks[0][0] <= trio.current_time()

    async def _wait_change(self) -> None:
        if not self._chunks:
            await self._changed.park()
            return
        with trio.move_on_at(self._chunks[0][0]):
            await self._changed.park()

    def _take(self, max_bytes: int) -> bytes:
        due, chunk = self._chunks[0]
        if not chunk:
            return b""
        taken, rest = chunk[:max_bytes], chunk[max_bytes:]
        if rest:
            self._chunks[0] = (due, rest)
        else:
            self._chunks.popleft()
        self._size -= len(taken)
        self._changed.unpark_all()
        return taken

    def end(self, due: float) -> None:
        """The sender says no more."""
        if not (self._is_ended or self._is_lost or self._is_reset):
            self._append(b"", due)
        self._is_ended = True
        self._changed.unpark_all()

    def lose(self) -> None:
        """Drop what is put from now on; what is under way still arrives."""
        self._is_lost = True
        self._changed.unpark_all()

    def reset(self) -> None:
        self._is_reset = True
        self._changed.unpark_all()

    def abandon(self) -> None:
        """The reader leaves."""
        self._is_abandoned = True
        self._changed.unpark_all()
