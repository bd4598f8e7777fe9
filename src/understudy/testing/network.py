"""A network in memory: real HTTP and websocket bytes, any trio clock, faults on demand.

There are no pump tasks: a sender stamps its bytes with the moment they arrive and the reader waits
for it. So a connection costs no task, latency is exact, and the same seed gives the same order.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Literal, TypeAlias, final

import trio

Address: TypeAlias = tuple[str, int]
Direction: TypeAlias = Literal["up", "down"]
"""`up` is from the client to the server."""

PIPE_MAX = 256 * 1024
BACKLOG = 1024


@dataclass(frozen=True)
class Refuse:
    """For a connection about to be made: it fails at once."""


@dataclass(frozen=True)
class Delay:
    seconds: float


@dataclass(frozen=True)
class Vanish:
    """From here on everything in this direction is lost, and nobody is told."""


@dataclass(frozen=True)
class Cut:
    """A reset for both ends once the first `keep` bytes have arrived."""

    keep: int = 0


@dataclass(frozen=True)
class Answer:
    """A proxy's answer in place of the server's. Going `down`, the server has done the work."""

    status: int = 502

    @property
    def raw(self) -> bytes:
        return b"HTTP/1.1 %d No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % self.status


@dataclass(frozen=True)
class Attempt:
    """A client is about to connect."""

    client: str
    host: str


@dataclass(frozen=True)
class Crossing:
    """Bytes are about to cross an established connection."""

    connection_id: int
    direction: Direction
    data: bytes


ConnectFault: TypeAlias = Refuse | Delay | Vanish
WireFault: TypeAlias = Delay | Vanish | Cut | Answer


class Faults:
    """None. What a test overrides to misbehave."""

    def on_connect(self, attempt: Attempt) -> ConnectFault | None:
        return None

    def on_crossing(self, crossing: Crossing) -> WireFault | None:
        return None


@final
class Script(Faults):
    """Faults in the order they were asked for, each for the next event of its kind."""

    def __init__(self) -> None:
        self._connect: deque[ConnectFault] = deque()
        self._crossing: dict[Direction, deque[WireFault]] = {"up": deque(), "down": deque()}

    def at_connect(self, fault: ConnectFault) -> None:
        self._connect.append(fault)

    def at_crossing(self, direction: Direction, fault: WireFault) -> None:
        self._crossing[direction].append(fault)

    def on_connect(self, attempt: Attempt) -> ConnectFault | None:
        return self._connect.popleft() if self._connect else None

    def on_crossing(self, crossing: Crossing) -> WireFault | None:
        pending = self._crossing[crossing.direction]
        return pending.popleft() if pending else None


@final
class MemoryNetwork:
    def __init__(self, *, latency_s: float = 0.0, faults: Faults | None = None) -> None:
        self.latency_s = latency_s
        self.faults = faults or Faults()
        self.connections_made = 0
        self._listeners: dict[Address, MemoryListener] = {}

    def listen(self, host: str, port: int) -> MemoryListener:
        address = (host, port)
        if address in self._listeners:
            raise OSError(errno.EADDRINUSE, f"{host}:{port} is in use")
        self._listeners[address] = MemoryListener(lambda: self._listeners.pop(address, None))
        return self._listeners[address]

    async def connect(self, host: str, port: int, *, client: str = "10.0.0.1") -> MemoryStream:
        """Raise ConnectionRefusedError if nobody listens there."""
        await trio.sleep(self.latency_s)
        match self.faults.on_connect(Attempt(client, host)):
            case Refuse():
                raise _refusal(host, port)
            case Delay(seconds):
                await trio.sleep(seconds)
            case Vanish():
                await trio.sleep_forever()
            case None:
                pass
        listener = self._listeners.get((host, port))
        if listener is None:
            raise _refusal(host, port)
        self.connections_made += 1
        wire = Wire(self.connections_made, self.faults, self.latency_s)
        near, far = (client, 40_000 + wire.connection_id), (host, port)
        listener.arrive(MemoryStream(wire, "down", local=far, peer=near))
        return MemoryStream(wire, "up", local=near, peer=far)


def _refusal(host: str, port: int) -> ConnectionRefusedError:
    return ConnectionRefusedError(errno.ECONNREFUSED, f"{host}:{port} refuses connections")


@final
class MemoryListener(trio.abc.Listener["MemoryStream"]):
    def __init__(self, on_close: Callable[[], object]) -> None:
        self._arrivals, self._accepted = trio.open_memory_channel[MemoryStream](BACKLOG)
        self._on_close = on_close

    def arrive(self, stream: MemoryStream) -> None:
        self._arrivals.send_nowait(stream)

    async def accept(self) -> MemoryStream:
        return await self._accepted.receive()

    async def aclose(self) -> None:
        """Refuse from now on, and reset who was waiting to be accepted, as a socket does."""
        self._on_close()
        self._arrivals.close()
        with suppress(trio.EndOfChannel, trio.ClosedResourceError):
            while True:
                self._accepted.receive_nowait().reset()
        self._accepted.close()
        await trio.lowlevel.checkpoint()


@final
class Wire:
    """A connection between two streams: two pipes, and what can go wrong in between."""

    def __init__(self, connection_id: int, faults: Faults, latency_s: float) -> None:
        self.connection_id = connection_id
        self.pipes: dict[Direction, Pipe] = {"up": Pipe(), "down": Pipe()}
        self._faults = faults
        self._latency_s = latency_s

    async def carry(self, direction: Direction, data: bytes) -> None:
        pipe = self.pipes[direction]
        due = trio.current_time() + self._latency_s
        match self._faults.on_crossing(Crossing(self.connection_id, direction, data)):
            case None:
                await pipe.put(data, due)
            case Delay(seconds):
                await pipe.put(data, due + seconds)
            case Vanish():
                pipe.lose()
            case Cut(keep):
                await pipe.put(data[:keep], due)
                self.reset()
            case Answer() as answer:
                await self._hijack(answer.raw, due)

    async def _hijack(self, raw: bytes, due: float) -> None:
        up, down = self.pipes["up"], self.pipes["down"]
        await down.put(raw, due)
        for pipe in (up, down):
            pipe.end(due)
            pipe.lose()

    def end(self, direction: Direction) -> None:
        self.pipes[direction].end(trio.current_time() + self._latency_s)

    def reset(self) -> None:
        for pipe in self.pipes.values():
            pipe.reset()


@final
class Pipe:
    """One direction of a connection. A full one makes the sender wait, as a full socket does."""

    def __init__(self) -> None:
        self._chunks: deque[tuple[float, bytes]] = deque()  # An empty chunk is the end.
        self._size = 0
        self._last_due = -inf
        self._is_ended = self._is_lost = self._is_reset = self._is_abandoned = False
        self._changed = trio.lowlevel.ParkingLot()

    @property
    def is_readable(self) -> bool:
        return bool(self._chunks) or self._is_reset

    @property
    def is_lost(self) -> bool:
        return self._is_lost

    async def put(self, data: bytes, due: float) -> None:
        while self._size >= PIPE_MAX and self._accepts():
            await self._changed.park()
        if self._accepts() and data:
            self._append(data, due)

    def _accepts(self) -> bool:
        if self._is_ended:
            raise trio.ClosedResourceError("this end is closed")
        if self._is_lost:
            return False
        if self._is_reset or self._is_abandoned:
            raise trio.BrokenResourceError("connection reset")
        return True

    def _append(self, data: bytes, due: float) -> None:
        self._last_due = max(self._last_due, due)  # Nothing overtakes.
        self._chunks.append((self._last_due, data))
        self._size += len(data)
        self._changed.unpark_all()

    async def get(self, max_bytes: int) -> bytes:
        while True:
            if self._is_abandoned:
                raise trio.ClosedResourceError("this end is closed")
            if self._chunks and self._chunks[0][0] <= trio.current_time():
                return self._take(max_bytes)
            if not self._chunks and self._is_reset:
                raise trio.BrokenResourceError("connection reset")
            with trio.move_on_at(self._chunks[0][0] if self._chunks else inf):
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
        if not (self._is_ended or self._is_lost):
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


@final
class MemoryStream(trio.abc.HalfCloseableStream):
    """One end of a wire. Understands `reset`, and tells its addresses as a socket would."""

    def __init__(self, wire: Wire, sends: Direction, *, local: Address, peer: Address) -> None:
        self._wire = wire
        self._sends: Direction = sends
        self._outgoing = wire.pipes[sends]
        self._incoming = wire.pipes["down" if sends == "up" else "up"]
        self._send_lock = trio.Lock()
        self.local = local
        self.peer = peer

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        if self._send_lock.locked():
            raise trio.BusyResourceError("another task is sending")
        async with self._send_lock:
            for start in range(0, len(data), PIPE_MAX):
                await self._wire.carry(self._sends, bytes(data[start : start + PIPE_MAX]))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        return await self._incoming.get(max_bytes or PIPE_MAX)

    async def send_eof(self) -> None:
        self._wire.end(self._sends)
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self._wire.end(self._sends)
        if self._outgoing.is_lost:
            self._incoming.lose()  # The reset that answers late bytes would be lost as well.
        self._incoming.abandon()
        await trio.lowlevel.checkpoint()

    def reset(self) -> None:
        self._wire.reset()

    def is_readable(self) -> bool:
        """What an HTTP client asks before it uses an idle connection again."""
        return self._incoming.is_readable


def open_memory_pair(*, latency_s: float = 0.0) -> tuple[MemoryStream, MemoryStream]:
    """Give a client's end and a server's, without a listener."""
    wire = Wire(0, Faults(), latency_s)
    client, server = ("10.0.0.1", 40_000), ("10.0.0.2", 80)
    return (
        MemoryStream(wire, "up", local=client, peer=server),
        MemoryStream(wire, "down", local=server, peer=client),
    )
