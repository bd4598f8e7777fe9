"""The final report was sent on a cancelled scope at shutdown.

What is said while everything is being cancelled is said to nobody, and who counts it as said has
lost it. Here a stopping daemon says nothing; the next one finds the report on the disk (R6.4).
"""

from __future__ import annotations

from collections.abc import Callable

from understudy.testing.plays import works
from understudy.testing.scenario import Scenario
from understudy.testing.workplace import Workplace


def test_restart_fail_post(enact: Callable[..., None]) -> None:
    """R6.4, R7.4"""

    async def story(world: Scenario) -> None:
        laptop = await world.machine("laptop")
        fix = await world.assign("Fix the parser", works(60, says="Fixed."))
        await fix.until("running")
        laptop.cut_off()
        await world.pass_(90)
        await laptop.stop_daemon()
        assert await fix.outcome() == ["running"]
        laptop.mend()
        laptop.start_daemon()
        await fix.until("completed", "failed")
        assert await fix.outcome() == ["completed"]
        assert fix.starts == 1
        assert await fix.comments() == ["Fixed."]

    enact(story)


async def test_a_daemon_stopped_before_it_could_report_reports_after_its_restart(
    workplace: Workplace,
) -> None:
    """R6.4, R7.4: neither lost nor turned into a failure."""
    async with workplace.open_daemon():
        task = await workplace.assign_traced()
        await workplace.wait_status(task, "running")
        await workplace.crossing.cut()
        await workplace.wait_ended_here()
    assert (await workplace.task(task))["status"] == "running"
    workplace.crossing.mend()
    async with workplace.open_daemon():
        done = await workplace.wait_status(task, "completed", "failed", "cancelled")
    assert (done["status"], done["attempt"]) == ("completed", 1)
    assert workplace.starts() == 1
    assert len(await workplace.comments()) == 1
