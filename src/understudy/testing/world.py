"""A whole installation in virtual time: nodes, machines with daemons, agents, people.

The server and the daemon are the real ones, over a network in memory; PostgreSQL is real. Simulated
are what they stand on: time, the network, disks' durability, processes. `simulate(dsn, seed)` tells
what the auditor found; the seed replays it.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import permutations
from pathlib import Path
from random import Random
from typing import Final, final
from uuid import UUID

import httpx2
import trio

from understudy.actors import broadcast
from understudy.config import DaemonConfig, Transport
from understudy.core import limits
from understudy.core.leases import Leases
from understudy.core.limits import Limits
from understudy.daemon import spool, trust
from understudy.store import events
from understudy.store.database import Database
from understudy.testing import faults, scripted_agents
from understudy.testing.auditor import Auditor
from understudy.testing.chance import Chance
from understudy.testing.client import open_client
from understudy.testing.clock import reseed, run_virtual
from understudy.testing.disk import Disk, disks, replaced
from understudy.testing.disk_copies import copy_disk
from understudy.testing.ground import quiet, temporary_home
from understudy.testing.leftovers import wait_nothing_left
from understudy.testing.locks import Locks
from understudy.testing.network import MemoryNetwork
from understudy.testing.people import Habits, People
from understudy.testing.readers import Reader
from understudy.testing.simulated_checkout import slow_checkouts
from understudy.testing.simulated_daemon import SimulatedDaemon
from understudy.testing.simulated_keepers import Keepers
from understudy.testing.simulated_machine import SimulatedMachine
from understudy.testing.simulated_network import LATENCY_S, Weather
from understudy.testing.simulated_node import SimulatedNode
from understudy.testing.taps import tapped
from understudy.testing.tenants import Tenant, add_tenant
from understudy.testing.virtual import VirtualPostgres
from understudy.testing.virtual_process import current_process, suspendable, unwind_all

NODES: Final = 2
MACHINES: Final = 3
SLOTS: Final = 3
TENANTS: Final = (
    Habits("home", agents=(1, 2, 3, 1), issues=4, deeds=10, wonders=16),
    Habits("away", agents=(1, 2), issues=2, deeds=4, wonders=5),
)
SPREADS: Final = ((0, 0, 1), (0, 0, 1), (0, 0, 0))
"""Whose each machine is: somebody may have none."""
READ: Final = (0, 0, 1)
"""Whose events somebody follows: it costs much."""
TRANSPORTS: Final[tuple[Transport, ...]] = ("auto", "auto", "http")
PINNED_LIMIT: Final = 2
FAULTY_S: Final = 200.0
SETTLED_TRIES: Final = 800  # of 5 s each
LEASES: Final = Leases(alone_grace_s=60.0, running_max_s=200.0, queued_max_s=250.0)
"""The long ones shortened: to wait for hours takes long even where time jumps."""
ORPHAN_S: Final = 300.0
SILENCE_S: Final = 150.0
CALM_S: Final = (30.0, 60.0, 150.0)
RESTART_S: Final = (0.5, 3.0, 20.0)
CLONED_S: Final = (20.0, 50.0, 100.0)
SLOWED: Final = (
    (broadcast, "POLL_S", 10.0),
    (spool, "PAUSE_S_MAX", 4.0),
    (trust, "LOOK_S", 15.0),
    (limits, "SILENCE_S_MIN", SILENCE_S),
)
"""Who looks again and again looks less often, and nobody is silent for long: half of all simulated
time went into that."""


@dataclass(frozen=True)
class Story:
    """What came of a seed. `faults` can be muted one by one."""

    violations: list[str]
    faults: list[str]
    log: list[str]
    digest: str
    runs: int
    virtual_s: float
    statements: int


def simulate(
    dsn: str,
    seed: int,
    *,
    muted: frozenset[str] = frozenset(),
    kinds: frozenset[str] | None = None,
) -> Story:
    """What escapes from the world is a finding like those of the auditor."""
    auditor = Auditor()
    chance = Chance(seed, muted, kinds, note=auditor.note)
    passed = Passed()
    with quiet(), _uncollected(), temporary_home() as home:
        main = partial(_simulate, dsn, seed, chance, auditor, home, passed)
        try:
            run_virtual(main, seed=seed)
        except Exception as error:  # noqa: BLE001  # Whatever it is, it is to be told.
            auditor.violated(f"the-world-holds: {_first(error)!r}"[:2000])
    return Story(
        auditor.violations,
        chance.struck,
        auditor.log,
        auditor.digest(),
        len(auditor.runs),
        passed.virtual_s,
        passed.statements,
    )


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@contextmanager
def _uncollected() -> Iterator[None]:
    """Garbage is collected between worlds: an async generator that is found in the middle of one
    costs trio a task, whenever that is. What is left then stays, and need not be looked at again.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def _slowed() -> Iterator[None]:
    with ExitStack() as stack:
        for module, name, seconds in SLOWED:
            stack.enter_context(replaced(module, name, seconds))
        yield


