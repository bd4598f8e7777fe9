"""Tails the event table and tells the streams: one reader per node, however many watch."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias
from uuid import UUID

import trio

from understudy.actors.actor import Actor
from understudy.actors.mailbox import Ref
from understudy.actors.watermark import Watermark
from understudy.core.gaps import Finality
from understudy.core.records import Event
from understudy.store import events
from understudy.store.database import Database
from understudy.store.errors import DatabaseUnavailable

logger = logging.getLogger(__name__)

KEPT_MAX: Final = 5000
POLL_S: Final = 2.0
"""The fallback behind the nudges: another node's events, or a nudge that was lost."""
GAP_POLL_S: Final = 0.02
PACE_S: Final = 0.02
PAGE_MAX: Final = 1000


@dataclass
class Tail:
    """What was delivered, for all streams of this node. Outlives the actor's incarnations.

    `mark` is the id up to which every event is final: no gap before it can be filled any more.
    """

    mark: Watermark = field(default_factory=Watermark)
    recent: deque[Event] = field(default_factory=lambda: deque(maxlen=KEPT_MAX))
    read_at: float = -math.inf
    """When the last page that has come was asked for: what happened before is known here."""

    def since(self, after: int) -> list[Event] | None:
        """All events behind `after`, or None where they are no longer all in memory."""
        if self.recent and self.recent[0].id <= after + 1:
            return [event for event in self.recent if event.id > after]
        return [] if after >= self.mark.value else None


@dataclass(frozen=True)
class Written:
    """Somebody on this node has committed."""


@dataclass(frozen=True)
class Nudged:
    """Somebody on another node has."""


Message: TypeAlias = Written | Nudged


class Broadcast(Actor[Message]):
    """`announce` tells the other nodes, if there are any."""

    def __init__(
        self, database: Database, tail: Tail, announce: Callable[[], None] = lambda: None
    ) -> None:
        self._database = database
        self._tail = tail
        self._announce = announce

    async def start(self) -> None:
        if self._tail.mark.value < 0:
            await self._settle()
        self._order = Finality(self._tail.mark.value)
        await self._advance()

    async def receive(self, message: Message) -> None:
        """At once when it is quiet; under load one page serves all who write within `PACE_S`."""
        if isinstance(message, Written):
            self._announce()
        next_at = self._advanced_at + PACE_S
        if trio.current_time() >= next_at:
            await self._advance()
        else:
            self.deadline = min(self.deadline, next_at)

    async def wake(self) -> None:
        await self._advance()

    async def _settle(self) -> None:
        """Begin at the newest event, once no earlier one can still appear."""
        newest = await events.last_id(self._database)
        first = await events.page_after(self._database, newest, rows_max=1)
        while True:
            page = await events.page_after(self._database, newest, rows_max=1)
            if page.oldest_open >= first.next_new:
                break
            await trio.sleep(GAP_POLL_S)
        self._tail.mark.raise_to(newest)

    async def _advance(self) -> None:
        self._advanced_at = trio.current_time()
        self.deadline = self._advanced_at + POLL_S
        try:
            while await self._page():
                pass
        except DatabaseUnavailable:
            logger.warning("events wait: the database is away")

    async def _page(self) -> bool:
        """Deliver up to the first open gap; true if there is more to read at once."""
        order, asked_at = self._order, trio.current_time()
        page = await events.page_after(self._database, order.cursor, rows_max=PAGE_MAX)
        order.settle(
            [event.id for event in page.events],
            oldest_open=page.oldest_open,
            next_new=page.next_new,
        )
        self._tail.recent.extend(event for event in page.events if event.id <= order.cursor)
        self._tail.mark.raise_to(order.cursor)
        self._tail.read_at = asked_at
        if order.gap is not None:
            self.deadline = trio.current_time() + GAP_POLL_S
        return order.gap is None and len(page.events) == PAGE_MAX


def written(broadcast: Ref[Message]) -> None:
    """A hint; the poll behind it finds what it does not bring."""
    _hint(broadcast, Written())


def nudged(broadcast: Ref[Message]) -> None:
    _hint(broadcast, Nudged())


def _hint(broadcast: Ref[Message], message: Message) -> None:
    try:
        broadcast.tell_nowait(message)
    except trio.WouldBlock:
        pass


async def follow(
    tail: Tail, database: Database, workspace_id: UUID, after: int
) -> tuple[list[Event], int]:
    """A workspace's events behind `after`, and the new cursor; waits for news of any workspace."""
    up_to = await tail.mark.wait_above(after)
    found = tail.since(after)
    if found is None:
        found = await events.of_workspace(
            database, workspace_id, after=after, up_to=up_to, rows_max=PAGE_MAX
        )
        if len(found) == PAGE_MAX:
            return found, found[-1].id
    mine = [event for event in found if event.workspace_id == workspace_id and event.id <= up_to]
    return mine, up_to
