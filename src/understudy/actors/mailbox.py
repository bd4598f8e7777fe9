"""Addresses and messages: how one actor talks to another."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar, final

import trio

M = TypeVar("M")
R = TypeVar("R")


class ActorGone(Exception):
    """The actor crashed on this message, left it unanswered, or stopped before reaching it."""


@final
class Reply(Generic[R]):
    """A one-shot answer; closed unanswered, `Ref.ask` raises `ActorGone` in the asker."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[R](1)

    def __call__(self, answer: R) -> None:
        try:
            self._send.send_nowait(answer)
        except trio.BrokenResourceError:
            pass  # The asker was cancelled: nobody is left to read the answer.

    def close(self) -> None:
        self._send.close()

    async def wait_answer(self) -> R:
        """The answer, or `trio.EndOfChannel`."""
        with self._receive:
            return await self._receive.receive()


@dataclass(frozen=True)
class Ask(Generic[R]):
    """Base of the messages that want an answer of type R. An `Ask` is asked once."""

    reply: Reply[R] = field(default_factory=Reply, init=False, repr=False, compare=False)


@final
class Ref(Generic[M]):
    """An actor's address, valid across restarts."""

    def __init__(self, name: str, mailbox: trio.MemorySendChannel[M]) -> None:
        self._name = name
        self._mailbox = mailbox

    def __repr__(self) -> str:
        return f"<Ref {self._name}>"

    async def tell(self, message: M) -> None:
        """Deliver, waiting for room in the mailbox."""
        try:
            await self._mailbox.send(message)
        except trio.BrokenResourceError:
            raise ActorGone(f"{self._name} has stopped") from None

    def tell_nowait(self, message: M) -> None:
        """Deliver, or raise `trio.WouldBlock` when the mailbox is full."""
        try:
            self._mailbox.send_nowait(message)
        except trio.BrokenResourceError:
            raise ActorGone(f"{self._name} has stopped") from None

    async def ask(self, question: Ask[R]) -> R:
        """Deliver and wait for the answer. A deadline is the caller's cancel scope."""
        await self.tell(question)  # type: ignore[arg-type]
        try:
            return await question.reply.wait_answer()
        except trio.EndOfChannel:
            raise ActorGone(f"{self._name} left {type(question).__name__} unanswered") from None


def leave(message: object) -> None:
    """Be done with a message; an asker who has no answer yet hears that none will come."""
    if isinstance(message, Ask):
        message.reply.close()
