"""How a connection waits for its socket: the one seam between production and simulation."""

from __future__ import annotations

import select
import selectors
from collections.abc import Callable
from typing import Final, Protocol, final

import anyio
import psycopg
import trio
from psycopg.pq import PollingStatus
from psycopg.pq.abc import PGcancelConn, PGconn
from psycopg.waiting import Ready, Wait

POLLED: Final = {
    Wait.R: (select.POLLIN, Ready.R),
    Wait.W: (select.POLLOUT, Ready.W),
    Wait.RW: (select.POLLIN | select.POLLOUT, Ready.RW),
}
"""Who waits for either may try both: libpq does not block."""


class Waits(Protocol):
    async def before_statement(self) -> None:
        """Called before anything is sent: the place to be cancelled, or to let others go first."""

    async def wait_ready(self, fileno: int, wait: Wait) -> Ready: ...


@final
class SocketWaits:
    """Production: the event loop watches the socket and other tasks run meanwhile."""

    async def before_statement(self) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()

    async def wait_ready(self, fileno: int, wait: Wait) -> Ready:
        if wait == Wait.R:
            await anyio.wait_readable(fileno)
            return Ready.R
        if wait == Wait.W:
            await anyio.wait_writable(fileno)
            return Ready.W
        return await _wait_either(fileno)


@final
class BlockingWaits:
    """Simulation: the loop stands still until the server has answered.

    So a statement is one instant of virtual time and one step of the schedule, and the checkpoint
    before it is where the seed decides who goes first. Nobody runs meanwhile who could release a
    row lock: open such connections with a short `lock_timeout`, and a statement that would have to
    wait raises `LockNotAvailable`, the same in every run. Without one, the loop is given back
    after `patience_s` real seconds. There is no waiting for notifications.
    """

    def __init__(self, patience_s: float = 60.0) -> None:
        self._patience_s = patience_s

    async def before_statement(self) -> None:
        await trio.lowlevel.checkpoint()

    async def wait_ready(self, fileno: int, wait: Wait) -> Ready:
        events, ready = POLLED[wait]
        poll = select.poll()
        poll.register(fileno, events)
        if poll.poll(self._patience_s * 1000):
            return ready
        raise RuntimeError(f"no answer in {self._patience_s} s: does it wait for another task?")


async def shake_hands(peer: PGconn | PGcancelConn, poll: Callable[[], int], waits: Waits) -> None:
    """Drive one of libpq's polls until it is content. The socket may change on the way."""
    while (status := poll()) != PollingStatus.OK:
        if status == PollingStatus.READING:
            await waits.wait_ready(peer.socket, Wait.R)
        elif status == PollingStatus.WRITING:
            await waits.wait_ready(peer.socket, Wait.W)
        else:
            raise psycopg.OperationalError(peer.get_error_message())


async def _wait_either(fileno: int) -> Ready:
    """Only a big pipeline comes here: the server stops reading until it has been read from."""
    with selectors.DefaultSelector() as selector:
        selector.register(fileno, Wait.RW)
        # An epoll or kqueue is a descriptor itself, readable once one of its own is ready.
        await anyio.wait_readable(selector.fileno())
        # psycopg numbers its `Wait` and `Ready` like selectors' events.
        return Ready(sum(events for _, events in selector.select(0)))
