"""Where a simulated machine's keepers and agents live, behind the seam `daemon/machine.py`.

keepers = Keepers("machine-0", nursery, auditor, fate, boot_s=boot_s, epoch_s=epoch_s)
word = await keepers.start(run_dir, descriptors)     # Machine.start_keeper
stream = await keepers.connect(address)              # Machine.connect
keepers.marked(run); keepers.name_of(process); keepers.send(processes, SIGKILL)
keepers.suspend(); keepers.resume()                  # it sleeps, and wakes
keepers.kill_all()                                   # the power is cut
keepers.keepers(), keepers.agents()                  # whom a fault may strike: kill_after(n)
keepers.living()                                     # for the auditor: empty, at the end
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias, final
from uuid import UUID

import trio

from understudy.daemon.processes import Process
from understudy.daemon.record import AFRESH, read_order
from understudy.daemon.rundir import LOG, Spec
from understudy.testing.evidence import Run
from understudy.testing.simulated_keeper import SimulatedKeeper
from understudy.testing.simulated_process import (
    PRIOR_SESSION,
    Agent,
    AwakeClock,
    Home,
    ProcessTable,
    Script,
)
from understudy.testing.virtual_process import VirtualProcess, bury
from understudy.wire.daemon import ClaimedTask

Fate: TypeAlias = Callable[[ClaimedTask, Spec, int], Script]
"""What an agent does; the number counts the agents that this machine has begun for the task."""


class Witness(Protocol):
    def began(self, run: Run) -> None:
        """Its agent is at work: `run.goes_on` is the witness's to call."""
        ...


@dataclass(frozen=True)
class Living:
    process: Process
    name: str
    run: str | None
    """None for a keeper."""


@final
@dataclass
class Keepers:
    """The descriptors of `start` are its caller's; each keeper holds copies."""

    machine: str
    nursery: trio.Nursery
    witness: Witness
    fate: Fate
    boot_s: Callable[[], float]
    epoch_s: Callable[[], float]
    boot_id: str = ""
    ended: Callable[[], object] = lambda: None
    """Told whenever an agent's end has been written down."""
    _alive: dict[Process, SimulatedKeeper] = field(default_factory=dict)
    _begun: Counter[UUID] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._clock = AwakeClock()
        self._table = ProcessTable(self.boot_s)
        self._home = Home(
            nursery=self.nursery,
            clock=self._clock,
            table=self._table,
            boot_s=self.boot_s,
            epoch_s=self.epoch_s,
            boot_id=self.boot_id,
            fate=self._fate_of,
            began=self.witness.began,
            ended=self.ended,
        )

    # The seam

    async def start(self, run_dir: Path, descriptors: Sequence[int]) -> str:
        (run_dir / LOG).touch(0o600)  # Of any keeper's last words.
        keeper = SimulatedKeeper(run_dir, [os.dup(each) for each in descriptors], self._home)
        self._alive[keeper.identity] = keeper
        keeper.process.at_death.append(lambda: self._alive.pop(keeper.identity))
        keeper.process.start_soon(self.nursery, keeper.keep)
        await keeper.has_spoken.wait()
        return keeper.word

    async def connect(self, address: Path) -> trio.abc.Stream:
        directory = address.parent.stat()
        await trio.lowlevel.checkpoint()
        for keeper in self._alive.values():
            if keeper.control.listens_in(directory):
                return keeper.control.accept()
        raise ConnectionRefusedError(errno.ECONNREFUSED, f"nobody listens at {address}")

    def marked(self, run: str) -> list[Process]:
        return self._table.marked(run)

    def name_of(self, process: Process) -> str:
        return self._table.name_of(process)

    def send(self, processes: Iterable[Process], number: int) -> None:
        self._table.send(processes, number)

    # What befalls the machine

    def suspend(self) -> None:
        self._clock.stop()
        for keeper in self._alive.values():
            keeper.stand_still()

    def resume(self) -> None:
        self._clock.go_on()
        for keeper in self._alive.values():
            keeper.go_on()

    def kill_all(self) -> None:
        for keeper in [*self._alive.values()]:
            keeper.process.kill()
        bury()
        self._table.clear()

    # For faults and for the auditor

    def keepers(self) -> list[VirtualProcess]:
        """Those of whole families where there are any: they take up the most memory."""
        alive = self._alive.values()
        families = [each for each in alive if each.agent and self._has_children(each.agent)]
        return [keeper.process for keeper in families or alive]

    def _has_children(self, agent: Agent) -> bool:
        return len(self._table.marked(agent.spec.run)) > 1

    def agents(self) -> list[VirtualProcess]:
        agents = [keeper.agent for keeper in self._alive.values()]
        return [agent.process for agent in agents if agent is not None and agent.status is None]

    def living(self) -> list[Living]:
        entries = self._table.living().items()
        return [Living(process, entry.name, entry.run) for process, entry in entries]

    def _fate_of(self, run_dir: Path, spec: Spec) -> tuple[Run, Script]:
        order = read_order(run_dir.parent if run_dir.name == AFRESH else run_dir)
        assert order is not None, run_dir
        task = order.task
        script = self.fate(task, spec, self._begun[task.id])
        self._begun[task.id] += 1
        brief, offered = task.trigger_comment_content or "", spec.env.get(PRIOR_SESSION)
        is_afresh = run_dir.name == AFRESH
        run = Run(task, self.machine, "", brief=brief, offered=offered, is_afresh=is_afresh)
        return run, script
