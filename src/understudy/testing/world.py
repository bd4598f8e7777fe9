"""A whole installation in virtual time: two nodes, machines that fail, people that meddle.

Real: the store on PostgreSQL, the actors, the desk that answers calls. Simulated: the network, the
machines, the people, time. `simulate(dsn, seed)` returns what the auditor found; the seed replays
it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Final, final
from uuid import UUID

import trio

from understudy.actors import broadcast
from understudy.core.leases import Leases
from understudy.core.records import Agent
from understudy.http.auth import Machine
from understudy.store import events
from understudy.store.database import Database
from understudy.testing.auditor import Auditor
from understudy.testing.board import Board
from understudy.testing.chance import Chance
from understudy.testing.clock import run_virtual
from understudy.testing.fortune import AGENTS
from understudy.testing.line import LATENCIES_S, Line, LineLost
from understudy.testing.people import PASSING, People
from understudy.testing.simulated_daemon import SimulatedDaemon
from understudy.testing.simulated_machine import SimulatedMachine
from understudy.testing.simulated_node import Node, SimulatedNode
from understudy.testing.virtual import open_virtual_database

NODES: Final = 2
MACHINES: Final = 3
SLOTS: Final = 3
LIMITS: Final = (1, 2, 3, 1)
PINNED_LIMIT: Final = 2
READERS: Final = 2
FAULTY_S: Final = 600.0
SETTLED_TRIES: Final = 600  # of 5 s each
LEASES: Final = Leases(alone_grace_s=300.0, running_max_s=400.0, queued_max_s=600.0)
"""The long ones shortened: to wait for hours takes long even where time jumps."""


@dataclass(frozen=True)
class Story:
    """What came of a seed. `faults` can be muted one by one."""

    violations: list[str]
    faults: list[str]
    log: list[str]
    digest: str
    runs: int


def simulate(dsn: str, seed: int, *, muted: frozenset[str] = frozenset()) -> Story:
    return run_virtual(partial(_simulate, dsn, seed, muted), seed=seed)


async def _simulate(dsn: str, seed: int, muted: frozenset[str]) -> Story:
    chance, auditor = Chance(seed, muted), Auditor()
    dice = Random(seed)  # noqa: S311  # It is to be repeated.
    async with open_virtual_database(dsn, dice) as database:
        board = await Board.set_up(database)
        agents = [
            await board.agent(name, max_concurrent_tasks=limit)
            for name, limit in zip(AGENTS, LIMITS, strict=True)
        ]
        home = await board.runtime("machine-0")
        agents.append(
            await board.agent("Pinned", max_concurrent_tasks=PINNED_LIMIT, runtime_id=home.id)
        )
        world = World(board, chance, auditor, agents)
        for number in range(NODES):
            world.add_node(f"node-{number}", dsn, dice)
        await world.run()
    return Story(
        auditor.violations, chance.struck, auditor.log, auditor.digest(), len(auditor.runs)
    )


@final
@dataclass
class World:
    board: Board
    chance: Chance
    auditor: Auditor
    agents: list[Agent]
    nodes: list[SimulatedNode] = field(default_factory=list)
    machines: list[SimulatedMachine] = field(default_factory=list)
    heard: list[list[int]] = field(default_factory=list)

    @property
    def database(self) -> Database:
        """The auditor's own: no fault befalls it."""
        return self.board.database

    def add_node(self, name: str, dsn: str, dice: Random) -> None:
        self.nodes.append(
            SimulatedNode(name, dsn, dice, self.chance, self.auditor, LEASES, self._announce)
        )

    async def run(self) -> None:
        first = await events.last_id(self.database)
        people = People(
            self.board.user_id,
            self.board.workspace_id,
            self.agents,
            self.chance,
            self.auditor,
            self._up,
        )
        async with trio.open_nursery() as nursery:
            for node in self.nodes:
                nursery.start_soon(node.live)
            for number in range(MACHINES):
                self._add_machine(f"machine-{number}", nursery)
            for _ in range(READERS):
                self.heard.append([])
                nursery.start_soon(self._read, self.heard[-1], first)
            nursery.start_soon(people.live)
            await trio.sleep(FAULTY_S)
            self.chance.is_over = True
            self.auditor.note("no more faults")
            await self._settle(first)
            nursery.cancel_scope.cancel()
        limits = {agent.id: agent.max_concurrent_tasks for agent in self.agents}
        await self.auditor.examine(self.database, limits, LEASES)

    async def _settle(self, first: int) -> None:
        """Until all is done and told, within a bound."""
        for _ in range(SETTLED_TRIES):
            if not await self._is_active():
                break
            await trio.sleep(5)
        written = await self._written(first)
        for _ in range(SETTLED_TRIES):
            if all(heard[-1:] == written[-1:] for heard in self.heard):
                break
            await trio.sleep(5)
            written = await self._written(first)
        for number, heard in enumerate(self.heard):
            self.auditor.check_stream(f"reader {number}", heard, written)

    async def _written(self, first: int) -> list[int]:
        rows = await self.database.pool.fetch(
            "select id from understudy.events where id > $1 and workspace_id = $2 order by id",
            first,
            self.board.workspace_id,
        )
        return [row["id"] for row in rows]

    async def _is_active(self) -> bool:
        waiting: int = await self.database.pool.fetchval(
            "select count(*) from understudy.tasks where completed_at is null"
        )
        return waiting > 0 or any(machine.disk for machine in self.machines)

    # Nodes

    def _up(self) -> list[Node]:
        return [node.life for node in self.nodes if node.life is not None]

    def _announce(self, by: SimulatedNode) -> None:
        """One notification; where it is lost, the others find out by their poll."""
        for node in self.nodes:
            if node is not by and node.life and self.chance.pick("nudge", (True, False)):
                node.life.hear()

    # Machines

    def _add_machine(self, name: str, nursery: trio.Nursery) -> None:
        machine = SimulatedMachine(name, SLOTS, self.chance, self.auditor, nursery)
        daemon = SimulatedDaemon(
            machine, self.board.workspace_id, connect=self._connect, attach=self._attach
        )
        self.machines.append(machine)
        nursery.start_soon(machine.suffer)
        nursery.start_soon(daemon.live)

    async def _connect(self, machine: SimulatedMachine) -> Line:
        await trio.sleep(self.chance.pick(f"{machine.name}/connect", LATENCIES_S))
        place = self.chance.pick(f"{machine.name}/node", self.nodes)
        if (node := place.life) is None or not machine.is_reachable:
            raise LineLost("nobody is there")
        me = Machine(self.board.workspace_id, fence="full")
        line = Line(machine, node.desk, me, node=node.nursery, outlet=node.outlet)
        place.lines.append(line)
        return line

    def _attach(self, line: Line, runtime_ids: list[UUID]) -> None:
        for place in self.nodes:
            if place.life is not None and line in place.lines and not line.closed.is_set():
                life = place.life
                life.nursery.start_soon(self._take_credit, life, line, runtime_ids)

    async def _take_credit(self, node: Node, line: Line, runtime_ids: list[UUID]) -> None:
        await trio.sleep(self.chance.pick(f"{line.name}/credit", LATENCIES_S))
        try:
            for runtime_id in runtime_ids:
                await node.cast.attach(runtime_id, line.link)
        except PASSING:
            line.link.close()
            line.close()

    # Readers

    async def _read(self, heard: list[int], after: int) -> None:
        """Follow, lose the connection, come back with the last id, to whichever node."""
        while True:
            with trio.move_on_after(self.chance.pick("reader/patience", (0.3, 2.0, 20.0))):
                if not (up := self._up()):
                    await trio.sleep_forever()
                node = self.chance.pick("reader/node", up)
                try:
                    rows, after = await broadcast.follow(
                        node.tail, node.database, self.board.workspace_id, after
                    )
                    heard += [row.id for row in rows]
                except PASSING:
                    await trio.sleep(1)
