"""How long a run's preparation takes in a simulated world.

No repository is cloned there. This is the time for which one would have been: a claim lives through
it by being renewed, or is lost meanwhile (R3.4, R3.8).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, final
from uuid import UUID

import trio

from understudy.daemon import workspace
from understudy.daemon.machine import here
from understudy.daemon.repositories import Repositories
from understudy.daemon.workspace import Order, WorkDir
from understudy.testing import faults
from understudy.testing.disk import replaced
from understudy.testing.simulated_machine import SimulatedMachine

CHECKOUT_S: Final = (5.0, 20.0, 70.0, 150.0)
PARTS: Final = 10
"""What a machine has not cloned when it falls asleep it clones when it wakes."""
AFTER_S: Final = (0.5, 15.0)
LOST_S: Final = (62.0, 70.0, 80.0)
"""A claim is over by then, and its machine not yet given up."""


@contextmanager
def slow_checkouts() -> Iterator[None]:
    real, origin = workspace.prepare, Origin()

    async def prepare(order: Order, repositories: Repositories) -> WorkDir:
        work = await real(order, repositories)
        try:
            await origin.check_out(order.task_id)
        except BaseException:
            work.claim.close()
            raise
        return work

    with replaced(workspace, "prepare", prepare):
        yield


@final
@dataclass
class Origin:
    """Where all machines clone from."""

    slow: set[UUID] = field(default_factory=set)
    """The tasks whose repositories are large, for whoever prepares them."""

    async def check_out(self, task_id: UUID) -> None:
        machine = here()
        assert isinstance(machine, SimulatedMachine)
        if machine.chance.befalls(machine.name, faults.CHECKOUT_SLOW):
            self.slow.add(task_id)
        if task_id not in self.slow:
            return
        seconds = machine.chance.pick(f"{machine.name}/checkout", CHECKOUT_S)
        machine.auditor.note(f"{machine.name} prepares a run for {seconds:g} s")
        if machine.chance.befalls(machine.name, faults.LOST_AT_CHECKOUT):
            _lose(machine)
        for _ in range(PARTS):
            await trio.sleep(seconds / PARTS)


def _lose(machine: SimulatedMachine) -> None:
    pick, name = machine.chance.pick, machine.name
    after_s, seconds = pick(f"{name}/lost after", AFTER_S), pick(f"{name}/lost for", LOST_S)
    if pick(f"{name}/is asleep", (True, False)):
        machine.close_lid(seconds, after_s)
    else:
        machine.cut_off_soon(seconds, after_s)
