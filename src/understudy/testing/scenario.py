"""A story told in a simulated world: real server, real daemon, and no fault but the story's.

    async def story(world: Scenario) -> None:
        laptop = await world.machine("laptop")
        fix = await world.assign("Fix the parser", works(60.0, says="Fixed."))
        await fix.until("running")
        laptop.cut_off()
        await world.pass_(300)
        laptop.mend()
        await fix.until("completed")
        assert fix.starts == 1

    enact(dsn, story)

When it is told, everything comes to rest; then the auditor's laws are checked (`auditor.py`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final, TypeAlias, final
from uuid import UUID

import httpx2
import trio

from understudy.actors import broadcast
from understudy.config import DaemonConfig
from understudy.core.leases import Leases
from understudy.core.limits import Limits
from understudy.daemon.probe import Found
from understudy.daemon.rundir import Spec
from understudy.store.database import Database
from understudy.testing.auditor import Auditor
from understudy.testing.chance import Chance
from understudy.testing.client import open_client
from understudy.testing.clock import run_virtual
from understudy.testing.disk import Disk, disks, replaced
from understudy.testing.disk_copies import copy_disk
from understudy.testing.ground import quiet, temporary_home
from understudy.testing.laptop import Laptop, Wires
from understudy.testing.leftovers import wait_nothing_left
from understudy.testing.locks import Locks
from understudy.testing.network import MemoryNetwork
from understudy.testing.simulated_keepers import Keepers
from understudy.testing.simulated_machine import SimulatedMachine
from understudy.testing.simulated_network import LATENCY_S
from understudy.testing.simulated_node import SimulatedNode
from understudy.testing.simulated_process import Play, Script
from understudy.testing.taps import tapped
from understudy.testing.tenants import add_tenant
from understudy.testing.virtual import VirtualPostgres
from understudy.testing.virtual_process import (
    VirtualProcess,
    current_process,
    suspendable,
    unwind_all,
)
from understudy.testing.work import AGAIN_S, PATIENCE_S, Work
from understudy.wire.daemon import ClaimedTask

SEED: Final = 1
NODE: Final = "node"
EVENTS_POLL_S: Final = 600.0
"""Nobody reads events here."""

Story: TypeAlias = Callable[["Scenario"], Awaitable[None]]


@dataclass(frozen=True)
class Rules:
    leases: Leases = field(default_factory=Leases)
    limits: Limits = field(default_factory=Limits)


def enact(
    dsn: str, story: Story, *, dice: Random | None = None, rules: Rules | None = None
) -> None:
    """Raises AssertionError: the story's own, or with what the auditor has found."""
    with quiet(), temporary_home() as home:
        chosen = dice or Random(SEED)  # noqa: S311  # It is to be repeated.
        play = partial(_enact, dsn, story, home, chosen, rules or Rules())
        run_virtual(play, seed=SEED)


async def _enact(dsn: str, story: Story, home: Path, dice: Random, rules: Rules) -> None:
    postgres = await VirtualPostgres.at(dsn)
    async with postgres.open_database(dice) as database:
        with suspendable():
            await Scenario(database, postgres, home, rules).enact(story)


@final
class Server:
    """A node."""

    def __init__(self, world: Scenario) -> None:
        self._nursery = world.nursery
        self._lives = 0
        self._node = SimulatedNode(
            NODE, world.postgres, world.network, world.chance, world.auditor,
            world.rules.leases, world.database.dice,
        )  # fmt: skip

    def start(self) -> None:
        self._lives += 1
        self._node.process = VirtualProcess(f"{NODE}.{self._lives}")
        self._node.process.start_soon(
            self._nursery, self._node.serve, trio.CancelScope(), trio.Event()
        )

    def kill(self) -> None:
        self._node.process.kill()

    @property
    def is_up(self) -> bool:
        return self._node.process.is_alive


