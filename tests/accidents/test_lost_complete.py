"""lost_complete: the network was away longer than the retries; a finished run stayed `running` for
ever."""

from __future__ import annotations

from understudy.testing.workplace import Workplace

TRIES = 30
"""The schedule of R6.3 has five."""


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
