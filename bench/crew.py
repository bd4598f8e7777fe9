"""A daemon without agents: a real link to a real server, and each run ends as soon as it began."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import SystemRandom
from typing import Final, final
from uuid import UUID

import trio

from bench.backlog import PROVIDER, TEXT
from bench.installation import Node, Tenant
from understudy.config import DaemonConfig
from understudy.core.records import Message
from understudy.daemon.link import Link, dial
from understudy.wire.daemon import (
    ClaimedTask,
    Complete,
    Held,
    Messages,
    Register,
    Registered,
    RuntimeOffer,
)

NOWHERE: Final = "/nonexistent"


@final
class Crew:
    """What the link asks of a daemon (`Host`). `took_s` is what each run took, in seconds."""

    def __init__(
        self, link: Link, nursery: trio.Nursery, registration: Register, size: int
    ) -> None:
        self.took_s: list[float] = []
        self.has_begun = trio.Event()
        self._link = link
        self._nursery = nursery
        self._registration = registration
        self._size = size
        self._at_work = 0
        self._is_leaving = False
        self._idle = trio.Event()

    async def connected(self) -> list[UUID]:
        answer = await self._link.call("register", self._registration)
        assert isinstance(answer, Registered)
        return [each.id for each in answer.runtimes]

    def free_slots(self) -> int:
        return 0 if self._is_leaving else self._size - self._at_work

    def link_changed(self) -> None:
        pass  # Nobody asks.

    def stop(self, task_ids: Sequence[UUID]) -> None:
        assert not task_ids, "nobody cancels here"

    def trusted(self, asked_at: float, trust_s: Mapping[UUID, float]) -> None:
        pass  # It runs nothing that could outlive its trust.

    def take(self, tasks: list[ClaimedTask]) -> None:
        for task in tasks:
            self._at_work += 1
            self._nursery.start_soon(self._run, task)

    async def leave(self) -> None:
        """Finish what was begun, and take no more."""
        self._is_leaving = True
        while self._at_work:
            await self._idle.wait()

    async def _run(self, task: ClaimedTask) -> None:
        began, token = time.perf_counter(), task.claim_token
        said = [Message(seq=0, type="text", content=TEXT)]
        deliver = self._link.deliver
        await deliver("start", Held(claim_token=token), task.id)
        await deliver("messages", Messages(claim_token=token, messages=said), task.id)
        await deliver("complete", Complete(claim_token=token, output=TEXT), task.id)
        self.took_s.append(time.perf_counter() - began)
        self.has_begun.set()
        self._at_work -= 1
        self._link.offer(self.free_slots())
        if not self._at_work:
            self._tell_idle()

    def _tell_idle(self) -> None:
        self._idle.set()
        self._idle = trio.Event()


@asynccontextmanager
async def open_crew(node: Node, tenant: Tenant, *, size: int) -> AsyncIterator[Crew]:
    """One connection on which so many runs are under way at any time."""
    workspace_id = str(tenant.workspace.id)
    registration = Register(
        workspace_id=workspace_id,
        daemon_id="crew",
        device_name="here",
        runtimes=[RuntimeOffer(type=PROVIDER, version="1")],
    )
    config = DaemonConfig(Path(NOWHERE), node.address, tenant.daemon_key, workspace_id)
    async with trio.open_nursery() as nursery:
        link = Link(dial(config), heartbeat_s=config.leases.heartbeat_s, dice=SystemRandom())
        crew = Crew(link, nursery, registration, size)
        await nursery.start(link.run, crew)
        yield crew
        with trio.fail_after(30):
            await crew.leave()
        nursery.cancel_scope.cancel()
