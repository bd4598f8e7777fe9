"""A network in memory: real HTTP and websocket bytes, any trio clock, faults on demand.

Who listens where, how long bytes take, and what goes wrong on the way; `streams.py` has the ends.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias, final

import trio

from understudy.testing.streams import Address, Direction, MemoryStream, Wire
from understudy.testing.virtual_process import current_process

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
    attempt: Attempt
    """What made the connection."""


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
        attempt = Attempt(client, host)
        match self.faults.on_connect(attempt):
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
        wire = FaultyWire(self.connections_made, self.faults, self.latency_s, attempt)
        near, far = (client, 40_000 + wire.connection_id), (host, port)
        listener.arrive(MemoryStream(wire, "down", local=far, peer=near))
        return _owned(MemoryStream(wire, "up", local=near, peer=far))


def _owned(stream: MemoryStream) -> MemoryStream:
    """The process that has it open takes it along when it dies."""
    if (process := current_process()) is not None:
        process.at_death.append(stream.reset)
    return stream


def _refusal(host: str, port: int) -> ConnectionRefusedError:
    return ConnectionRefusedError(errno.ECONNREFUSED, f"{host}:{port} refuses connections")


@final
class MemoryListener(trio.abc.Listener[MemoryStream]):
    def __init__(self, on_close: Callable[[], object]) -> None:
        self._arrivals, self._accepted = trio.open_memory_channel[MemoryStream](BACKLOG)
        self._on_close = on_close

    def arrive(self, stream: MemoryStream) -> None:
        self._arrivals.send_nowait(stream)

    async def accept(self) -> MemoryStream:
        return _owned(await self._accepted.receive())

    def close(self) -> None:
        """Refuse from now on, and reset who was waiting to be accepted, as a socket does."""
        self._on_close()
        self._arrivals.close()
        with suppress(trio.EndOfChannel, trio.ClosedResourceError):
            while True:
                self._accepted.receive_nowait().reset()
        self._accepted.close()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()


@final
class FaultyWire(Wire):
    def __init__(
        self, connection_id: int, faults: Faults, latency_s: float, attempt: Attempt
    ) -> None:
        super().__init__(latency_s)
        self.connection_id = connection_id
        self._attempt = attempt
        self._faults = faults

    async def carry(self, direction: Direction, data: bytes) -> None:
        pipe = self.pipes[direction]
        match self._faults.on_crossing(
            Crossing(self.connection_id, direction, data, self._attempt)
        ):
            case None:
                await pipe.put(data, self.due)
            case Delay(seconds):
                await pipe.put(data, self.due + seconds)
            case Vanish():
                pipe.lose()
            case Cut(keep):
                await pipe.put(data[:keep], self.due)
                self.reset()
            case Answer() as answer:
                await self._hijack(answer)

    async def _hijack(self, answer: Answer) -> None:
        await self.pipes["down"].put(answer.raw, self.due)
        for pipe in self.pipes.values():
            pipe.end(self.due)
            pipe.lose()
