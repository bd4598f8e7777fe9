"""restart_fail_post: the final report was sent on a cancelled scope at shutdown."""

from __future__ import annotations

from understudy.testing.workplace import Workplace


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
