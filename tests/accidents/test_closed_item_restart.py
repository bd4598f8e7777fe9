"""closed_item_restart: a restart redid work that was already finished."""

from __future__ import annotations

import shutil

from understudy.testing.workplace import Workplace


async def test_a_finished_run_whose_acknowledgement_was_lost_is_not_done_again(
    workplace: Workplace,
) -> None:
    """R6.2, R6.4, R6.6: what the daemon knew before the answer came is put back."""
    before = workplace.path.with_name("before")
    async with workplace.open_daemon():
        task = await workplace.assign_traced()
        await workplace.wait_status(task, "running")
        await workplace.crossing.cut()
        await workplace.wait_ended_here()
    shutil.copytree(workplace.path, before)
    workplace.crossing.mend()
    async with workplace.open_daemon():
        first = await workplace.wait_status(task, "completed")
    shutil.rmtree(workplace.path)
    shutil.move(before, workplace.path)
    async with workplace.open_daemon():
        await workplace.wait(lambda: not list(workplace.path.glob("runs/*")))
    assert await workplace.task(task) == first
    assert workplace.starts() == 1
    assert len(await workplace.comments()) == 1
