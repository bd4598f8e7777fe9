"""The daemons of one simulated machine, one after the other: the whole of `daemon/main.py`."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Final, final

import trio

from understudy.config import DaemonConfig
from understudy.core.restarts import CannotStart
from understudy.core.tree import Branch
from understudy.daemon.machine import stand_on
from understudy.daemon.main import run_daemon
from understudy.supervisor import RestartsExhausted
from understudy.testing import faults
from understudy.testing.simulated_machine import SimulatedMachine
from understudy.testing.virtual_process import VirtualProcess

STEPS: Final = (1, 10, 50, 100, 200, 500, 1000, 3000, 10_000)
LIFE_S: Final = (20.0, 60.0, 150.0, 400.0)
REBIRTH_S: Final = (0.0, 1.0, 5.0)
REBIRTH_LATE_S: Final = (30.0, 70.0, 200.0)
CRASHES: Final = (RestartsExhausted, CannotStart, faults.InjectedCrash, OSError)
ASKED: Final = (
    (faults.DAEMON_DRAINED, signal.SIGUSR1),
    (faults.DAEMON_STOPPED_NOW, signal.SIGQUIT),
    (faults.DAEMON_UPGRADED, signal.SIGUSR2),
)


@final
@dataclass
class SimulatedDaemon:
    machine: SimulatedMachine
    config: DaemonConfig
    release: Callable[[VirtualProcess], object]
    """What the kernel does with a dead process's locks."""

    async def live(self, nursery: trio.Nursery) -> None:
        """One incarnation after the other, in the world's nursery."""
        chance, name = self.machine.chance, self.machine.name
        for number in range(1, 10_000):
            await self._incarnate(nursery, f"{name}.{number}")
            self.machine.auditor.note(f"{name}'s daemon is down")
            await self.machine.awake()
            if chance.befalls(name, faults.POWER_CUT):
                self.machine.lose_power()
            elif chance.befalls(name, faults.DISK_LOST):
                self.machine.lose_disk()
            if chance.befalls(name, faults.GONE):
                self.machine.disappear()
                return
            is_long = chance.befalls(name, faults.DAEMON_LATE)
            await trio.sleep(
                chance.pick(f"{name}/rebirth", REBIRTH_LATE_S if is_long else REBIRTH_S)
            )
            await self.machine.awake()
            if chance.befalls(name, faults.POWER_CUT):  # Keepers went on without their daemon.
                self.machine.lose_power()

    async def _incarnate(self, nursery: trio.Nursery, name: str) -> None:
        """Until it has ended, however."""
        process, ended = VirtualProcess(name), trio.Event()
        process.at_death += [partial(self.release, process), ended.set]
        self.machine.daemons.append(process)
        send, signals = trio.open_memory_channel[int](10)
        process.start_soon(nursery, self.run, signals, ended)
        try:
            async with trio.open_nursery() as watch:
                if self.machine.chance.befalls(self.machine.name, faults.DAEMON_TWICE):
                    watch.start_soon(self._incarnate, nursery, f"{name}, a second one")
                watch.start_soon(self._ask_to_end, process, send)
                await ended.wait()
                watch.cancel_scope.cancel()
        finally:
            process.kill()

    async def run(self, signals: trio.MemoryReceiveChannel[int], ended: trio.Event) -> None:
        stand_on(self.machine)
        poller = partial(self.machine.poll, self.config.token, self.config.tasks_max)
        try:
            async with aclosing(signals):
                await run_daemon(self.config, Branch("daemon"), poller=poller, signals=signals)
        except* CRASHES as group:
            what = repr(group.exceptions[0]).replace(str(self.config.path), "…")
            self.machine.auditor.note(f"{self.machine.name}'s daemon crashes: {what}"[:160])
        ended.set()

    async def _ask_to_end(
        self, process: VirtualProcess, signals: trio.MemorySendChannel[int]
    ) -> None:
        """This life's end, if it is to have one."""
        chance, name = self.machine.chance, self.machine.name
        if chance.befalls(name, faults.DAEMON_KILLED):
            process.kill_after(chance.pick(f"{name}/steps", STEPS))
            return
        for kind, number in ASKED:
            if chance.befalls(name, kind):
                await trio.sleep(chance.pick(f"{name}/life", LIFE_S))
                self.machine.auditor.note(f"{kind.name}: {process.name}")
                signals.send_nowait(number)
