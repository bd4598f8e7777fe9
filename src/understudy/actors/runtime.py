"""The actor of one runtime: is it there, has it room, what does it get (R3, R4).

It judges by the runtime's `Presence`: when it was last heard, and over which link it takes tasks.
None of that is in the database, so a thousand idle runtimes cost nothing there (R4.3). A restart
begins with the 45 s that everybody gets (R4.4), and with the link that is open.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Final, TypeAlias
from uuid import UUID

import trio

from understudy.actors.actor import Actor
from understudy.actors.mailbox import Ask, Ref
from understudy.actors.presence import Presence
from understudy.core.leases import Leases
from understudy.store import agents, runtimes, tasks
from understudy.store.database import Database
from understudy.store.errors import DatabaseUnavailable
from understudy.wire.daemon import ClaimedTask

logger = logging.getLogger(__name__)

BATCH_MAX: Final = 20
POLL_S: Final = 30.0
"""The fallback behind every wake-up: a lost one delays a task by at most this."""
DATABASE_RETRY_S: Final = 2.0


@dataclass(frozen=True)
class Heard:
    """The runtime has given a sign of life."""


@dataclass(frozen=True)
class Attached:
    """The runtime takes tasks over the link in its presence, or has more room there."""


@dataclass(frozen=True)
class MayHaveWork:
    """Something became claimable, or a slot became free. To lose one costs `POLL_S`."""


@dataclass(frozen=True)
class Claim(Ask["list[ClaimedTask] | DatabaseUnavailable"]):
    """A runtime that polls (R3.6): its capabilities decide whether the claim carries a token."""

    tokened: bool


Message: TypeAlias = Heard | Attached | MayHaveWork | Claim


class RuntimeActor(Actor[Message]):
    def __init__(
        self, database: Database, runtime_id: UUID, leases: Leases, presence: Presence
    ) -> None:
        self._database = database
        self._id = runtime_id
        self._leases = leases
        self._presence = presence
        self._online = True
        self._retry_at = -math.inf
        """While the database is away, a deadline that has passed must not spin."""

    async def start(self) -> None:
        row = await runtimes.find(self._database, self._id)
        if row is None:
            self.stop()
            return
        self._online = row.status == "online"
        self._presence.seen_at = row.last_seen_at
        self._presence.heard_at = now = trio.current_time()
        self._polled_at = now - POLL_S  # A link that is open may have waited for this.
        self._set_deadline()

    async def receive(self, message: Message) -> None:
        match message:
            case Heard():
                await self._come_online()
            case Attached():
                await self._come_online()
                await self._push()
            case MayHaveWork():
                await self._push()
            case Claim(tokened=tokened, reply=reply):
                await self._come_online()
                try:
                    reply(await self._claim(slots=1, tokened=tokened))
                except DatabaseUnavailable as away:
                    reply(away)
        self._set_deadline()

    async def wake(self) -> None:
        if self._is_silent():
            await self._go_offline()
        elif trio.current_time() >= self._polled_at + POLL_S:
            await self._push()
        self._set_deadline()

    def _silent_at(self) -> float:
        return self._presence.heard_at + self._leases.offline_after_s

    def _is_silent(self) -> bool:
        return trio.current_time() >= self._silent_at()

    def _set_deadline(self) -> None:
        silent_at = self._silent_at()
        poll_at = self._polled_at + POLL_S if self._presence.link else silent_at
        self.deadline = max(min(silent_at, poll_at), self._retry_at)

    async def _come_online(self) -> None:
        if self._online:
            return
        try:
            seen_at = await runtimes.come_online(self._database, self._id)
        except DatabaseUnavailable:
            logger.warning("runtime %s is back; the database is away", self._id)
            return
        self._online = True
        self._presence.seen_at = seen_at or self._presence.seen_at

    async def _go_offline(self) -> None:
        """The end of this actor, unless the runtime is heard while the database is asked."""
        try:
            await runtimes.go_offline(
                self._database, [self._id], action="stale_sweep", seen_at=self._presence.seen_at
            )
        except DatabaseUnavailable:
            self._retry_at = trio.current_time() + DATABASE_RETRY_S
            return
        self._online = False
        if self._is_silent():
            logger.info("runtime %s: silent for %s s", self._id, self._leases.offline_after_s)
            self.stop()
        else:
            await self._come_online()

    async def _push(self) -> None:
        """Claim for the link as long as it has room and there is work."""
        self._polled_at = trio.current_time()
        while (link := self._presence.link) and (slots := await link.reserve(BATCH_MAX)):
            found = list[ClaimedTask]()
            try:
                found = await self._claim(slots=slots, tokened=True)
            except DatabaseUnavailable:
                logger.warning("runtime %s waits for work; the database is away", self._id)
            finally:
                link.settle(slots, used=len(found))
            link.push_tasks(found)
            if len(found) < slots:
                return

    async def _claim(self, *, slots: int, tokened: bool) -> list[ClaimedTask]:
        claims = await tasks.claim(
            self._database, self._id, slots=slots, tokened=tokened, claim_s=self._leases.claim_s
        )
        return await agents.brief(self._database, claims) if claims else []


def hint(actor: Ref[Message], message: Heard | MayHaveWork) -> None:
    """Upwards and sideways nobody waits; a full mailbox has heard enough."""
    try:
        actor.tell_nowait(message)
    except trio.WouldBlock:
        pass
