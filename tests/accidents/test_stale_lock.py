"""A dead run held its claim until somebody edited the database.

A lock that is a row is held until its holder says that it is done, and the dead say nothing. Here a
claim is a lease: it ends by itself, the agent's only slot is free again, and who can takes over
(R3.8, R4.2). On the machine the locks are the kernel's, which go with their holder (R8.1, R8.3).
"""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable
from pathlib import Path

import trio

from understudy.daemon import processes
from understudy.daemon.kept import Kept, spawn_keeper
from understudy.daemon.rundir import Spec, Standing
from understudy.daemon.workspace import WorkDir, prepare
from understudy.testing.desk import Desk
from understudy.testing.plays import works
from understudy.testing.scenario import Scenario


def test_stale_lock(enact: Callable[..., None]) -> None:
    """R3.8, R4.2: the laptop never comes back."""

    async def story(world: Scenario) -> None:
        await world.agent("Nia", max_concurrent_tasks=1)
        laptop = await world.machine("laptop")
        fix = await world.assign("Fix the parser", works(3600), works(60, says="Fixed."))
        await fix.until("running")
        await world.machine("desktop")
        await world.pass_(60)
        write = await world.assign("Write it down", works(60, says="Written."))
        laptop.lose_power()
        await write.until("completed")
        await fix.until("completed")
        assert await fix.outcome() == ["runtime_offline", "completed"]
        assert await fix.comments() == ["Fixed."]

    enact(story)


def test_a_dead_run_is_followed_by_another_in_the_same_directory(
    enact: Callable[..., None],
) -> None:
    """R8.1, R8.3: the laptop comes back; its own lock on the directory does not bar its way."""

    async def story(world: Scenario) -> None:
        laptop = await world.machine("laptop")
        fix = await world.assign("Fix the parser", works(3600), works(60, says="Fixed."))
        await fix.until("running")
        laptop.lose_power()
        await world.pass_(30)
        laptop.start_daemon()
        await world.pass_(10)
        await fix.until("completed")
        assert await fix.outcome() == ["keeper_lost", "completed"]
        first, second = await fix.tasks()
        assert first["work_dir"] == second["work_dir"]

    enact(story)


async def begin(desk: Desk, work: WorkDir, run_dir: Path) -> Kept:
    spec = Spec(
        run=uuid.uuid4().hex,
        argv=["sleep", "600"],
        cwd=str(work.path),
        env={"PATH": os.environ["PATH"]},
        max_s=60,
    )
    kept = await spawn_keeper(run_dir, spec, descriptors=work.claim.descriptors)
    work.claim.close()
    return kept


async def test_a_dead_run_holds_neither_its_directory_nor_its_claim(tmp_path: Path) -> None:
    """R3.8, R8.1, R8.3: both are locks of the kernel, which go with their holder."""
    desk = Desk(tmp_path)
    order = desk.order()
    with trio.fail_after(60):
        kept = await begin(desk, await prepare(order, desk.repositories), tmp_path / "run")
        os.kill(kept.state().keeper_pid, signal.SIGKILL)
        assert await kept.wait_exit() is None
        assert kept.look() is Standing.LOST
        await kept.sweep()
        assert processes.marked(kept.spec().run) == []
        again = await prepare(order, desk.repositories)
        second = await begin(desk, again, tmp_path / "again")
        assert second.look() is Standing.KEPT
        await second.end("cancelled")
