"""Finds the actor of an id, or spawns it; forgets those that have ended."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar, final
from uuid import UUID
from weakref import WeakValueDictionary

import trio

from understudy.actors import broadcast, runtime, task
from understudy.actors.actor import Actor, spawn
from understudy.actors.mailbox import ActorGone, Ask, M, Ref
from understudy.actors.watermark import Watermark
from understudy.core.leases import Leases
from understudy.core.lifecycle import TERMINAL, Status
from understudy.core.records import Runtime, Task
from understudy.core.restarts import RestartPolicy
from understudy.core.tree import Branch
from understudy.store import runtimes
from understudy.store.database import Database
from understudy.store.errors import DatabaseUnavailable
from understudy.store.tasks import Moved
from understudy.supervisor import RestartsExhausted
from understudy.wire.daemon import ClaimedTask

logger = logging.getLogger(__name__)

R = TypeVar("R")
MAILBOX_MAX: Final = 64
POLICY: Final = RestartPolicy()


@final
class Troupe(Generic[M]):
    """The actors of one kind, by id. One that crashes too often ends alone: the next call that
    needs it makes another, and the others play on."""

    def __init__(
        self, nursery: trio.Nursery, branch: Branch, make: Callable[[UUID], Actor[M]]
    ) -> None:
        self._nursery = nursery
        self._branch = branch
        self._make = make
        self._actors: dict[UUID, Ref[M]] = {}
        self._alive: set[UUID] = set()
        self._spawning: dict[UUID, trio.Event] = {}

    def get(self, identity: UUID) -> Ref[M] | None:
        return self._actors.get(identity)

    async def find(self, identity: UUID) -> Ref[M]:
        """The live actor, spawned if there is none. What its `start` raises is raised here."""
        while (spawning := self._spawning.get(identity)) is not None:
            await spawning.wait()
        if (ref := self._actors.get(identity)) is not None:
            return ref
        self._spawning[identity] = trio.Event()
        try:
            ref = await spawn(
                _Contained(self, identity),
                self._branch.child(str(identity)),
                lambda: self._make(identity),
                mailbox_max=MAILBOX_MAX,
                policy=POLICY,
            )
            if identity in self._alive:  # It may have had nothing to do.
                self._actors[identity] = ref
        finally:
            self._spawning.pop(identity).set()
        return ref

    async def ask(self, identity: UUID, question: Callable[[], Ask[R]]) -> R:
        """Ask it; once more if it ended just then. Every question here may be asked twice."""
        try:
            return await (await self.find(identity)).ask(question())
        except ActorGone:
            return await (await self.find(identity)).ask(question())

    async def run(
        self,
        identity: UUID,
        live: Callable[..., Awaitable[object]],
        *arguments: object,
        task_status: trio.TaskStatus[None],
    ) -> None:
        self._alive.add(identity)
        try:
            await live(*arguments, task_status=task_status)
        except RestartsExhausted:
            logger.exception("given up until it is needed again")
        finally:
            self._alive.discard(identity)
            self._actors.pop(identity, None)


@final
@dataclass(frozen=True)
class _Contained(Generic[M]):
    """The nest of one actor of a troupe."""

    troupe: Troupe[M]
    identity: UUID

    def start(
        self, async_fn: Callable[..., Awaitable[object]], branch: Branch, /, *args: object
    ) -> Awaitable[Any]:
        return self.troupe._nursery.start(  # noqa: SLF001  # One class in two halves.
            self.troupe.run, self.identity, async_fn, branch, *args
        )


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
