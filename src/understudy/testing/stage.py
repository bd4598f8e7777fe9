"""A stage: the actors of one node under a virtual clock, on a real database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import TypeAlias

import trio

from understudy.actors.actor import spawn
from understudy.actors.broadcast import Broadcast, Tail
from understudy.actors.cast import Cast
from understudy.actors.link import Link
from understudy.core.leases import Leases
from understudy.core.records import Runtime
from understudy.core.restarts import RestartPolicy
from understudy.core.tree import Branch
from understudy.store import runtimes
from understudy.store.database import Database
from understudy.testing.board import Board
from understudy.testing.clock import run_virtual
from understudy.testing.virtual import Fault, open_virtual_database


@dataclass
class Outage:
    """Statements that contain one of these words fail; of `crashing` ones nobody foresaw it.

    `asked` counts all of them.
    """

    failing: set[str] = field(default_factory=set)
    slow: dict[str, float] = field(default_factory=dict)
    crashing: dict[str, int] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)

    def claims(self) -> int:
        """How many there have been."""
        return sum(times for sql, times in self.asked.items() if "claim_tasks" in sql)

    def __call__(self, sql: str) -> Fault | None:
        self.asked[sql] += 1
        for word, times in self.crashing.items():
            if word in sql and times:
                self.crashing[word] -= 1
                raise ZeroDivisionError(f"a defect in {word}")
        for word, seconds in self.slow.items():
            if word in sql:
                return Fault("slow", seconds)
        return Fault("lost_request") if any(word in sql for word in self.failing) else None


@dataclass(frozen=True)
class Stage:
    """`board` has one runtime and one agent; `cast` looks after it."""

    board: Board
    cast: Cast
    tail: Tail
    outage: Outage
    tree: Branch

    @property
    def database(self) -> Database:
        return self.board.database

    async def row(self) -> Runtime:
        row = await runtimes.find(self.database, self.board.runtime_id)
        assert row is not None
        return row

    async def status(self) -> str:
        return (await self.row()).status

    async def attach(self, *, slots: int) -> Link:
        link = Link()
        link.grant(slots)
        await self.cast.attach(self.board.runtime_id, link)
        return link

    async def queue(self, title: str) -> None:
        done = await self.board.assign(await self.board.issue(title))
        assert done.task is not None
        self.cast.wake_for(done.task)


Play: TypeAlias = Callable[[Stage], Awaitable[None]]
Perform: TypeAlias = Callable[[Play], None]


def perform(dsn: str, dice: Random, seed: int, play: Play) -> None:
    """Run a play on a fresh stage, in virtual time, in the order of the seed."""
    run_virtual(partial(_perform, dsn, dice, play), seed=seed)


async def _perform(dsn: str, dice: Random, play: Play) -> None:
    outage, tail, tree = Outage(), Tail(), Branch("server")
    async with (
        open_virtual_database(dsn, dice, faults=outage) as database,
        trio.open_nursery() as nursery,
    ):
        board = await Board.set_up(database)
        news = await spawn(
            nursery,
            tree.child("broadcast"),
            lambda: Broadcast(database, tail),
            mailbox_max=16,
            policy=RestartPolicy(),
        )
        node_id = database.new_id()
        cast = Cast(database, node_id=node_id, leases=Leases(), tail=tail, news=news)
        await nursery.start(cast.run, tree)
        stage = Stage(board, cast, tail, outage, tree)
        await runtimes.take_over(database, board.runtime_id, node_id)
        await cast.attend(await stage.row())
        await play(stage)
        nursery.cancel_scope.cancel()
