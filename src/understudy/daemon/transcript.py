"""What an agent says and does, as numbered messages, sent in batches.

The numbers depend on the agent's output alone: a daemon that reads the spool again from the start
makes the same messages, and the server keeps each once (R6.9).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, final

import msgspec
import trio

from understudy.core.records import Message
from understudy.daemon.backends.backend import (
    Event,
    HangUp,
    Interrupt,
    Notice,
    Retry,
    Say,
    Session,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
    Unparsed,
    Usage,
)

BATCH_S: Final = 0.5
BATCH_BYTES: Final = 64 * 1024
"""So much is sent without waiting for more."""
BATCH_BYTES_MAX: Final = 512 * 1024
"""What has come while a batch was under way travels together, below what proxies let pass."""
BATCH_MAX: Final = 2000
UNSENT_BYTES_MAX: Final = 8 * 1024 * 1024
"""Beyond that the reader waits for the server: the rest is safe in the spool."""
MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024
"""A larger one is told of, not sent: no frame may outgrow what the server takes (R6.8)."""


def message_of(event: Event, seq: int) -> Message | None:
    """`content` of a tool's use and of its result is the call's id: so the two find each other."""
    match event:
        case Text(text):
            return Message(seq=seq, type="text", content=text)
        case Thinking(text):
            return Message(seq=seq, type="thinking", content=text)
        case ToolUse(id=identity, name=name, input=given):
            return Message(seq=seq, type="tool_use", tool=name, content=identity, input=given)
        case ToolResult(id=identity, output=output, is_error=is_error):
            flag = {"is_error": True} if is_error else None
            return Message(seq=seq, type="tool_result", content=identity, output=output, input=flag)
        case Retry(attempt, attempts_max, delay_s, error):
            told = f"{error}; try {attempt} of {attempts_max} in {delay_s:.0f} s"
            return Message(seq=seq, type="error", content=told)
        case Notice(text):
            return Message(seq=seq, type="text", tool="notice", content=text)
        case Unparsed(text, size):
            return Message(seq=seq, type="error", content=f"not understood, {size} bytes: {text}")
        case Session() | Usage() | Say() | Interrupt() | HangUp():
            return None


@final
class Transcript:
    """`send` must not return before the server has the batch; `heard` is the last seq it has."""

    def __init__(
        self, send: Callable[[list[Message]], Awaitable[None]], heard: int, *, seq_first: int = 0
    ) -> None:
        self._send = send
        self._heard = heard
        self.seq_next = seq_first
        self._unsent: deque[tuple[Message, int]] = deque()
        self._unsent_bytes = 0
        self._tools: dict[str, str] = {}
        self._closed = False
        self._changed = trio.Event()

    async def add(self, events: Iterable[Event]) -> None:
        for event in events:
            message = message_of(event, self.seq_next)
            if message is None:
                continue
            message = self._named(message)
            self.seq_next += 1
            if message.seq > self._heard:
                self._append(*_bounded(message))
        self._tell()
        while self._unsent_bytes > UNSENT_BYTES_MAX:
            await self._changed.wait()

    def _named(self, message: Message) -> Message:
        """A result with the name of the tool that was used; the CLI tells only the call's id."""
        if message.type == "tool_use" and message.content and message.tool:
            self._tools[message.content] = message.tool
        elif message.type == "tool_result" and message.content:
            tool = self._tools.pop(message.content, None)
            return msgspec.structs.replace(message, tool=tool)
        return message

    def close(self) -> None:
        """No more will come: `send_all` returns once the rest is sent."""
        self._closed = True
        self._tell()

    async def send_all(self) -> None:
        while not (self._closed and not self._unsent):
            if not self._unsent:
                await self._changed.wait()
                continue
            await self._wait_batch()
            batch = self._take()
            await self._send(batch)
            self._tell()

    async def _wait_batch(self) -> None:
        with trio.move_on_after(BATCH_S):
            while self._unsent_bytes < BATCH_BYTES and not self._closed:
                await self._changed.wait()

    def _append(self, message: Message, size: int) -> None:
        self._unsent.append((message, size))
        self._unsent_bytes += size

    def _take(self) -> list[Message]:
        batch, total = list[Message](), 0
        while self._unsent and len(batch) < BATCH_MAX:
            message, size = self._unsent[0]
            if batch and total + size > BATCH_BYTES_MAX:
                break
            self._unsent.popleft()
            batch.append(message)
            total += size
        self._unsent_bytes -= total
        return batch

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _bounded(message: Message) -> tuple[Message, int]:
    size = len(msgspec.json.encode(message))
    if size <= MESSAGE_BYTES_MAX:
        return message, size
    told = f"{message.type} of {size} bytes: too long to be kept"
    return _bounded(Message(seq=message.seq, type="error", content=told))
