"""The actor: one task, one mailbox, private state."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, final

import trio

from understudy.actors.mailbox import M, Ref, leave
from understudy.core.restarts import RestartPolicy
from understudy.core.tree import Branch, Kind, Mailbox
from understudy.supervisor import supervise


class Actor(ABC, Generic[M]):
    """One incarnation. What it must not forget is in the database: `start` reads it back.

    `start`, `receive` and `wake` never overlap. The kernel sets `nursery`, `ref` and `branch`
    before `start`; tasks in the nursery end with the incarnation, and their crash is its crash.
    """

    nursery: trio.Nursery
    ref: Ref[M]
    branch: Branch
    deadline: float = math.inf
    """When to `wake`, on trio's clock; set in `start`, `receive` or `wake`."""
    stopping: bool = False

    async def start(self) -> None:
        """Load state, before the first message of each incarnation."""

    @abstractmethod
    async def receive(self, message: M) -> None:
        """Handle one message. An exception crashes the actor and drops the message.

        An `Ask` is answered before this returns, or `ActorGone` is raised in the asker.
        """

    async def wake(self) -> None:
        """The deadline has passed and is now infinity; it goes before waiting messages."""

    def stop(self) -> None:
        """End the actor for good once `start`, `receive` or `wake` returns."""
        self.stopping = True


class Nest(Protocol):
    """Where actors are spawned: a nursery, or children that stop in order."""

    def start(
        self, async_fn: Callable[..., Awaitable[object]], branch: Branch, /, *args: object
    ) -> Awaitable[Any]: ...


async def spawn(
    nest: Nest,
    branch: Branch,
    actor: Callable[[], Actor[M]],
    *,
    mailbox_max: int,
    policy: RestartPolicy,
) -> Ref[M]:
    """Start a supervised actor; returns once its first incarnation has started."""
    send, mailbox = trio.open_memory_channel[M](mailbox_max)
    life = _Life(actor, Ref(str(branch), send), mailbox)
    await nest.start(life.live, branch, policy)
    return life.ref


@final
@dataclass(eq=False)
class _Life(Generic[M]):
    """What outlives the incarnations: the mailbox and what was counted there."""

    actor: Callable[[], Actor[M]]
    ref: Ref[M]
    mailbox: trio.MemoryReceiveChannel[M]
    handled: int = 0
    busy_since: float | None = None

    async def live(
        self, branch: Branch, policy: RestartPolicy, *, task_status: trio.TaskStatus[None]
    ) -> None:
        branch.mailbox = self.statistics
        incarnate = partial(self.incarnate, branch)
        try:
            await supervise(branch, incarnate, policy, kind=Kind.ACTOR, task_status=task_status)
        finally:
            self.refuse_backlog()

    async def incarnate(self, branch: Branch, *, task_status: trio.TaskStatus[None]) -> None:
        actor = self.actor()
        actor.ref, actor.branch = self.ref, branch
        async with trio.open_nursery() as actor.nursery:
            await actor.start()
            task_status.started()
            while not actor.stopping:
                await self.step(actor)
            actor.nursery.cancel_scope.cancel()

    async def step(self, actor: Actor[M]) -> None:
        message = await _next(self.mailbox, actor.deadline)
        self.busy_since = trio.current_time()
        try:
            if isinstance(message, _Wake):
                actor.deadline = math.inf
                await actor.wake()
            else:
                await actor.receive(message)
                self.handled += 1
        finally:
            self.busy_since = None
            leave(message)

    def statistics(self, now: float) -> Mailbox:
        channel = self.mailbox.statistics()
        return Mailbox(
            depth=channel.current_buffer_used,
            size=int(channel.max_buffer_size),
            handled=self.handled,
            busy_s=None if self.busy_since is None else now - self.busy_since,
        )

    def refuse_backlog(self) -> None:
        while True:
            try:
                leave(self.mailbox.receive_nowait())
            except trio.WouldBlock:
                break
        self.mailbox.close()


@final
class _Wake:
    """What is next when the deadline comes before a message."""


async def _next(mailbox: trio.MemoryReceiveChannel[M], deadline: float) -> M | _Wake:
    with trio.move_on_at(deadline):
        return await mailbox.receive()
    return _Wake()
