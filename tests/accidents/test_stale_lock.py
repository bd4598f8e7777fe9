"""stale_lock: a dead run held its claim until somebody edited the database."""

from __future__ import annotations

import os
import signal
import uuid
from pathlib import Path

import trio

from understudy.daemon import processes
from understudy.daemon.kept import Kept, spawn_keeper
from understudy.daemon.rundir import Spec, Standing
from understudy.daemon.workspace import WorkDir, prepare
from understudy.testing.desk import Desk


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
