"""The actor of one runtime: is it there, has it room, what does it get (R3, R4).

Its memory is liveness: when the runtime was last heard, and over which link it takes tasks. None of
it is in the database, so a thousand idle runtimes cost nothing there (R4.3). A restart begins with
the 45 s that everybody gets (R4.4).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final, TypeAlias
from uuid import UUID

import trio

from understudy.actors.actor import Actor
from understudy.actors.link import Link
from understudy.actors.mailbox import Ask, Ref
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
    """The runtime takes tasks over this link from now on; the link may be the one it has."""

    link: Link


@dataclass(frozen=True)
class Detached:
    link: Link


@dataclass(frozen=True)
class MayHaveWork:
    """Something became claimable, or a slot became free. To lose one costs `POLL_S`."""


@dataclass(frozen=True)
class Claim(Ask["list[ClaimedTask] | DatabaseUnavailable"]):
    """A runtime that polls (R3.6): its capabilities decide whether the claim carries a token."""

    tokened: bool


Message: TypeAlias = Heard | Attached | Detached | MayHaveWork | Claim


class RuntimeActor(Actor[Message]):
    def __init__(self, database: Database, runtime_id: UUID, leases: Leases) -> None:
        self._database = database
        self._id = runtime_id
        self._leases = leases
        self._link: Link | None = None
        self._online = True

    async def start(self) -> None:
        row = await runtimes.find(self._database, self._id)
        if row is None:
            self.stop()
            return
        self._online = row.status == "online"
        self._heard_at = self._polled_at = trio.current_time()
        self._set_deadline()

    async def receive(self, message: Message) -> None:
        match message:
            case Heard():
                await self._heard()
            case Attached(link):
                self._link = link
                await self._heard()
                await self._push()
            case Detached(link):
                if self._link is link:
                    self._link = None
            case MayHaveWork():
                await self._push()
            case Claim(tokened=tokened, reply=reply):
                await self._heard()
                try:
                    reply(await self._claim(slots=1, tokened=tokened))
                except DatabaseUnavailable as away:
                    reply(away)
        self._set_deadline()

    async def wake(self) -> None:
        now = trio.current_time()
        if now >= self._heard_at + self._leases.offline_after_s:
            await self._go_offline()
        elif now >= self._polled_at + POLL_S:
            await self._push()
        self._set_deadline()

    def _set_deadline(self) -> None:
        silent_at = self._heard_at + self._leases.offline_after_s
        poll_at = self._polled_at + POLL_S if self._link else silent_at
        self.deadline = max(min(silent_at, poll_at), self._not_before())

    def _not_before(self) -> float:
        # While the database is away, a deadline that has passed must not spin.
        return trio.current_time() + (DATABASE_RETRY_S if self._retry else 0.0)

    _retry: bool = False

    async def _heard(self) -> None:
        self._heard_at = trio.current_time()
        if not self._online:
            try:
                await runtimes.come_online(self._database, self._id)
                self._online = True
            except DatabaseUnavailable:
                logger.warning("runtime %s is back; the database is away", self._id)

    async def _go_offline(self) -> None:
        try:
            if self._online:
                await runtimes.go_offline(self._database, [self._id], action="stale_sweep")
        except DatabaseUnavailable:
            self._retry = True
            return
        self._retry, self._online = False, False
        logger.info(
            "runtime %s is offline: silent for %s s", self._id, self._leases.offline_after_s
        )
        self.stop()

    async def _push(self) -> None:
        """Claim for the link as long as it has room and there is work."""
        self._polled_at = trio.current_time()
        while self._link is not None and (slots := await self._link.reserve(BATCH_MAX)):
            link, found = self._link, list[ClaimedTask]()
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
