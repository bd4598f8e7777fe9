"""Whether what has been slows down what is: a task's moves with an empty and with a long past."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from statistics import median
from typing import Final, Literal, TypeVar, get_args
from uuid import UUID

from bench.backlog import VACUUM, Queue
from bench.installation import make_tenant, open_store
from understudy.store import claims, tasks
from understudy.store.embedded import EmbeddedServer
from understudy.store.tasks import Holder
from understudy.testing.history import write_past

Move = Literal["claim", "start", "complete"]
T = TypeVar("T")
MICRO: Final = 1_000_000
WARM_UP: Final = 50


@dataclass(frozen=True)
class Times:
    young_us: float
    old_us: float

    @property
    def ratio(self) -> float:
        return self.old_us / self.young_us


@dataclass(frozen=True)
class Age:
    """A database, young or old, in which one runtime brings tasks to their end."""

    queue: Queue
    runtime_id: UUID
    took: dict[Move, list[float]]

    @classmethod
    async def open(cls, server: EmbeddedServer, stack: AsyncExitStack, name: str) -> Age:
        server.ensure_database(name)
        database = await stack.enter_async_context(open_store(server.dsn(name)))
        tenant = await make_tenant(database)
        queue = await Queue.open(database, tenant.workspace.id)
        return cls(queue, await queue.runtime(), {move: [] for move in get_args(Move)})

    async def run_one(self) -> None:
        database = self.queue.database
        claim = claims.claim(database, self.runtime_id, slots=1, fence="full", claim_s=60.0)
        (task,) = (await self._time("claim", claim)).tasks
        held = Holder(task.workspace_id, task.id, task.claim_token)
        await self._time("start", tasks.start(database, held))
        result = {"output": "It is done."}
        done = tasks.complete(database, held, result, session_id=None, work_dir=None)
        await self._time("complete", done)

    async def _time(self, move: Move, call: Awaitable[T]) -> T:
        began = time.perf_counter()
        done = await call
        self.took[move].append((time.perf_counter() - began) * MICRO)
        return done


async def measure(server: EmbeddedServer, *, tasks: int, rounds: int) -> dict[Move, Times]:
    async with AsyncExitStack() as stack:
        young = await Age.open(server, stack, "young")
        old = await Age.open(server, stack, "old")
        await write_past(old.queue.database, [old.queue.agent.id], old.runtime_id, tasks=tasks)
        for age in (young, old):
            await age.queue.fill(rounds + WARM_UP)
            await age.queue.database.pool.execute(VACUUM)
        for _ in range(rounds + WARM_UP):
            await young.run_one()
            await old.run_one()
    moves: tuple[Move, ...] = get_args(Move)
    return {move: Times(_middle(young.took[move]), _middle(old.took[move])) for move in moves}


def _middle(took_us: list[float]) -> float:
    return median(took_us[WARM_UP:])
