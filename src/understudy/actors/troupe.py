"""The actors of one kind, by id: found, or spawned; forgotten when they have ended."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar, final
from uuid import UUID

import trio

from understudy.actors.actor import Actor, spawn
from understudy.actors.mailbox import ActorGone, Ask, M, Ref
from understudy.core.restarts import RestartPolicy
from understudy.core.tree import Branch
from understudy.supervisor import RestartsExhausted

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
