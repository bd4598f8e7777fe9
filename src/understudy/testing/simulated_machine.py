"""A machine in a simulated world: its clocks, its disk, its way to the server, what befalls it.

It is what a daemon's code finds behind `understudy.daemon.machine.here`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final, TypeAlias, TypeVar, final

import trio

from understudy.daemon import rundir
from understudy.daemon.files import replace_file
from understudy.daemon.polling import PolledSession
from understudy.daemon.probe import Found
from understudy.daemon.processes import Process
from understudy.daemon.session import headers
from understudy.testing import faults
from understudy.testing.auditor import Auditor
from understudy.testing.chance import Chance
from understudy.testing.client import open_client
from understudy.testing.disk import Disk
from understudy.testing.network import MemoryNetwork
from understudy.testing.simulated_keepers import Keepers
from understudy.testing.simulated_network import Way, Weather
from understudy.testing.simulated_node import PORT
from understudy.testing.virtual import EPOCH
from understudy.testing.virtual_process import VirtualProcess

CALM_S: Final = (20.0, 60.0, 120.0, 240.0)
NAPS_S: Final = (20.0, 60.0, 100.0, 200.0, 600.0)
WORKS_S: Final = (1.0, 5.0, 15.0)
NAPS_AT_WORK_S: Final = (55.0, 80.0, 140.0, 200.0)
NIGHTS_S: Final = (900.0, 8 * 3600.0, 3 * 86400.0)
"""At the end of all faults whoever sleeps is woken."""
PARTITIONS_S: Final = (10.0, 40.0, 95.0, 150.0, 500.0)
IN_VAIN_S: Final = (3.0, 20.0, 50.0)
VICTIM_STEPS: Final = (1, 1, 2, 5, 10)
FULL_S: Final = (5.0, 30.0, 120.0)
DRIFTS: Final = (1e-4, -1e-4, 5e-4, -5e-4)
JUMPS_S: Final = (-3600.0, -1.0, 30.0, 86400.0)

SOON_S: Final = (0.0, 0.0, 0.05, 0.5)
BLOWS_MAX: Final = 100

R = TypeVar("R")
Blow: TypeAlias = tuple[Callable[[], None], float]
"""What befalls the machine, and in how many seconds."""


@final
@dataclass(eq=False)
class SimulatedMachine:
    name: str
    disk: Disk
    nodes: Sequence[str]
    network: MemoryNetwork
    weather: Weather
    chance: Chance
    auditor: Auditor
    dice: Random
    keepers: Keepers = field(init=False)
    daemons: list[VirtualProcess] = field(default_factory=list)
    clis: list[Found] = field(default_factory=lambda: [Found("scripted", "", "1.0")])
    is_asleep: bool = False

    def __post_init__(self) -> None:
        self._drift = 0.0
        if self.chance.befalls(self.name, faults.CLOCK_DRIFTS):
            self._drift = self.chance.pick(f"{self.name}/drift", DRIFTS)
        self._jumped_s = 0.0
        self._booted_at = trio.current_time()
        self._woke = trio.Event()
        self._illness = trio.CancelScope()
        self._blows, self._dealt = trio.open_memory_channel[Blow](BLOWS_MAX)

    # What its daemon asks of it

    def boot_s(self) -> float:
        return (trio.current_time() - self._booted_at) * (1 + self._drift)

    def slept_s(self) -> float:
        """trio's clock goes on while it sleeps; what is left is how wrong its own clock is."""
        return (trio.current_time() - self._booted_at) * self._drift

    def monotonic_s(self) -> float:
        return self.boot_s()

    def epoch_s(self) -> float:
        return EPOCH.timestamp() + trio.current_time() + self._jumped_s

    async def find_clis(self, path: str) -> list[Found]:
        await trio.lowlevel.checkpoint()
        return self.clis

    async def open_tcp(self, host: str, port: int) -> trio.abc.Stream:
        """Whatever the address: one of the nodes, as a load balancer would."""
        return await self.network.connect(self._node(), PORT, client=self.name)

    def _node(self) -> str:
        return self.chance.pick(f"{self.name}/node", self.nodes)

    @asynccontextmanager
    async def poll(self, token: str, slots: int) -> AsyncIterator[PolledSession]:
        """R11.1: the daemon's way over HTTP."""
        base_url = f"http://{self._node()}"
        async with open_client(
            self.network, base_url, client=self.name, headers=headers(token)
        ) as http:
            yield PolledSession(http, slots=slots)

    async def start_keeper(self, run_dir: Path, descriptors: Sequence[int]) -> str:
        if self.chance.befalls(self.name, faults.ASLEEP_AT_WORK):
            after_s = self.chance.pick(f"{self.name}/works for", WORKS_S)
            self.close_lid(self.chance.pick(f"{self.name}/nap at work", NAPS_AT_WORK_S), after_s)
        return await self.keepers.start(run_dir, descriptors)

    async def connect(self, address: Path) -> trio.abc.Stream:
        return await self.keepers.connect(address)

    def marked(self, run: str) -> list[Process]:
        return self.keepers.marked(run)

    def name_of(self, process: Process) -> str:
        return self.keepers.name_of(process)

    def send(self, receivers: Iterable[Process], number: int) -> None:
        self.keepers.send(receivers, number)

    async def aside(self, function: Callable[[], R]) -> R:
        await trio.lowlevel.checkpoint()
        return function()

    # What befalls it

    async def suffer(self) -> None:
        """Until the faults are over; then it is well again."""
        with self._illness:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._take_blows)
                await self._fall_ill()
        if self.is_asleep:
            self._wake()
        self.disk.free()
        self.weather.partitions.pop(self.name, None)

    def recover(self) -> None:
        self._illness.cancel()

    async def _fall_ill(self) -> None:
        chance, name = self.chance, self.name
        while True:
            await trio.sleep(chance.pick(f"{name}/calm", CALM_S))
            if chance.befalls(name, faults.ASLEEP):
                await self.sleep(chance.pick(f"{name}/nap", NAPS_S))
            elif chance.befalls(name, faults.ASLEEP_LONG):
                await self.sleep(chance.pick(f"{name}/night", NIGHTS_S))
            elif chance.befalls(name, faults.DISK_FULL):
                await self._fill_disk(chance.pick(f"{name}/full", FULL_S))
            elif chance.befalls(name, faults.CLOCK_JUMPS):
                self._jumped_s += chance.pick(f"{name}/jump", JUMPS_S)
                self.auditor.note(f"{name}'s wall clock jumps")
            if chance.befalls(name, faults.KEEPER_KILLED):
                self._kill_one(self.keepers.keepers())
            if chance.befalls(name, faults.AGENT_KILLED):
                self._kill_one(self.keepers.agents())
            await self._lose_network()

    async def _take_blows(self) -> None:
        """Not in the name of whoever has dealt them: he may be gone by then."""
        async for strike, after_s in self._dealt:
            await trio.sleep(after_s)
            await self.awake()
            strike()

    def agent_ended(self) -> None:
        """Its end has just been written down."""
        if self.chance.befalls(self.name, faults.POWER_CUT_AT_END):
            self._blows.send_nowait((self._go_down, self.chance.pick(f"{self.name}/soon", SOON_S)))

    def close_lid(self, seconds: float, after_s: float = 0.0) -> None:
        """On whatever is at work there."""

        def strike() -> None:
            self._nursery.start_soon(self.sleep, seconds)

        self._blows.send_nowait((strike, after_s))

    def cut_off_soon(self, seconds: float, after_s: float) -> None:
        def strike() -> None:
            self._cut_off("both", seconds, is_patient=False)

        self._blows.send_nowait((strike, after_s))

    def is_taken_down(self) -> None:
        """By an agent: it is made anew, as a cloud's machines are."""
        if not self.chance.is_over:
            self._blows.send_nowait((self._go_down_for_good, 0.0))

    def _go_down(self) -> None:
        self._kill_daemons()
        self.lose_power()

    def _go_down_for_good(self) -> None:
        self._kill_daemons()
        self.lose_disk()

    def _kill_daemons(self) -> None:
        for process in self.daemons:
            process.kill()

    def _kill_one(self, processes: Sequence[VirtualProcess]) -> None:
        if processes:
            process = self.chance.pick(f"{self.name}/victim", processes)
            self.auditor.note(f"{process.name} is killed")
            process.kill_after(self.chance.pick(f"{self.name}/victim's steps", VICTIM_STEPS))

    async def _lose_network(self) -> None:
        ways: tuple[tuple[faults.Kind, Way], ...] = (
            (faults.PARTITION_UP, "up"),
            (faults.PARTITION_DOWN, "down"),
            (faults.PARTITION, "both"),
        )
        for kind, way in ways:
            if self.chance.befalls(self.name, kind):
                seconds = self.chance.pick(f"{self.name}/partition", PARTITIONS_S)
                is_patient = self.chance.pick(f"{self.name}/patient", (True, False))
                self._cut_off(way, seconds, is_patient=is_patient)
                if self.chance.befalls(self.name, faults.RESTARTED_IN_VAIN):
                    after_s = self.chance.pick(f"{self.name}/in vain after", IN_VAIN_S)
                    self._blows.send_nowait((self._kill_daemons, after_s))

    def _cut_off(self, way: Way, seconds: float, *, is_patient: bool) -> None:
        self.auditor.note(f"{self.name} is cut off {way} for {seconds:g} s")
        self.weather.cut_off(self.name, way, seconds, is_patient=is_patient)

    async def awake(self) -> None:
        while self.is_asleep:
            await self._woke.wait()

    async def sleep(self, seconds: float) -> None:
        await self.awake()
        self.auditor.note(f"{self.name} sleeps for {seconds:g} s")
        self.is_asleep, self._woke = True, trio.Event()
        for process in self.daemons:
            process.suspend()
        self.keepers.suspend()
        await trio.sleep(seconds)
        self._wake()

    def _wake(self) -> None:
        self.auditor.note(f"{self.name} wakes")
        self.is_asleep = False
        self._woke.set()
        for process in self.daemons:
            process.resume()
        self.keepers.resume()

    async def _fill_disk(self, seconds: float) -> None:
        self.auditor.note(f"{self.name}'s disk is full for {seconds:g} s")
        self.disk.fill()
        await trio.sleep(seconds)
        self.disk.free()

    def lose_power(self) -> None:
        """Its daemon is down already."""
        self.auditor.note(f"{self.name} loses power")
        self.keepers.kill_all()
        over = {path.parent.name for path in self.disk.root.glob(f"runs/*/{rundir.EXIT}")}
        self.auditor.lost_memory(self.name, of_all=False, but=over)
        for lost in self.disk.power_cut(self._is_lost):
            self.auditor.note(f"{self.name} has lost {lost}")
        self._booted_at = trio.current_time()

    def lose_disk(self) -> None:
        """It comes back as it was delivered: the same name, and nothing that it knows."""
        self.auditor.note(f"{self.name} loses its disk")
        self.keepers.kill_all()
        self.auditor.lost_memory(self.name, of_all=True)
        identity = (self.disk.root / "daemon_id").read_text()
        self.disk.wipe()
        replace_file(self.disk.root / "daemon_id", identity)

    def disappear(self) -> None:
        """Whatever it worked on is for others to find out."""
        self.lose_disk()
        (self.disk.root / "runs").mkdir()
        self.auditor.note(f"{self.name} is gone for good")

    def _is_lost(self, site: str) -> bool:
        kind = faults.TORN_OUTBOX if "outbox" in site else faults.LOST_ON_DISK
        return self.chance.befalls(self.name, kind)
