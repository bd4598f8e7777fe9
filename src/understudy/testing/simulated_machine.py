"""A machine in a simulated world: its disk, the agents' processes on it, and what befalls it.

The processes outlive the daemon, as they do under their keepers; they stand still while the machine
sleeps, and go down with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, final
from uuid import UUID

import trio

from understudy.testing.auditor import Auditor
from understudy.testing.chance import Chance
from understudy.testing.evidence import Run
from understudy.testing.line import SILENCE_S, Line
from understudy.wire.daemon import ClaimedTask

STEP_S: Final = 10.0
CALM_S: Final = (20.0, 60.0, 120.0, 240.0)
NAPS_S: Final = (20.0, 60.0, 100.0, 200.0, 600.0)
"""The longest is longer than the grace of a machine that nobody can stand in for (world.py)."""
PARTITIONS_S: Final = (10.0, 40.0, 95.0, 150.0, 500.0)


@final
class Process:
    """An agent at work under its keeper: writes a message to its spool now and then, and ends."""

    def __init__(self, machine: SimulatedMachine, run: Run, work_s: float) -> None:
        self.run = run
        self.ended = trio.Event()
        self.has_crashed = False
        self._machine = machine
        self._work_s = work_s
        self._alive = trio.CancelScope()

    async def live(self) -> None:
        machine, left_s = self._machine, self._work_s
        machine.auditor.began(self.run)
        with self._alive:
            while True:
                self.run.messages += 1
                await machine.rest(min(STEP_S, left_s))
                left_s -= STEP_S
                if left_s <= 0:
                    break
            machine.auditor.note(f"{machine.name} finished {self.run.task.id}")
            self.run.has_finished = True
        self.run.stands_still(trio.current_time())
        self.ended.set()

    def kill(self) -> None:
        if not self.ended.is_set():
            self._alive.cancel()
            self.run.stands_still(trio.current_time())

    def crash(self) -> None:
        self.has_crashed = not self.ended.is_set()
        self.kill()


@dataclass
class Held:
    """On disk: one task, as far as it has come."""

    task: ClaimedTask
    process: Process | None = None
    told: int = 0
    is_distrusted: bool = False
    """Stopped because another machine may have been given it (R4.11)."""
    is_stopping: bool = False

    @property
    def token(self) -> UUID:
        assert self.task.claim_token is not None
        return self.task.claim_token

    @property
    def has_end(self) -> bool:
        """There is a report to be sent."""
        ended = self.process is not None and self.process.ended.is_set()
        return self.is_distrusted or (ended and not self.is_stopping)


@final
@dataclass
class SimulatedMachine:
    name: str
    slots: int
    chance: Chance
    auditor: Auditor
    nursery: trio.Nursery
    """Where its processes live."""
    disk: dict[UUID, Held] = field(default_factory=dict)
    trusted_until: float = 0.0
    """R4.11. A daemon that comes back goes by what the one before it was promised."""
    line: Line | None = None
    is_asleep: bool = False
    is_cut_up: bool = False
    is_cut_down: bool = False
    _up: trio.Event = field(default_factory=trio.Event)

    def __post_init__(self) -> None:
        self._up.set()

    @property
    def is_reachable(self) -> bool:
        return not (self.is_asleep or self.is_cut_up or self.is_cut_down)

    async def awake(self) -> None:
        while self.is_asleep:
            await self._up.wait()

    async def rest(self, seconds: float) -> None:
        """Time passes for whoever works here."""
        await trio.sleep(seconds)
        await self.awake()

    def begin(self, process: Process) -> None:
        self.nursery.start_soon(process.live)

    def processes(self) -> Iterator[Process]:
        for held in self.disk.values():
            if held.process is not None and not held.process.ended.is_set():
                yield held.process

    def at_work_on(self, task: ClaimedTask) -> Process | None:
        """The process of an earlier run of this agent on this issue."""
        for process in self.processes():
            other = process.run.task
            if (other.issue_id, other.agent_id) == (task.issue_id, task.agent_id):
                return process
        return None

    def movable(self) -> list[UUID]:
        """What the server may give to another machine once nothing is heard of this one."""
        return [i for i, held in self.disk.items() if held.task.is_movable and not held.has_end]

    def loosen(self) -> None:
        """The window has ended and no daemon lives that would stop what runs."""
        for task_id in self.movable():
            if (process := self.disk[task_id].process) is not None:
                process.run.loose_at = min(process.run.loose_at, self.trusted_until)

    def forget(self, task_id: UUID) -> None:
        if self.disk.pop(task_id, None) is not None:
            self.auditor.machines.let_go[self.name, task_id] = trio.current_time()

    # What befalls it

    async def suffer(self) -> None:
        while True:
            await trio.sleep(self.chance.pick(f"{self.name}/calm", CALM_S))
            if self.chance.strikes(f"{self.name}/sleeps", 0.15):
                await self._sleep(self.chance.pick(f"{self.name}/nap", NAPS_S))
            elif self.chance.strikes(f"{self.name}/cut off", 0.3):
                await self._cut_off(self.chance.pick(f"{self.name}/partition", PARTITIONS_S))

    async def _sleep(self, seconds: float) -> None:
        """Short ones its connections survive; after a long one the node has given it up."""
        self.auditor.note(f"{self.name} sleeps for {seconds:g} s")
        self.is_asleep, self._up = True, trio.Event()
        for process in self.processes():
            process.run.stands_still(trio.current_time())
        await trio.sleep(min(seconds, SILENCE_S))
        if seconds > SILENCE_S:
            if self.line is not None:
                self.line.link.close()
            await trio.sleep(seconds - SILENCE_S)
            if self.line is not None:
                self.line.close()
        self.auditor.note(f"{self.name} wakes")
        for process in self.processes():
            process.run.goes_on(trio.current_time())
        self.is_asleep = False
        self._up.set()

    async def _cut_off(self, seconds: float) -> None:
        way = self.chance.pick(f"{self.name}/way", ("up", "down", "both", "both"))
        self.auditor.note(f"{self.name} is cut off {way} for {seconds:g} s")
        self.is_cut_up, self.is_cut_down = way != "down", way != "up"
        await trio.sleep(seconds)
        self.is_cut_up = self.is_cut_down = False

    def lose_disk(self) -> None:
        """It comes back as it was delivered: the same name, and nothing that it knows."""
        self.auditor.note(f"{self.name} loses its disk")
        for task_id, held in list(self.disk.items()):
            if held.process is not None:
                held.process.kill()
                held.process.run.is_forgotten = True
            self.forget(task_id)
        self.trusted_until = -math.inf
        self.auditor.promised(self.name, -math.inf)

    def reboot(self) -> None:
        """Its processes are gone, the disk knows of them."""
        self.auditor.note(f"{self.name} goes down")
        for process in self.processes():
            process.crash()