@final
@dataclass
class Scenario:
    database: Database
    """The story's own way: no fault befalls it."""
    postgres: VirtualPostgres
    home: Path
    rules: Rules
    auditor: Auditor = field(default_factory=Auditor)
    machines: list[Laptop] = field(default_factory=list)
    starts: Counter[str] = field(default_factory=Counter)
    """How often an agent began, by the issue's title."""
    nursery: trio.Nursery = field(init=False)
    server: Server = field(init=False)

    def __post_init__(self) -> None:
        self.chance = Chance(SEED, kinds=frozenset())
        self.wires = Wires(self.chance)
        self.network = MemoryNetwork(latency_s=LATENCY_S, faults=self.wires)
        self.locks = Locks(current_process)
        self._agents: dict[UUID, int] = {}
        self._plays: dict[str, list[Play]] = {}
        self._disks = ExitStack()
        self._done: dict[str, Callable[[], object]] = {}

    async def enact(self, story: Story) -> None:
        failed: Exception | None = None
        seldom = replaced(broadcast, "POLL_S", EVENTS_POLL_S)
        with self._disks, self.locks.installed(), tapped(self.auditor), seldom:
            async with trio.open_nursery() as self.nursery:
                try:
                    await self._tell(story)
                except (AssertionError, trio.TooSlowError) as error:
                    failed = error  # In a group it would be hard to read.
                finally:
                    self.nursery.cancel_scope.cancel()
                    unwind_all()
        told = "\n".join(self.auditor.log)
        if failed is None:
            await self.auditor.examine(self.database, self._agents, self.rules.leases)
            failed = AssertionError(*self.auditor.violations) if self.auditor.violations else None
        if failed is not None:
            failed.add_note(told)
            raise failed

    async def _tell(self, story: Story) -> None:
        self._tenant = await add_tenant(self.database, "home")
        self.postgres.witnesses.append(self._executed)
        self.server = Server(self)
        self.server.start()
        async with open_client(
            self.network,
            f"http://{NODE}",
            client="people",
            headers={"Authorization": f"Bearer {self._tenant.person_key}"},
        ) as self._person:
            await story(self)
            await self._rest()

    async def _rest(self) -> None:
        """What is still active after an hour is the auditor's to tell."""
        self.auditor.disturbed()
        with trio.move_on_after(PATIENCE_S):
            while await self._is_active():  # noqa: ASYNC110
                await trio.sleep(AGAIN_S)
        there = [each.machine for each in self.machines if each.is_on]
        auditor = self.auditor
        auditor.machines.left_over = await wait_nothing_left(
            there, auditor.shops, auditor.connections
        )
        auditor.is_over = True

    async def _is_active(self) -> bool:
        active: int = await self.database.pool.fetchval(
            "select count(*) from understudy.tasks where completed_at is null"
        )
        return active > 0 or any(each.is_on and not each.is_empty() for each in self.machines)

    # Who is there

    async def machine(self, name: str, *, slots: int = 6, provider: str = "scripted") -> Laptop:
        """With a daemon that the server knows, and one agent CLI."""
        root = self.home / name
        root.mkdir()
        (root / "daemon_id").write_text(name)
        laptop = self._enter(name, Disk(root), slots, provider)
        with trio.fail_after(PATIENCE_S):
            while await self.standing(name) != "online":  # noqa: ASYNC110
                await trio.sleep(AGAIN_S)
        return laptop

    def clone(self, laptop: Laptop, name: str) -> Laptop:
        """Another machine boots from a copy of its disk: it believes that it is this one."""
        disk = Disk(copy_disk(laptop.path, self.home / name))
        self.auditor.machines.copies[name] = laptop.machine.name
        return self._enter(name, disk, laptop.slots, laptop.machine.clis[0].provider)

    def _enter(self, name: str, disk: Disk, slots: int, provider: str) -> Laptop:
        self._disks.enter_context(disks(disk))
        machine = SimulatedMachine(
            name, disk, [NODE], self.network, self.wires.weather, self.chance, self.auditor,
            self.database.dice,
        )  # fmt: skip
        machine.clis = [Found(provider, f"/usr/bin/{provider}", "2.1.197")]
        machine.keepers = Keepers(
            name, self.nursery, self.auditor, self._fate, boot_s=machine.boot_s,
            epoch_s=machine.epoch_s,
        )  # fmt: skip
        config = DaemonConfig(
            disk.root,
            "http://127.0.0.1",
            self._tenant.daemon_key,
            str(self._tenant.board.workspace_id),
            tasks_max=slots,
            leases=self.rules.leases,
            limits=self.rules.limits,
            search_path=os.defpath,
        )
        laptop = Laptop(machine, config, self.nursery, self.locks, self.wires)
        self.machines.append(laptop)
        self.auditor.machines.slots[name] = slots
        laptop.start_daemon()
        return laptop

    async def standing(self, machine: str) -> str | None:
        """What the server thinks of it."""
        standing: str | None = await self.database.pool.fetchval(
            "select min(status) from understudy.runtimes where daemon_id = $1", machine
        )
        return standing

    async def agent(self, name: str, **fields: object) -> None:
        made = await self.ask(
            "post", "/api/agents", {"name": name, "provider": "scripted", **fields}
        )
        self._agents[UUID(made["id"])] = made["max_concurrent_tasks"]

    async def assign(self, title: str, *plays: Play) -> Work:
        """To Nia. Her first start on it plays the first, and so on; further ones the last."""
        if not self._agents:
            await self.agent("Nia")
        self._plays[title] = [*plays]
        told = await self.ask("post", "/api/issues", {"title": title, "agent": "Nia"})
        return Work(title, told, self.database, self.ask, self.starts)

    def _fate(self, task: ClaimedTask, _spec: Spec, _earlier: int) -> Script:
        assert task.issue is not None
        title = task.issue.title
        plays = self._plays[title]
        play = plays[min(self.starts[title], len(plays) - 1)]
        self.starts[title] += 1
        return Script("scripted", play)

    # What happens

    def now(self) -> float:
        """Seconds since the story began."""
        return trio.current_time()

    async def pass_(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def until(self, condition: Callable[[], object]) -> None:
        with trio.fail_after(PATIENCE_S):
            while not condition():  # noqa: ASYNC110
                await trio.sleep(AGAIN_S)

    def once_done(self, function: str, happens: Callable[[], object]) -> None:
        """The next time that this function of `schema.sql` is committed, before anybody hears."""
        self._done[f"understudy.{function}("] = happens

    def _executed(self, sql: str) -> None:
        for function in [each for each in self._done if each in sql]:
            self.auditor.note(f"{function}) is committed, and at once")
            self._done.pop(function)()

    async def ask(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401  # JSON.
        """A person does, again and again until somebody answers."""
        while True:
            try:
                answer = await self._person.request(method, path, json=body)
            except httpx2.HTTPError:
                await trio.sleep(AGAIN_S)
            else:
                assert answer.is_success, answer.text
                return answer.json()
