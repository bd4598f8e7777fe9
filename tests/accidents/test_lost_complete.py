"""The network was away longer than the retries; a finished run stayed `running` for ever.

A report that is sent five times and then dropped leaves a row that nobody will ever end. Here it
lies on the disk until the server has answered, however long that takes (R6.3, R6.4).
"""

from __future__ import annotations

from collections.abc import Callable

from understudy.testing.plays import works
from understudy.testing.scenario import Scenario
from understudy.testing.workplace import Workplace


def test_lost_complete(enact: Callable[..., None]) -> None:
    """R6.3, R6.4"""

    async def story(world: Scenario) -> None:
        laptop = await world.machine("laptop")
        fix = await world.assign("Fix the parser", works(60, says="Fixed."))
        await fix.until("running")
        laptop.cut_off()
        await world.pass_(600)  # The agent is done after 60; the retries would have taken 124.
        assert laptop.agents() == 0
        assert await fix.outcome() == ["running"]
        laptop.mend()
        await fix.until("completed")
        assert fix.starts == 1
        assert await fix.comments() == ["Fixed."]

    enact(story)


TRIES = 30
"""The schedule of R6.3 has five."""


def test_a_report_whose_answer_is_lost_is_sent_again(enact: Callable[..., None]) -> None:
    """R6.3, R6.6: it was taken, and nobody heard so."""

    async def story(world: Scenario) -> None:
        laptop = await world.machine("laptop")
        fix = await world.assign("Fix the parser", works(60, says="Fixed."))
        world.once_done("complete_task", laptop.lose_next_answer)
        await fix.until("completed")
        assert not laptop.is_empty()
        await world.until(laptop.is_empty)
        assert fix.starts == 1
        assert await fix.comments() == ["Fixed."]

    enact(story)


async def test_a_run_that_ends_while_the_network_is_away_is_completed_later(
    workplace: Workplace,
) -> None:
    """R6.3, R6.4"""
    async with workplace.open_daemon():
        task = await workplace.assign_traced()
        await workplace.wait_status(task, "running")
        await workplace.crossing.cut()
        await workplace.wait_ended_here()
        await workplace.wait(lambda: workplace.crossing.refused > TRIES)
        assert (await workplace.task(task))["status"] == "running"
        workplace.crossing.mend()
        await workplace.wait_status(task, "completed")
        assert workplace.starts() == 1
        assert len(await workplace.comments()) == 1
