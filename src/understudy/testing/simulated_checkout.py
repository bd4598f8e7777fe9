"""How long a run's preparation takes in a simulated world.

No repository is cloned there. This is the time for which one would have been: a claim lives through
it by being renewed, or is lost meanwhile (R3.4, R3.8).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

from understudy.daemon import workspace
from understudy.daemon.machine import here
from understudy.daemon.repositories import Repositories
from understudy.daemon.workspace import Order, WorkDir
from understudy.testing import faults
from understudy.testing.disk import replaced
from understudy.testing.simulated_machine import SimulatedMachine

CHECKOUT_S: Final = (2.0, 20.0, 70.0, 150.0)


@contextmanager
def slow_checkouts() -> Iterator[None]:
    real = workspace.prepare

    async def prepare(order: Order, repositories: Repositories) -> WorkDir:
        work = await real(order, repositories)
        try:
            await _check_out()
        except BaseException:
            work.claim.close()
            raise
        return work

    with replaced(workspace, "prepare", prepare):
        yield


async def _check_out() -> None:
    machine = here()
    assert isinstance(machine, SimulatedMachine)
    if machine.chance.befalls(machine.name, faults.CHECKOUT_SLOW):
        seconds = machine.chance.pick(f"{machine.name}/checkout", CHECKOUT_S)
        machine.auditor.note(f"{machine.name} prepares a run for {seconds:g} s")
        await trio.sleep(seconds)
