"""Finds the actor of an id, or spawns it; forgets those that have ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import final
from uuid import UUID
from weakref import WeakValueDictionary

import trio

from understudy.actors import broadcast, runtime, task
from understudy.actors.actor import Actor
from understudy.actors.mailbox import ActorGone, Ref
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
        self._places: dict[UUID, tuple[UUID, str]] = {}
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
        return runtime.RuntimeActor(self.database, identity, self.leases)

    def _task_actor(self, identity: UUID) -> Actor[task.Message]:
        return task.TaskActor(self.database, self.leases, self.newest(identity), self.committed)

    def newest(self, task_id: UUID) -> Watermark:
        """The highest message seq of a task, shared by its actor and those who watch it."""
        return self._newest.setdefault(task_id, Watermark())

    async def attend(self, row: Runtime) -> Ref[runtime.Message]:
        """See to it that a runtime has its actor, and is found when there is work for it."""
        self._places[row.id] = (row.workspace_id, row.provider)
        return await self.runtimes.find(row.id)

    def committed(self, moved: Moved | None) -> None:
        """After a commit: the streams, and the runtimes for which something became claimable.

        A terminal move is a wake-up too: the successor may start, the agent has room (R3.10).
        """
        broadcast.written(self.news)
        row = moved.task if moved else None
        if row is not None and (row.status is Status.QUEUED or row.status in TERMINAL):
            self.wake(row)

    def wake(self, row: Task) -> None:
        for runtime_id, place in list(self._places.items()):
            if place == (row.workspace_id, row.provider):
                if (actor := self.runtimes.get(runtime_id)) is None:
                    del self._places[runtime_id]
                else:
                    _hint(actor, runtime.MayHaveWork())

    def workspace_of(self, runtime_id: UUID) -> UUID | None:
        """Whose runtime it is, if this node looks after it."""
        place = self._places.get(runtime_id)
        return place[0] if place and self.runtimes.get(runtime_id) else None

    async def claim_one(self, runtime_id: UUID, *, tokened: bool) -> ClaimedTask | None:
        """For a runtime that polls. Raises `DatabaseUnavailable`."""
        answer = await self.runtimes.ask(runtime_id, lambda: runtime.Claim(tokened))
        if isinstance(answer, DatabaseUnavailable):
            raise answer
        if answer:
            self.committed(None)
        return answer[0] if answer else None

    def heard(self, runtime_id: UUID) -> bool:
        """A sign of life; false if no actor stands for this runtime here."""
        if (actor := self.runtimes.get(runtime_id)) is None:
            return False
        _hint(actor, runtime.Heard())
        return True

    async def report(self, task_id: UUID, question: Callable[[], task.Message]) -> Moved:
        """One fenced move by a daemon. Raises `DatabaseUnavailable`."""
        answer = await self.tasks.ask(task_id, question)
        if isinstance(answer, DatabaseUnavailable):
            raise answer
        return answer


def _hint(actor: Ref[runtime.Message], message: runtime.Heard | runtime.MayHaveWork) -> None:
    try:
        runtime.hint(actor, message)
    except ActorGone:
        pass  # It ended just now; the next registration makes another.
