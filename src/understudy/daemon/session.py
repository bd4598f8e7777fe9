"""One connection to the server: who waits for which answer, and how many slots it was told of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, final
from uuid import UUID

import trio
from trio_websocket import WebSocketConnection

from understudy.core.struct import Struct
from understudy.wire.daemon import Ping, Pong
from understudy.wire.frames import (
    Answer,
    Call,
    CallBook,
    Credit,
    CreditGranted,
    batches,
    encode,
)

OUTBOUND_MAX: Final = 256


class LinkLost(Exception):
    """The connection broke: the call may have been done, or not."""


@final
class Session:
    def __init__(self, socket: WebSocketConnection) -> None:
        self.socket = socket
        self.is_registered = False
        self._book = CallBook()
        self._outbound, self._waiting = trio.open_memory_channel[Call | None](OUTBOUND_MAX)
        self._answers: dict[int, tuple[trio.Event, list[object]]] = {}
        self._credit = Credit(total=0)
        self._is_told = True
        self.taken = 0
        """Tasks pushed over this connection, whatever became of them."""

    def announce(self, runtime_ids: list[UUID], free: int) -> None:
        """These take tasks; to say it again attaches a runtime that the server had lost."""
        self._tell(Credit(total=self._total(free), runtime_ids=runtime_ids))

    def offer(self, free: int) -> None:
        """The total follows from what is free now, so no slot is ever counted twice or lost."""
        if (total := self._total(free)) > self._credit.total:
            self._tell(Credit(total=total, runtime_ids=self._credit.runtime_ids))

    def _total(self, free: int) -> int:
        return max(self._credit.total, self.taken + free)

    def _tell(self, credit: Credit) -> None:
        self._credit, self._is_told = credit, False
        try:
            self._outbound.send_nowait(None)
        except (trio.WouldBlock, trio.ClosedResourceError):
            pass  # Full: the credit goes with what is waiting. Closed: so is the connection.

    async def call(self, name: str, body: Struct, subject: UUID | None) -> object:
        call = self._book.call(name, body, subject)
        answered = trio.Event()
        box: list[object] = []
        self._answers[call.id] = answered, box
        try:
            await self._outbound.send(call)
            await answered.wait()
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            raise LinkLost("the connection broke") from None
        finally:
            self._answers.pop(call.id, None)
        if not box:
            raise LinkLost("the connection broke before the answer")
        return box[0]

    def pong(self, ping: Ping) -> None:
        """At once (R4.12), and without an answer; what finds no room is asked for again."""
        try:
            self._outbound.send_nowait(
                self._book.call("pong", Pong(ping_id=ping.id), ping.runtime_id)
            )
        except (trio.WouldBlock, trio.ClosedResourceError):
            pass

    def settle(self, answer: Answer) -> None:
        body = self._book.answered(answer)
        if (waiter := self._answers.get(answer.id)) is not None:
            waiter[1].append(body)
            waiter[0].set()

    async def send_frames(self) -> None:
        """What has queued up while the last frame was sent travels together."""
        async for first in self._waiting:
            calls = [each for each in (first, *_queued(self._waiting)) if each is not None]
            for batch in batches(calls):
                await self.socket.send_message(encode(batch))
            if not self._is_told:
                self._is_told = True
                await self.socket.send_message(encode(CreditGranted(payload=self._credit)))

    def end(self) -> None:
        """Whoever waits for an answer learns that none will come."""
        self._outbound.close()
        for answered, _ in self._answers.values():
            answered.set()


def _queued(waiting: trio.MemoryReceiveChannel[Call | None]) -> Iterator[Call | None]:
    try:
        while True:
            yield waiting.receive_nowait()
    except (trio.WouldBlock, trio.EndOfChannel):
        return
