"""The actor of one runtime: is it there, has it room, what does it get (R3, R4).

It judges by the runtime's `Presence`: when it was last heard, and over which link it takes tasks.
None of that is in the database, so a thousand idle runtimes cost nothing there (R4.3). A restart
begins with the 45 s that everybody gets (R4.4), and with the link that is open.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias
from uuid import UUID

import trio

from understudy.actors.actor import Actor
from understudy.actors.mailbox import Ask, Ref
from understudy.actors.place import FOR_ANYBODY, POLL_S, Left, Place
from understudy.actors.presence import Presence
from understudy.core.leases import Leases
from understudy.store import claims, runtimes
from understudy.store.database import Database
from understudy.store.errors import DatabaseUnavailable
from understudy.store.tasks import Fence
from understudy.wire.daemon import ClaimedTask
from understudy.wire.frames import Available, TaskAvailable

logger = logging.getLogger(__name__)

BATCH_MAX: Final = 20
DATABASE_RETRY_S: Final = 2.0


@dataclass(frozen=True)
class Heard:
    """The runtime has given a sign of life."""


@dataclass(frozen=True)
class Attached:
    """The runtime takes tasks over the link in its presence, or has more room there."""


@dataclass(frozen=True)
class MayHaveWork:
    """Something became claimable, or a slot became free, and it is this runtime's turn to look. To
    lose one costs `POLL_S`."""


@dataclass(frozen=True)
class Forget:
    """The runtime was removed."""


@dataclass(frozen=True)
class Claim(Ask["list[ClaimedTask] | DatabaseUnavailable"]):
    """A runtime that polls (R3.6): what it can do decides how the claim is fenced."""

    slots: int
    fence: Fence


Message: TypeAlias = Heard | Attached | MayHaveWork | Forget | Claim


@dataclass(frozen=True)
class Surroundings:
    """What an actor of a runtime is given by its node.

    `changed` hears of what became claimable, `left` of what a look left for others, `poll` that
    nobody has looked for long, and `committed` of claims.
    """

    database: Database
    leases: Leases
    node_id: UUID
    presence: Presence
    place: Place
    changed: Callable[[], None]
    left: Callable[[Left], None]
    poll: Callable[[], None]
    committed: Callable[[], None]


class RuntimeActor(Actor[Message]):
    def __init__(self, runtime_id: UUID, around: Surroundings) -> None:
        self._id = runtime_id
        self._around = around
        self._database = around.database
        self._presence = around.presence
        self._place = around.place
        self._retry_at = -math.inf
        """While the database is away, a deadline that has passed must not spin."""
        self._look_at = math.inf
        """When it looks, whoever else has looked."""
        self._nothing_until = -math.inf
        """Until then nothing is queued, if nothing has changed since (R3.9)."""
        self._nothing_since = -1

    async def start(self) -> None:
        row = await runtimes.find(self._database, self._id)
        if row is None:
            self.stop()
            return
        self._presence.is_hinted = False
        self._presence.heard_at = now = trio.current_time()
        await self._remember(now)
        if self._presence.link:  # It may have waited for this.
            self._look_at = now
        self._presence.is_ours = row.node_id == self._around.node_id
        self._set_deadline()

    async def _remember(self, now: float) -> None:
        """What it has in flight, from whichever node."""
        presence = self._presence
        for each in await runtimes.held(self._database, self._id):
            if each.lease_left_s is not None:
                presence.claims[each.task_id] = now + each.lease_left_s
            if each.age_s is not None:
                presence.runs[each.task_id] = now - each.age_s
            if each.is_stopping:
                presence.stops.add(each.task_id)

    async def receive(self, message: Message) -> None:
        match message:
            case Heard():
                await self._take_over()
            case Attached():
                await self._take_over()
                await self._look()
            case MayHaveWork():
                self._presence.is_hinted = False
                if not await self._look():
                    self._around.left(FOR_ANYBODY)
            case Forget():
                self.stop()
            case Claim(slots=slots, fence=fence, reply=reply):
                await self._take_over()
                try:
                    nothing = self._has_nothing()
                    reply([] if nothing else (await self._claim(slots, fence)).tasks)
                except DatabaseUnavailable as away:
                    reply(away)
        self._set_deadline()

    async def wake(self) -> None:
        now = trio.current_time()
        if self._is_silent():
            await self._go_offline()
        elif now >= self._presence.next_expiry():
            await self._take_back()
        elif now >= self._look_at:
            await self._push()
        elif now >= self._place.look_at:
            self._around.poll()
        self._set_deadline()

    def stop(self) -> None:
        """What it was to look for is looked for by another, at once."""
        super().stop()
        self._presence.changes_seen = self._place.changes
        if self._presence.is_hinted:
            self._presence.is_hinted = False
            self._around.left(FOR_ANYBODY)

    def _silent_at(self) -> float:
        return self._presence.heard_at + self._around.leases.offline_after_s

    def _is_silent(self) -> bool:
        return trio.current_time() >= self._silent_at()

    def _set_deadline(self) -> None:
        silent_at = self._silent_at()
        look_at = min(self._look_at, self._place.look_at) if self._presence.link else silent_at
        expiry_at = self._presence.next_expiry()
        self.deadline = max(min(silent_at, look_at, expiry_at), self._retry_at)

    async def _take_over(self) -> None:
        """Attend it from this node, on which it was heard."""
        if self._presence.is_ours:
            return
        try:
            row = await runtimes.take_over(
                self._database,
                self._id,
                self._around.node_id,
                heard_at=self._presence.heard_at,
            )
        except DatabaseUnavailable:
            logger.warning("runtime %s is back; the database is away", self._id)
            return
        if row is None:
            self.stop()
        else:
            self._presence.is_ours = row.node_id == self._around.node_id

    async def _go_offline(self) -> None:
        """The end of this actor, unless the runtime is heard while the database is asked.

        One that another node has heard meanwhile is that node's to judge. One that has registered
        here, and was not answered, has given a sign of life of which the database alone knows.
        """
        silent_s = trio.current_time() - self._presence.heard_at
        try:
            gone = await runtimes.go_offline(
                self._database,
                [self._id],
                action="stale_sweep",
                node_id=self._around.node_id,
                silent_s=silent_s,
            )
            if not gone and await self._is_on_record_here():
                self._presence.heard_at = trio.current_time()
        except DatabaseUnavailable:
            self._retry_at = trio.current_time() + DATABASE_RETRY_S
            return
        self._around.committed()
        self._presence.is_ours = False
        if self._is_silent():
            logger.info("runtime %s: silent for %.0f s", self._id, silent_s)
            self.stop()
        else:
            await self._take_over()

    async def _is_on_record_here(self) -> bool:
        row = await runtimes.find(self._database, self._id)
        return row is not None and row.node_id == self._around.node_id

    async def _take_back(self) -> None:
        """A lease of this live runtime has run out: its task goes back into the queue (R3.8)."""
        try:
            await self._claim(0, "full")
        except DatabaseUnavailable:
            self._retry_at = trio.current_time() + DATABASE_RETRY_S
            return
        now = trio.current_time()
        for task_id in [each for each, at in self._presence.claims.items() if at <= now]:
            del self._presence.claims[task_id]
        self._around.changed()
        self._around.committed()

    async def _look(self) -> bool:
        """Push what there is; false if it could not look, so that another must."""
        link = self._presence.link
        has_credit = link is not None and link.is_credited
        if has_credit and self._place.has_nothing_for(self._id):
            return True
        return await self._push()

    async def _push(self) -> bool:
        """Claim for the link as long as it has room and there is work."""
        self._look_at = math.inf
        self._presence.changes_seen = self._place.changes
        if (link := self._presence.link) and not link.is_credited:
            link.push(TaskAvailable(payload=Available(runtime_id=self._id)))
            return False
        has_looked = False
        while (link := self._presence.link) and (slots := await link.reserve(BATCH_MAX)):
            has_looked = True
            found = list[ClaimedTask]()
            try:
                found = (await self._claim(slots, "full")).tasks
            except DatabaseUnavailable:
                logger.warning("runtime %s waits for work; the database is away", self._id)
            finally:
                link.settle(slots, used=len(found))
            link.push_tasks(found)
            if found:
                self._around.committed()
            if len(found) < slots:
                break
        return has_looked

    def _has_nothing(self) -> bool:
        """R3.9; not while a claim of it may have run out (R3.8)."""
        now = trio.current_time()
        is_known = now < self._nothing_until and self._nothing_since == self._place.changes
        return now < self._presence.next_expiry() and (
            is_known or self._place.has_nothing_for(self._id)
        )

    async def _claim(self, slots: int, fence: Fence) -> claims.Claims:
        before = self._presence.changes_seen = self._place.changes
        claim_s = self._around.leases.claim_s
        if slots:
            self._place.looks()
        done = await claims.claim(
            self._database, self._id, slots=slots, fence=fence, claim_s=claim_s
        )
        now = trio.current_time()
        self._presence.claims.update({task.id: now + claim_s for task in done.tasks})
        self._bar(now + done.barred_s)
        self._place.looked(before, done.left_for)
        if slots:
            if not done.tasks:
                self._nothing_since, self._nothing_until = before, now + POLL_S
            self._around.left(done.left_for)
        return done

    def _bar(self, until: float) -> None:
        """Once its quota has reset it looks by itself (R5.2)."""
        self._presence.barred_until = until
        if until > trio.current_time():
            self._look_at = until


def hint(actor: Ref[Message], message: Heard | MayHaveWork | Forget) -> bool:
    """Upwards and sideways nobody waits; a full mailbox has heard enough."""
    try:
        actor.tell_nowait(message)
    except trio.WouldBlock:
        return False
    return True
