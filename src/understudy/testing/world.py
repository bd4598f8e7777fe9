"""A whole installation in virtual time: a node that crashes, machines that die, people that assign.

Real: the store on PostgreSQL, the actors, the desk that answers calls. Simulated: the network, the
daemons, time. `simulate(dsn, seed)` returns what the auditor found; the seed replays it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Final, TypeVar, final
from uuid import UUID

import trio

from understudy.actors import broadcast
from understudy.actors.actor import spawn
from understudy.actors.broadcast import Broadcast, Tail
from understudy.actors.cast import Cast
from understudy.actors.mailbox import ActorGone
from understudy.core.leases import Leases
from understudy.core.restarts import RestartPolicy
from understudy.core.tree import Branch
from understudy.http.auth import Machine
from understudy.http.calls import Desk
from understudy.store import events, issues
from understudy.store.database import Database
from understudy.store.errors import DatabaseUnavailable
from understudy.supervisor import RestartsExhausted
from understudy.testing.auditor import Auditor
from understudy.testing.board import Board
from understudy.testing.chance import Chance
from understudy.testing.clock import run_virtual
from understudy.testing.line import LATENCIES_S, InjectedCrash, Line, LineLost
from understudy.testing.simulated_daemon import SimulatedDaemon
from understudy.testing.virtual import Fault, open_virtual_database

T = TypeVar("T")

MACHINES: Final = 3
SLOTS: Final = 3
LIMITS: Final = (1, 2, 3, 1)
ISSUES: Final = 14
READERS: Final = 2
FAULTY_S: Final = 600.0
SETTLED_TRIES: Final = 360  # of 5 s each
PASSING: Final = (DatabaseUnavailable, InjectedCrash, ActorGone)


@dataclass(frozen=True)
class Node:
    """One life of the server node."""

    cast: Cast
    desk: Desk
    tail: Tail
    nursery: trio.Nursery


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
    chance.is_over = True  # Until everything is set up.
    dice = Random(seed)  # noqa: S311  # It is to be repeated.
    faults = partial(_statement_fault, chance)
    async with open_virtual_database(dsn, dice, faults=faults) as database:
        board = await Board.set_up(database)
        await World(board, chance, auditor).run()
    return Story(
        auditor.violations, chance.struck, auditor.log, auditor.digest(), len(auditor.runs)
    )


def _statement_fault(chance: Chance, sql: str) -> Fault | None:
    site = f"sql/{' '.join(sql.split())[:60]}"
    if chance.strikes(f"{site}/crash", 0.004):
        raise InjectedCrash(site)
    if chance.strikes(f"{site}/lost_request", 0.01):
        return Fault("lost_request")
    if chance.strikes(f"{site}/lost_answer", 0.01):
        return Fault("lost_answer")
    if chance.strikes(f"{site}/slow", 0.02):
        return Fault("slow", chance.pick(site, (0.1, 1.0, 5.0, 50.0)))
    return None


@final
@dataclass
class World:
    board: Board
    chance: Chance
    auditor: Auditor
    node: Node | None = None
    lines: list[Line] = field(default_factory=list)
    limits: dict[UUID, int] = field(default_factory=dict)
    daemons: list[SimulatedDaemon] = field(default_factory=list)
    heard: list[list[int]] = field(default_factory=list)

    @property
    def database(self) -> Database:
        return self.board.database

    async def run(self) -> None:
        for number, limit in enumerate(LIMITS):
            agent = await self.board.agent(f"Agent {number}", max_concurrent_tasks=limit)
            self.limits[agent.id] = limit
        first = await events.last_id(self.database)
        self.chance.is_over = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_node)
            for number in range(MACHINES):
                nursery.start_soon(self._machine(f"machine-{number}").live)
            for _ in range(READERS):
                self.heard.append([])
                nursery.start_soon(self._read, self.heard[-1], first)
            nursery.start_soon(self._assign_issues)
            await trio.sleep(FAULTY_S)
            self.chance.is_over = True
            await self._settle(first)
            nursery.cancel_scope.cancel()
        await self.auditor.examine(self.database, self.limits)

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
        return waiting > 0 or any(daemon.disk for daemon in self.daemons)

    # The node

    async def _keep_node(self) -> None:
        while True:
            life_s = self.chance.pick("node/life", (30.0, 100.0, 300.0))
            mortal = self.chance.strikes("node/death", 0.7)
            try:
                with trio.move_on_after(life_s) if mortal else trio.CancelScope():
                    await self._run_node()
            except* (RestartsExhausted, *PASSING) as group:
                self.auditor.note(f"the node crashes: {group.exceptions[0]!r}"[:100])
            self.auditor.note("the node is down")
            self.node = None
            for line in self.lines:
                line.link.close()
                line.closed.set()
            self.lines.clear()
            await trio.sleep(self.chance.pick("node/rebirth", (0.0, 1.0, 10.0, 60.0)))

    async def _run_node(self) -> None:
        tree, tail = Branch("server"), Tail()
        async with trio.open_nursery() as nursery:
            news = await spawn(
                nursery,
                tree.child("broadcast"),
                partial(Broadcast, self.database, tail),
                mailbox_max=16,
                policy=RestartPolicy(),
            )
            node_id = self.database.new_id()
            cast = Cast(self.database, node_id=node_id, leases=Leases(), tail=tail, news=news)
            await nursery.start(cast.run, tree)
            self.node = Node(cast, Desk(cast), tail, nursery)
            await trio.sleep_forever()

    # Machines

    def _machine(self, name: str) -> SimulatedDaemon:
        daemon = SimulatedDaemon(
            name,
            self.board.workspace_id,
            SLOTS,
            self.chance,
            self.auditor,
            connect=self._connect,
            attach=self._attach,
        )
        self.daemons.append(daemon)
        return daemon

    async def _connect(self, name: str) -> Line:
        await trio.sleep(self.chance.pick(f"{name}/connect", LATENCIES_S))
        if (node := self.node) is None:
            raise LineLost("nobody is there")
        machine = Machine(self.board.workspace_id, fence="full")
        line = Line(name, node.desk, machine, self.chance, node=node.nursery)
        self.lines.append(line)
        return line

    def _attach(self, line: Line, runtime_ids: list[UUID]) -> None:
        if self.node is not None and not line.closed.is_set():
            self.node.nursery.start_soon(self._take_credit, self.node.cast, line, runtime_ids)

    async def _take_credit(self, cast: Cast, line: Line, runtime_ids: list[UUID]) -> None:
        await trio.sleep(self.chance.pick(f"{line.name}/credit", LATENCIES_S))
        try:
            for runtime_id in runtime_ids:
                await cast.attach(runtime_id, line.link)
        except PASSING:
            line.link.close()
            line.close()

    # People

    async def _assign_issues(self) -> None:
        for number in range(ISSUES):
            await trio.sleep(self.chance.pick("people/pause", (0.0, 0.0, 1.0, 10.0, 30.0)))
            issue = await self._insist(partial(self.board.issue, f"Issue {number}"))
            for _ in range(self.chance.pick("people/agents", (1, 1, 2, 3))):
                agent_id = self.chance.pick("people/agent", list(self.limits))
                await self._insist(partial(self._assign, issue.id, agent_id))
                await trio.sleep(self.chance.pick("people/change of mind", (0.0, 1.0, 20.0)))

    async def _assign(self, issue_id: UUID, agent_id: UUID) -> None:
        done = await issues.assign(self.database, self.board.workspace_id, issue_id, agent_id)
        if done.task is not None and self.node and not self.chance.strikes("lost wake", 0.1):
            self.node.cast.committed(None)
            self.node.cast.wake(done.task.workspace_id, done.task.provider)

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await ask()
            except PASSING:
                await trio.sleep(1)

    # Readers

    async def _read(self, heard: list[int], after: int) -> None:
        """Follow, lose the connection, come back with the last id."""
        while True:
            with trio.move_on_after(self.chance.pick("reader/patience", (0.3, 2.0, 20.0))):
                if (node := self.node) is None:
                    await trio.sleep_forever()
                try:
                    rows, after = await broadcast.follow(
                        node.tail, self.database, self.board.workspace_id, after
                    )
                    heard += [row.id for row in rows]
                except PASSING:
                    await trio.sleep(1)
