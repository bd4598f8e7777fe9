"""Finds the actor of an id, or spawns it; forgets those that have ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import final
from uuid import UUID
from weakref import WeakValueDictionary

import trio

from understudy.actors import broadcast, runtime, task
from understudy.actors.actor import Actor
from understudy.actors.link import Link
from understudy.actors.mailbox import ActorGone, Ref
from understudy.actors.presence import Presence
from understudy.actors.troupe import Troupe
from understudy.actors.watermark import Watermark
from understudy.core.leases import Leases
from understudy.core.lifecycle import TERMINAL, Status
from understudy.core.records import Runtime, Task
from understudy.core.tree import Branch
from understudy.store import runtimes
from understudy.store.database import Database
from understudy.store.errors import DatabaseUnavailable
from understudy.store.tasks import Moved
from understudy.wire.daemon import ClaimedTask


@final
class Cast:
    """All actors of this node that stand for a row, and who must hear of what.

    Usable once `run` has started; then it is the one place where such actors are found.
    """

    runtimes: Troupe[runtime.Message]
    tasks: Troupe[task.Message]

    def __init__(
        self,
        database: Database,
        *,
        leases: Leases,
        tail: broadcast.Tail,
        news: Ref[broadcast.Message],
    ) -> None:
        self.database = database
        self.leases = leases
        self.tail = tail
        self.news = news
        self._presences: dict[
            UUID, Presence
        ] = {}  # As many as there are machines: none is dropped.
        self._newest: WeakValueDictionary[UUID, Watermark] = WeakValueDictionary()

    async def run(
        self, branch: Branch, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep the actors, beginning with those of all runtimes believed to be there (R4.4)."""
        async with trio.open_nursery() as nursery:
            self.runtimes = Troupe(nursery, branch.child("runtimes"), self._runtime_actor)
            self.tasks = Troupe(nursery, branch.child("tasks"), self._task_actor)
            for row in await runtimes.online(self.database):
                await self.attend(row)
            task_status.started()
            await trio.sleep_forever()

    def _runtime_actor(self, identity: UUID) -> Actor[runtime.Message]:
        presence = self._presences[identity]
        return runtime.RuntimeActor(self.database, identity, self.leases, presence)

    def _task_actor(self, identity: UUID) -> Actor[task.Message]:
        return task.TaskActor(self.database, self.leases, self.newest(identity), self.committed)

    def newest(self, task_id: UUID) -> Watermark:
        """The highest message seq of a task, shared by its actor and those who watch it."""
        return self._newest.setdefault(task_id, Watermark())

    async def attend(self, row: Runtime) -> Ref[runtime.Message]:
        """See to it that a runtime has its actor, and is found when there is work for it."""
        fresh = Presence(row.workspace_id, row.provider, row.last_seen_at, trio.current_time())
        presence = self._presences.setdefault(row.id, fresh)
        presence.seen_at = max(presence.seen_at, row.last_seen_at)
        return await self.runtimes.find(row.id)

    async def attach(self, runtime_id: UUID, link: Link) -> None:
        """The runtime takes tasks over this link from now on, or has more room there."""
        if runtime_id not in self._presences:
            row = await runtimes.find(self.database, runtime_id)
            if row is None:
                return
            await self.attend(row)
        presence = self._presences[runtime_id]
        presence.link, presence.heard_at = link, trio.current_time()
        await (await self.runtimes.find(runtime_id)).tell(runtime.Attached())

    def detach(self, runtime_id: UUID, link: Link | None = None) -> None:
        """It takes no more tasks over this link, or over any."""
        presence = self._presences.get(runtime_id)
        if presence is not None and (link is None or presence.link is link):
            presence.link = None

    def committed(self, moved: Moved | None) -> None:
        """After a commit: the streams, and the runtimes for which something became claimable.

        A terminal move is a wake-up too: the successor may start, the agent has room (R3.10).
        """
        broadcast.written(self.news)
        row = moved.task if moved else None
        if row is not None and (row.status is Status.QUEUED or row.status in TERMINAL):
            self.wake(row)

    def wake(self, row: Task) -> None:
        for runtime_id, presence in self._presences.items():
            is_meant = presence.workspace_id == row.workspace_id
            if is_meant and presence.provider == row.provider:
                self._hint(runtime_id, runtime.MayHaveWork())

    def workspace_of(self, runtime_id: UUID) -> UUID | None:
        """Whose runtime it is, if this node looks after it."""
        presence = self._presences.get(runtime_id)
        return presence.workspace_id if presence and self.runtimes.get(runtime_id) else None

    async def claim_one(self, runtime_id: UUID, *, tokened: bool) -> ClaimedTask | None:
        """For a runtime that polls. Raises `DatabaseUnavailable`."""
        self.heard(runtime_id)
        answer = await self.runtimes.ask(runtime_id, lambda: runtime.Claim(tokened))
        if isinstance(answer, DatabaseUnavailable):
            raise answer
        if answer:
            self.committed(None)
        return answer[0] if answer else None

    def heard(self, runtime_id: UUID) -> bool:
        """A sign of life; false if no actor stands for this runtime here."""
        if self.runtimes.get(runtime_id) is None:
            return False
        self._presences[runtime_id].heard_at = trio.current_time()
        self._hint(runtime_id, runtime.Heard())
        return True

    async def report(self, task_id: UUID, question: Callable[[], task.Message]) -> Moved:
        """One fenced move by a daemon. Raises `DatabaseUnavailable`."""
        answer = await self.tasks.ask(task_id, question)
        if isinstance(answer, DatabaseUnavailable):
            raise answer
        return answer

    def _hint(self, runtime_id: UUID, message: runtime.Heard | runtime.MayHaveWork) -> None:
        try:
            if (actor := self.runtimes.get(runtime_id)) is not None:
                runtime.hint(actor, message)
        except ActorGone:
            pass  # It ended just now; the next registration makes another.