@dataclass
class Passed:
    """By the end of the world."""

    virtual_s: float = 0.0
    statements: int = 0


async def _simulate(
    dsn: str, seed: int, chance: Chance, auditor: Auditor, home: Path, passed: Passed
) -> None:
    postgres = await VirtualPostgres.at(dsn)
    dice = Random(seed)  # noqa: S311  # It is to be repeated.
    async with postgres.open_database(dice) as database:
        reseed(seed)
        with suspendable():
            try:
                await World(database, postgres, chance, auditor, dice, home).run()
            finally:
                passed.virtual_s = trio.current_time()
                passed.statements = postgres.statements_run


@final
@dataclass
class World:
    database: Database
    """The auditor's own way: no fault befalls it."""
    postgres: VirtualPostgres
    chance: Chance
    auditor: Auditor
    dice: Random
    home: Path
    nodes: list[SimulatedNode] = field(default_factory=list)
    machines: list[SimulatedMachine] = field(default_factory=list)
    daemons: list[SimulatedDaemon] = field(default_factory=list)
    people: list[People] = field(default_factory=list)
    poison: set[UUID] = field(default_factory=set)
    """The tasks that have taken a machine down."""

    async def run(self) -> None:
        with _slowed(), slow_checkouts(), tapped(self.auditor):
            tenants = await self._set_up()
            with disks(*(machine.disk for machine in self.machines)), self.locks.installed():
                async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
                    try:
                        await self._live(nursery, tenants, stack)
                    finally:
                        nursery.cancel_scope.cancel()
                        unwind_all()
        agents = [agent for tenant in tenants for agent in tenant.agents]
        concurrency = {agent.id: agent.max_concurrent_tasks for agent in agents}
        await self.auditor.examine(self.database, concurrency, LEASES)

    async def _set_up(self) -> list[Tenant]:
        self.weather = Weather(self.chance)
        self.network = MemoryNetwork(latency_s=LATENCY_S, faults=self.weather)
        self.locks = Locks(current_process)
        for number in range(NODES):
            self.nodes.append(
                SimulatedNode(
                    f"node-{number}", self.postgres, self.network, self.chance, self.auditor,
                    LEASES, self.dice,
                )
            )  # fmt: skip
        tenants = [await add_tenant(self.database, habits.name) for habits in TENANTS]
        for number, owner in enumerate(self.chance.pick("workspaces/machines", SPREADS)):
            self._add_machine(f"machine-{number}", tenants[owner])
        for tenant, habits in zip(tenants, TENANTS, strict=True):
            for number, limit in enumerate(habits.agents):
                agent = await tenant.board.agent(f"Agent {number}", max_concurrent_tasks=limit)
                tenant.agents.append(agent)
        await self._pin(tenants[0], self.machines[0].name)
        return tenants

    async def _pin(self, tenant: Tenant, machine: str) -> None:
        """An agent that works nowhere else."""
        home = await tenant.board.runtime(machine)
        wanted = {"max_concurrent_tasks": PINNED_LIMIT, "runtime_id": home.id}
        tenant.agents.append(await tenant.board.agent("Pinned", **wanted))

    def _add_machine(self, name: str, tenant: Tenant) -> None:
        root = self.home / name
        root.mkdir()
        (root / "daemon_id").write_text(name)
        config = DaemonConfig(
            root,
            "http://127.0.0.1",
            tenant.daemon_key,
            str(tenant.board.workspace_id),
            tasks_max=SLOTS,
            orphan_s=ORPHAN_S,
            leases=LEASES,
            limits=Limits(silence_s=SILENCE_S, tool_s=200.0, requests_max=30),
            search_path=os.defpath,
            transport=self.chance.pick(f"{name}/transport", TRANSPORTS),
        )
        self._enter(root, config)

    def _enter(self, root: Path, config: DaemonConfig) -> SimulatedDaemon:
        machine = SimulatedMachine(
            root.name, Disk(root), [node.name for node in self.nodes], self.network, self.weather,
            self.chance, self.auditor, self.dice,
        )  # fmt: skip
        daemon = SimulatedDaemon(machine, replace(config, path=root), self.locks.release)
        self.machines.append(machine)
        self.auditor.machines.slots[root.name] = SLOTS
        self.auditor.machines.workspaces[root.name] = UUID(config.workspace_id)
        if config.transport == "http":
            self.auditor.machines.polling.add(root.name)
        self.daemons.append(daemon)
        return daemon

    async def _live(
        self, nursery: trio.Nursery, tenants: list[Tenant], stack: AsyncExitStack
    ) -> None:
        first = await events.last_id(self.database)
        for tenant, habits in zip(tenants, TENANTS, strict=True):
            clients = [await self._open_client(stack, tenant, node.name) for node in self.nodes]
            self.people.append(People(tenant, habits, clients, self.chance, self.auditor))
        followed = self.people[self.chance.pick("workspaces/reader", READ)]
        name = f"reader of {followed.tenant.name}"
        reader = Reader(name, followed.clients, self.chance, first)
        for node in self.nodes:
            nursery.start_soon(node.live, nursery)
        self.postgres.loses_notice = lambda: self.chance.befalls(
            self.chance.at("postgres"), faults.NOTICE_LOST
        )
        nursery.start_soon(self._restart_database)
        for machine, daemon in zip(self.machines, self.daemons, strict=True):
            self._furnish(machine, nursery)
            nursery.start_soon(machine.suffer)
            nursery.start_soon(daemon.live, nursery)
        nursery.start_soon(reader.live)
        with trio.move_on_after(FAULTY_S):
            async with trio.open_nursery() as lives:
                for these, others in permutations(self.people):
                    lives.start_soon(these.live, others.doors)
                for daemon in self.daemons[:]:
                    if self.chance.befalls(daemon.machine.name, faults.CLONED):
                        lives.start_soon(self._clone, daemon, nursery, stack)
                await trio.sleep_forever()
        self.chance.is_over = True
        for machine in self.machines:
            machine.recover()
        for node in self.nodes:
            node.recover()
        self.auditor.note("no more faults")
        if self.chance.struck:
            self.auditor.disturbed()
        await self._settle()
        await self._hear_out(reader, followed.tenant.board.workspace_id, first)
        self.auditor.is_over = True

    def _furnish(self, machine: SimulatedMachine, nursery: trio.Nursery) -> None:
        machine.keepers = Keepers(
            machine.name,
            nursery,
            self.auditor,
            scripted_agents.fate_of(
                self.chance, machine.name, poison=self.poison, take_down=machine.is_taken_down
            ),
            boot_s=machine.boot_s,
            epoch_s=machine.epoch_s,
            ended=machine.agent_ended,
        )

    async def _clone(
        self, of: SimulatedDaemon, nursery: trio.Nursery, stack: AsyncExitStack
    ) -> None:
        """Another machine boots from a copy of this one's disk, until somebody notices."""
        name = of.machine.name
        await trio.sleep(self.chance.pick(f"{name}/cloned", CLONED_S))
        path = copy_disk(of.config.path, self.home / f"{name}-copy")
        self.auditor.machines.copies[path.name] = name
        self.auditor.note(f"{name} is cloned")
        daemon = self._enter(path, of.config)
        self._furnish(daemon.machine, nursery)
        stack.enter_context(disks(daemon.machine.disk))
        try:
            async with trio.open_nursery() as life:
                life.start_soon(daemon.machine.suffer)
                life.start_soon(daemon.live, nursery)
        finally:
            daemon.machine.disappear()

    async def _open_client(
        self, stack: AsyncExitStack, tenant: Tenant, node: str
    ) -> httpx2.AsyncClient:
        key = {"Authorization": f"Bearer {tenant.person_key}"}
        client = open_client(self.network, f"http://{node}", client=tenant.name, headers=key)
        return await stack.enter_async_context(client)

    async def _restart_database(self) -> None:
        """All connections end, and for a while there are none."""
        while True:
            await trio.sleep(self.chance.pick("postgres/calm", CALM_S))
            if self.chance.befalls("postgres", faults.DATABASE_RESTART):
                away_s = self.chance.pick("postgres/away", RESTART_S)
                self.auditor.note(f"the database restarts, for {away_s:g} s")
                async with trio.open_nursery() as nursery:
                    for node in self.nodes:
                        nursery.start_soon(node.lose_database, away_s)

    async def _settle(self) -> None:
        """Until all is done, within a bound."""
        for _ in range(SETTLED_TRIES):
            if not await self._is_active():
                break
            await trio.sleep(5)
        self.auditor.machines.left_over = await wait_nothing_left(
            self.machines, self.auditor.shops, self.auditor.connections
        )

    async def _hear_out(self, reader: Reader, workspace_id: UUID, first: int) -> None:
        """Until it has been told, within a bound."""
        written = list[int]()
        for _ in range(SETTLED_TRIES):
            written = await self._written(workspace_id, first)
            if reader.heard[-1:] == written[-1:]:
                break
            await trio.sleep(5)
        self.auditor.check_stream(reader.name, reader.heard, written)

    async def _written(self, workspace_id: UUID, first: int) -> list[int]:
        rows = await self.database.pool.fetch(
            "select id from understudy.events where workspace_id = $1 and id > $2 order by id",
            workspace_id,
            first,
        )
        return [row["id"] for row in rows]

    async def _is_active(self) -> bool:
        waiting: int = await self.database.pool.fetchval(
            "select count(*) from understudy.tasks where completed_at is null"
        )
        return waiting > 0 or any(
            machine.keepers.living() or any((machine.disk.root / "runs").glob("*"))
            for machine in self.machines
        )
