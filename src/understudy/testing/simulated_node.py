"""A server node in a simulated world: the whole of `server.py`, and what befalls it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Final, final

import trio

from understudy.config import Home, ServerConfig
from understudy.core.leases import Leases
from understudy.core.restarts import CannotStart
from understudy.core.tree import Branch
from understudy.server import run_server
from understudy.store.connection import Connection
from understudy.store.errors import DatabaseUnavailable
from understudy.supervisor import RestartsExhausted
from understudy.testing import faults
from understudy.testing.auditor import Auditor
from understudy.testing.chance import Chance
from understudy.testing.network import MemoryNetwork
from understudy.testing.virtual import COMMIT, Fault, VirtualPostgres
from understudy.testing.virtual_process import VirtualProcess, current_process

PORT: Final = 80
LIFE_S: Final = (30.0, 100.0, 300.0)
STEPS: Final = (10, 100, 1000, 4000, 10_000, 30_000)
"""Of a life that ends by SIGKILL."""
REBIRTH_S: Final = (0.0, 1.0, 5.0)
REBIRTH_LATE_S: Final = (30.0, 60.0, 120.0)
CALM_S: Final = (30.0, 100.0, 300.0)
AWAY_S: Final = (5.0, 40.0, 80.0, 160.0)
FROZEN_S: Final = (5.0, 20.0, 40.0, 100.0)
SLOW_S: Final = (0.1, 1.0, 5.0, 50.0)
SWEEP_S: Final = (5.0, 20.0, 50.0)
TAKE_OVER_S: Final = (20.0, 50.0)
REGISTRATION: Final = "insert into understudy.runtimes"
TAKE_OVER: Final = "select *, understudy.now() as read_at from understudy.runtimes"
RENEWAL: Final = "insert into understudy.nodes"
SWEEPS: Final = re.compile(r"understudy\.(lose|time_out|expire|promote|judge)_")
CRASHES: Final = (RestartsExhausted, CannotStart, DatabaseUnavailable, faults.InjectedCrash)


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
        place, befalls = self.chance.at(self.name), self.chance.befalls
        if sql == COMMIT:
            return self._lost(place, faults.COMMIT_LOST_BEFORE, faults.COMMIT_LOST_AFTER)
        if REGISTRATION in sql and befalls(place, faults.REGISTRATION_TORN):
            return Fault("lost_answer")
        if befalls(place, faults.SQL_CRASH):
            raise faults.InjectedCrash(sql[:60])
        if TAKE_OVER in sql and befalls(place, faults.TAKE_OVER_SLOW):
            return Fault("slow", self.chance.pick(f"{place}/take_over_s", TAKE_OVER_S))
        if SWEEPS.search(sql) and befalls(place, faults.SWEEP_SLOW):
            return Fault("slow", self.chance.pick(f"{place}/sweep_s", SWEEP_S))
        if befalls(place, faults.SQL_SLOW):
            return Fault("slow", self.chance.pick(f"{place}/slow_s", SLOW_S))
        if befalls(place, faults.SQL_ANSWER_LATE):
            return Fault("late_answer", self.chance.pick(f"{place}/late_s", SLOW_S))
        return self._lost(place, faults.SQL_LOST_BEFORE, faults.SQL_LOST_AFTER)

    def _lost(self, place: str, before: faults.Kind, after: faults.Kind) -> Fault | None:
        if self.chance.befalls(place, before):
            return Fault("lost_request")
        if self.chance.befalls(place, after):
            return Fault("lost_answer")
        return None


@final
@dataclass
class SimulatedNode:
    name: str
    postgres: VirtualPostgres
    network: MemoryNetwork
    chance: Chance
    auditor: Auditor
    leases: Leases
    dice: Random
    process: VirtualProcess = field(default_factory=lambda: VirtualProcess("not born"))
    outlet: Outlet = field(init=False)

    def __post_init__(self) -> None:
        self.outlet = Outlet(self.chance, self.name)
        self._illness = trio.CancelScope()
        self.postgres.witnesses.append(self._executed)

    async def live(self, nursery: trio.Nursery) -> None:
        """One life after the other, in the world's nursery."""
        nursery.start_soon(self._suffer)
        for number in range(1, 10_000):
            self.process = VirtualProcess(f"{self.name}.{number}")
            ended = trio.Event()
            asked = trio.CancelScope()
            self.process.start_soon(nursery, self.serve, asked, ended)
            await self._end(asked, ended)
            self.auditor.note(f"{self.name} is down")
            await trio.sleep(self._absence_s())

    async def _end(self, asked: trio.CancelScope, ended: trio.Event) -> None:
        """Whatever this life's end is; no life is shorter than a moment."""
        chance, process = self.chance, self.process
        if chance.befalls(self.name, faults.NODE_KILLED):
            process.kill_after(chance.pick(f"{self.name}/steps", STEPS))
        elif chance.befalls(self.name, faults.NODE_STOPPED):
            asked.deadline = trio.current_time() + chance.pick(f"{self.name}/life", LIFE_S)
        process.at_death.append(ended.set)
        await ended.wait()
        process.kill()

    def _absence_s(self) -> float:
        is_long = self.chance.befalls(self.name, faults.NODE_LATE)
        options = REBIRTH_LATE_S if is_long else REBIRTH_S
        return self.chance.pick(f"{self.name}/rebirth", options)

    async def serve(self, asked: trio.CancelScope, ended: trio.Event) -> None:
        listener = self.network.listen(self.name, PORT)
        self.process.at_death.append(listener.close)
        config = ServerConfig(home=Home(Path("/nonexistent")), leases=self.leases)
        serve = partial(run_server, dial=self._dial, dice=self.dice)
        with asked:
            try:
                await serve(config, Branch("server"), [listener])
            except* CRASHES as group:
                self.auditor.note(f"{self.name} crashes: {group.exceptions[0]!r}"[:100])
        listener.close()
        ended.set()

    def _executed(self, sql: str) -> None:
        """Others count from when its renewal was, not from when it was answered."""
        if RENEWAL in sql and current_process() is self.process:
            lease_s = self.leases.node_lease_s
            self.auditor.leased_until[self.process.name] = trio.current_time() + lease_s

    async def _dial(self) -> Connection:
        connection = await self.postgres.connect(self.outlet)
        self.process.at_death.append(connection.close)
        return connection

    def recover(self) -> None:
        """The faults are over: it is well again."""
        self._illness.cancel()

    async def _suffer(self) -> None:
        with self._illness:
            await self._fall_ill()
        self.outlet.is_cut = False
        self.process.resume()

    async def lose_database(self, seconds: float) -> None:
        self.outlet.is_cut = True
        await trio.sleep(seconds)
        self.outlet.is_cut = False

    async def _fall_ill(self) -> None:
        while True:
            await trio.sleep(self.chance.pick(f"{self.name}/calm", CALM_S))
            if self.chance.befalls(self.name, faults.NODE_WITHOUT_DATABASE):
                away_s = self.chance.pick(f"{self.name}/away", AWAY_S)
                self.auditor.note(f"{self.name} loses the database for {away_s:g} s")
                await self.lose_database(away_s)
            if self.chance.befalls(self.name, faults.NODE_FROZEN):
                await self._freeze(self.chance.pick(f"{self.name}/frozen_s", FROZEN_S))

    async def _freeze(self, seconds: float) -> None:
        self.auditor.note(f"{self.name} stands still for {seconds:g} s")
        process = self.process
        process.suspend()
        await trio.sleep(seconds)
        process.resume()
