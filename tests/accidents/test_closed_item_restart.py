"""A restart redid work that was already finished.

A daemon that has forgotten what it finished does it again, or has it done again by whoever recovers
what it left. Here a new daemon says what it has finished before anything is recovered (R6.2, R6.4).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

from understudy.testing.plays import works
from understudy.testing.scenario import Scenario
from understudy.testing.workplace import Workplace


def test_closed_item_restart(enact: Callable[..., None]) -> None:
    """R6.2, R6.4: the run ended while its daemon could not say so, and then the daemon died."""

    async def story(world: Scenario) -> None:
        laptop = await world.machine("laptop")
        fix = await world.assign("Fix the parser", works(60, says="Fixed."))
        await fix.until("running")
        laptop.cut_off()
        await world.pass_(90)
        laptop.kill_daemon()
        laptop.mend()
        laptop.start_daemon()
        await fix.until("completed")
        await world.pass_(60)
        assert await fix.outcome() == ["completed"]
        assert fix.starts == 1

    enact(story)


def test_a_daemon_killed_before_it_heard_that_its_report_was_taken(
    enact: Callable[..., None],
) -> None:
    """R6.4, R6.6: it reports once more, and nothing happens twice."""

    async def story(world: Scenario) -> None:
        laptop = await world.machine("laptop")
        fix = await world.assign("Fix the parser", works(60, says="Fixed."))
        world.once_done("complete_task", laptop.kill_daemon)
        await fix.until("completed")
        assert not laptop.is_on
        laptop.start_daemon()
        await world.until(laptop.is_empty)
        assert await fix.outcome() == ["completed"]
        assert fix.starts == 1
        assert await fix.comments() == ["Fixed."]

    enact(story)


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
