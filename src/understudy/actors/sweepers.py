"""The sweepers: one actor per sweep. They find whatever no other actor looks after any more.

A sweep is one bounded transaction, made by one node at a time (store/sweeps.py). Its actor says
when: at every tick, sooner when a batch came back full or somebody knows of work, and for what is
due at a time that is known, then.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sized
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeAlias, final
from uuid import UUID

import trio

from understudy.actors.actor import Actor, spawn
from understudy.actors.mailbox import ActorGone, Ask, Ref
from understudy.core.leases import Leases
from understudy.core.restarts import RestartPolicy
from understudy.core.tree import Branch
from understudy.store import sweeps
from understudy.store.database import Database
from understudy.store.errors import DatabaseUnavailable

logger = logging.getLogger(__name__)

SELDOM_S: Final = 3600.0
"""For what is days old when its time comes."""
PAUSE_S: Final = 0.1
"""Between two batches, and between hints: others want the database, too."""
DUE_S_MIN: Final = 0.001
MAILBOX_MAX: Final = 8


@dataclass(frozen=True)
class Soon:
    """There may be something to sweep. To lose one costs a tick."""


@dataclass(frozen=True)
class Swept:
    """`rows`: how many were moved. `is_full`: there may be more."""

    rows: int
    is_full: bool


@dataclass(frozen=True)
class SweepNow(Ask["Swept | DatabaseUnavailable"]):
    """One batch at once."""


Message: TypeAlias = Soon | SweepNow


@dataclass(frozen=True)
class Sweep:
    """`batch` moves up to `batch_max` rows and says how many. `next_due_in`: seconds, if known."""

    name: str
    batch: Callable[[], Awaitable[int]]
    every_s: float
    batch_max: int = sweeps.BATCH_MAX
    may_run: Callable[[], bool] = lambda: True
    next_due_in: Callable[[], Awaitable[float | None]] | None = None


@dataclass
class Tally:
    """What a sweep has done since the node started; outlives the actor's incarnations."""

    runs: int = 0
    rows: int = 0
    last_rows: int = 0
    last_at: float | None = None
    """On trio's clock."""
    last_took_s: float = 0.0
    longest_s: float = 0.0

    def note(self, rows: int, began_at: float, now: float) -> None:
        self.runs += 1
        self.rows += rows
        self.last_rows, self.last_at = rows, now
        self.last_took_s = now - began_at
        self.longest_s = max(self.longest_s, self.last_took_s)


class SweeperActor(Actor[Message]):
    def __init__(self, sweep: Sweep, tally: Tally, committed: Callable[[], None]) -> None:
        self._sweep = sweep
        self._tally = tally
        self._committed = committed
        self._is_away = False
        self._rested_at = trio.current_time()

    async def start(self) -> None:
        """At once, but for one that has crashed: what it crashed on is still there, and to crash
        on it at every tick is no reason to stop the node."""
        is_first = self.branch.incarnation == 1
        self.deadline = trio.current_time() + (0.0 if is_first else self._sweep.every_s)

    async def receive(self, message: Message) -> None:
        match message:
            case Soon():
                next_at = max(trio.current_time(), self._rested_at)
                self.deadline = min(self.deadline, next_at)
            case SweepNow(reply=reply):
                reply(await self._run())

    async def wake(self) -> None:
        await self._run()

    async def _run(self) -> Swept | DatabaseUnavailable:
        began_at = trio.current_time()
        self.deadline = began_at + self._sweep.every_s
        if not self._sweep.may_run():
            return Swept(0, is_full=False)
        try:
            rows = await self._sweep.batch()
            due_in_s = await self._sweep.next_due_in() if self._sweep.next_due_in else None
        except DatabaseUnavailable as away:
            if not self._is_away:
                logger.warning("%s waits: the database is away", self._sweep.name)
            self._is_away = True
            return away
        self._is_away = False
        swept = Swept(rows, is_full=rows >= self._sweep.batch_max)
        self._plan(swept, due_in_s)
        self._tally.note(rows, began_at, trio.current_time())
        if rows:
            logger.info("%s: %d", self._sweep.name, rows)
            self._committed()
        return swept

    def _plan(self, swept: Swept, due_in_s: float | None) -> None:
        now = trio.current_time()
        self._rested_at = now + PAUSE_S
        if swept.is_full:
            self.deadline = self._rested_at
        elif due_in_s is not None:
            self.deadline = min(self.deadline, now + max(due_in_s, DUE_S_MIN))


def all_sweeps(
    database: Database, node_id: UUID, leases: Leases, may_judge: Callable[[], bool]
) -> list[Sweep]:
    """`may_judge`: what was given up on may come back first, after a start (R4.4)."""
    tick_s = leases.sweep_every_s

    def judging(name: str, sweep: Callable[[Database, Leases], Awaitable[Sized]]) -> Sweep:
        return Sweep(name, partial(_count, sweep, database, leases), tick_s, may_run=may_judge)

    return [
        Sweep("offline", partial(_count, sweeps.judge, database, node_id, leases), tick_s),
        judging("lose", sweeps.lose),
        judging("time_out", sweeps.time_out),
        judging("expire", sweeps.expire),
        Sweep(
            "promote",
            partial(_count, sweeps.promote, database),
            tick_s,
            next_due_in=partial(sweeps.next_due_in, database),
        ),
        Sweep("retire", partial(_count, sweeps.retire, database, leases), SELDOM_S),
        Sweep(
            "prune",
            partial(sweeps.prune, database, leases),
            SELDOM_S,
            batch_max=sweeps.EVENTS_MAX,
        ),
    ]


async def _count(sweep: Callable[..., Awaitable[Sized]], *arguments: object) -> int:
    return len(await sweep(*arguments))


@final
@dataclass
class Sweepers:
    """A node's sweepers, by name, once `run` has started."""

    sweeps: list[Sweep]
    committed: Callable[[], None]
    tallies: dict[str, Tally] = field(default_factory=dict)
    _refs: dict[str, Ref[Message]] = field(default_factory=dict)

    async def run(
        self, branch: Branch, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with trio.open_nursery() as nursery:
            for sweep in self.sweeps:
                tally = self.tallies[sweep.name] = Tally()
                self._refs[sweep.name] = await spawn(
                    nursery,
                    branch.child(sweep.name),
                    partial(SweeperActor, sweep, tally, self.committed),
                    mailbox_max=MAILBOX_MAX,
                    policy=RestartPolicy(),
                )
            task_status.started()
            await trio.sleep_forever()

    def soon(self, name: str) -> None:
        """Somebody knows of work for it."""
        try:
            self._refs[name].tell_nowait(Soon())
        except (trio.WouldBlock, ActorGone):
            pass

    async def sweep_now(self, name: str) -> Swept:
        """One batch. Raises `DatabaseUnavailable`."""
        answer = await self._refs[name].ask(SweepNow())
        if isinstance(answer, DatabaseUnavailable):
            raise answer
        return answer
