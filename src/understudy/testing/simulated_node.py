"""A server node in a simulated world: real actors; it crashes, is killed, loses the database."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Final, final

import trio

from understudy.actors import broadcast
from understudy.actors.actor import spawn
from understudy.actors.broadcast import Broadcast, Tail
from understudy.actors.cast import Cast
from understudy.actors.courier import Courier
from understudy.actors.mailbox import ActorGone, Ref
from understudy.actors.node import NodeLease
from understudy.actors.sweepers import Sweepers, all_sweeps
from understudy.config import Home, ServerConfig
from understudy.core.leases import Leases
from understudy.core.restarts import RestartPolicy
from understudy.core.tree import Branch
from understudy.http.calls import Desk
from understudy.store.database import Database
from understudy.store.errors import DatabaseUnavailable
from understudy.supervisor import RestartsExhausted, supervise
from understudy.testing.auditor import Auditor
from understudy.testing.chance import Chance
from understudy.testing.line import InjectedCrash, Line
from understudy.testing.virtual import Fault, virtual_pool

CRASHES: Final = (RestartsExhausted, DatabaseUnavailable, InjectedCrash, ActorGone)
CALM_S: Final = (30.0, 100.0, 300.0)
REBIRTH_S: Final = (0.0, 1.0, 10.0, 60.0, 120.0)
AWAY_S: Final = (5.0, 40.0, 80.0, 160.0)


@final
@dataclass
class Outlet:
    """Its way to the database, with the faults of each statement."""

    chance: Chance
    name: str
    is_cut: bool = False

    def __call__(self, sql: str) -> Fault | None:
        if self.is_cut:
            return Fault("lost_request")
        chance, site = self.chance, f"{self.name}/sql/{' '.join(sql.split())[:60]}"
        if chance.strikes(f"{site}/crash", 0.003):
            raise InjectedCrash(site)
        if chance.strikes(f"{site}/lost_request", 0.006):
            return Fault("lost_request")
        if chance.strikes(f"{site}/lost_answer", 0.006):
            return Fault("lost_answer")
        if chance.strikes(f"{site}/slow", 0.015):
            return Fault("slow", chance.pick(site, (0.1, 1.0, 5.0, 50.0)))
        return None


@dataclass(frozen=True)
class Node:
    """One life of it."""

    database: Database
    cast: Cast
    desk: Desk
    tail: Tail
    news: Ref[broadcast.Message]
    nursery: trio.Nursery
    lease: NodeLease
    outlet: Outlet

    def hear(self) -> None:
        """Another node has written something, or has just come."""
        broadcast.nudged(self.news)
        self.lease.meet()


@final
@dataclass
class SimulatedNode:
    name: str
    dsn: str
    dice: Random
    chance: Chance
    auditor: Auditor
    leases: Leases
    announce: Callable[[SimulatedNode], None]
    """Tell the other nodes that something was written."""
    life: Node | None = None
    lines: list[Line] = field(default_factory=list)

    async def live(self) -> None:
        while True:
            life_s = self.chance.pick(f"{self.name}/life", CALM_S)
            mortal = self.chance.strikes(f"{self.name}/death", 0.6)
            outlet = Outlet(self.chance, self.name)
            try:
                with trio.move_on_after(life_s) if mortal else trio.CancelScope() as scope:
                    await self._run(outlet, scope)
            except* CRASHES as group:
                self.auditor.note(f"{self.name} crashes: {group.exceptions[0]!r}"[:100])
            self.auditor.note(f"{self.name} is down")
            await trio.sleep(self.chance.pick(f"{self.name}/rebirth", REBIRTH_S))

    async def _run(self, outlet: Outlet, scope: trio.CancelScope) -> None:
        pool = virtual_pool(self.dsn, outlet)
        is_killed = self.chance.strikes(f"{self.name}/kill", 0.5)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._lose_database, outlet)
                nursery.start_soon(_pull_out, outlet, scope.deadline, is_killed)
                self.life = await self._start(nursery, Database(pool, self.dice), outlet)
                await trio.sleep_forever()
        finally:
            self.life = None
            for line in self.lines:
                line.link.close()
                line.closed.set()
            self.lines.clear()
            with trio.CancelScope(shield=True):
                await pool.aclose()

    async def _start(self, nursery: trio.Nursery, database: Database, outlet: Outlet) -> Node:
        """As `server.py` does, but for what speaks to a network."""
        tree, tail, node_id = Branch("server"), Tail(), database.new_id()
        news = await spawn(
            nursery,
            tree.child("broadcast"),
            partial(Broadcast, database, tail, partial(self.announce, self)),
            mailbox_max=16,
            policy=RestartPolicy(),
        )
        cast = Cast(database, node_id=node_id, leases=self.leases, tail=tail, news=news)
        config = ServerConfig(home=Home(Path("/")), leases=self.leases)
        lease = NodeLease(database, config, node_id, partial(self._meet, cast))
        cast.leased_until = lease.ends_at
        sweeps = all_sweeps(database, node_id, self.leases, lease.may_judge)
        sweepers = Sweepers(sweeps, partial(cast.committed, None))
        courier = Courier(cast, sweepers)
        await nursery.start(supervise, tree.child("node"), lease.run, RestartPolicy())
        await nursery.start(cast.run, tree)
        await nursery.start(sweepers.run, tree.child("sweepers"))
        await nursery.start(supervise, tree.child("courier"), courier.run, RestartPolicy())
        return Node(database, cast, Desk(cast), tail, news, nursery, lease, outlet)

    def _meet(self, cast: Cast, has_peers: bool) -> None:  # noqa: FBT001  # As told.
        is_first = has_peers and not cast.has_peers
        cast.has_peers = has_peers
        if is_first:
            self.announce(self)

    async def _lose_database(self, outlet: Outlet) -> None:
        while True:
            await trio.sleep(self.chance.pick(f"{self.name}/calm", CALM_S))
            if self.chance.strikes(f"{self.name}/loses the database", 0.3):
                away_s = self.chance.pick(f"{self.name}/away", AWAY_S)
                self.auditor.note(f"{self.name} loses the database for {away_s:g} s")
                outlet.is_cut = True
                await trio.sleep(away_s)
                outlet.is_cut = False


async def _pull_out(outlet: Outlet, at: float, is_killed: bool) -> None:  # noqa: FBT001
    """Who is killed says no last word."""
    if is_killed:
        await trio.sleep_until(at - 0.001)
        outlet.is_cut = True
