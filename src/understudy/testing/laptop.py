"""A machine in a story: nothing befalls it, its daemon or its network but what the story does."""

from __future__ import annotations

from functools import partial
from math import inf
from typing import final

import trio

from understudy.config import DaemonConfig
from understudy.daemon.status import read_status
from understudy.testing.chance import Chance
from understudy.testing.locks import Locks
from understudy.testing.network import Attempt, ConnectFault, Crossing, Cut, Faults, WireFault
from understudy.testing.simulated_daemon import SimulatedDaemon
from understudy.testing.simulated_machine import SimulatedMachine
from understudy.testing.simulated_network import Weather
from understudy.testing.virtual_process import VirtualProcess, bury


@final
class Laptop:
    """A machine with its daemon: nothing befalls it but what the story does."""

    def __init__(
        self,
        machine: SimulatedMachine,
        config: DaemonConfig,
        nursery: trio.Nursery,
        locks: Locks,
        wires: Wires,
    ) -> None:
        self._daemon = SimulatedDaemon(machine, config, locks.release)
        self._nursery = nursery
        self._locks = locks
        self._wires = wires
        self._process: VirtualProcess | None = None
        self._stop = trio.CancelScope()
        self.machine = machine
        self.path = machine.disk.root
        self.slots = config.tasks_max

    @property
    def is_on(self) -> bool:
        return self._process is not None and self._process.is_alive

    def start_daemon(self) -> None:
        number = len(self.machine.daemons) + 1
        process = VirtualProcess(f"{self.machine.name}.{number}")
        process.at_death.append(partial(self._locks.release, process))
        self.machine.daemons.append(process)
        self._process, self._stop, self._ended = process, trio.CancelScope(), trio.Event()
        process.start_soon(self._nursery, self._run, self._stop, self._ended)

    async def _run(self, stop: trio.CancelScope, ended: trio.Event) -> None:
        _, signals = trio.open_memory_channel[int](0)
        with stop:
            await self._daemon.run(signals, trio.Event())
        ended.set()

    def kill_daemon(self) -> None:
        """As SIGKILL does; its keepers and agents live on."""
        assert self._process is not None
        self._process.kill()
        bury()

    async def stop_daemon(self) -> None:
        """As SIGTERM does."""
        assert self._process is not None
        self._stop.cancel()
        await self._ended.wait()
        self.kill_daemon()

    def lose_power(self) -> None:
        """What was not synced is not lost: that is for `disk.py`'s tests."""
        self.kill_daemon()
        self.machine.lose_power()

    def lose_disk(self) -> None:
        """It comes back with its name and nothing else."""
        self.kill_daemon()
        self.machine.lose_disk()

    def sleep(self, seconds: float) -> None:
        """Its lid is closed; the story goes on."""
        self._nursery.start_soon(self.machine.sleep, seconds)

    def cut_off(self) -> None:
        """What it sends is lost, and what is sent to it."""
        self._wires.weather.cut_off(self.machine.name, "both", inf, is_patient=False)

    def mend(self) -> None:
        del self._wires.weather.partitions[self.machine.name]

    def lose_next_answer(self) -> None:
        """Its connection is reset when the server says something next."""
        self._wires.breaking.add(self.machine.name)

    @property
    def trouble(self) -> str | None:
        """What `understudy daemon status` says of its link."""
        status = read_status(self.path)
        return status.trouble if status is not None else None

    def agents(self) -> int:
        """How many processes of agents live there, their children counted."""
        return sum(each.run is not None for each in self.machine.keepers.living())

    def is_empty(self) -> bool:
        return not self.machine.keepers.living() and not any((self.path / "runs").iterdir())


@final
class Wires(Faults):
    def __init__(self, chance: Chance) -> None:
        self.weather = Weather(chance)
        self.breaking = set[str]()
        """Machines whose connection is reset with the next word from the server."""

    def on_connect(self, attempt: Attempt) -> ConnectFault | None:
        return self.weather.on_connect(attempt)

    def on_crossing(self, crossing: Crossing) -> WireFault | None:
        client = crossing.attempt.client
        if crossing.direction == "down" and client in self.breaking:
            self.breaking.remove(client)
            return Cut()
        return self.weather.on_crossing(crossing)
