"""A task was delivered again while its first run was alive; the second wiped its directory.

Whoever does not know whether a delivery arrived delivers again, and both work. Here the same start
with the same token is the same start (R3.5), a new daemon finds the run that lives (R8.1), and a
directory is entered by one run at a time (R8.3).
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from understudy.daemon.git import Git
from understudy.daemon.repositories import Repositories
from understudy.daemon.workspace import WorkDirBusy, prepare
from understudy.testing.desk import Desk
from understudy.testing.plays import works
from understudy.testing.scenario import Scenario
from understudy.testing.simulated_process import Agent


async def keeps_notes(agent: Agent) -> int:
    agent.write("notes", "half")
    await agent.sleep(300)
    agent.say("result", output=agent.read("notes"))
    return 0


def test_redeliver_same_id(enact: Callable[..., None]) -> None:
    """R3.5: nobody heard that it was started; then its machine is away for longer than a claim."""

    async def story(world: Scenario) -> None:
        laptop = await world.machine("laptop")
        world.once_done("start_task", laptop.cut_off)
        fix = await world.assign("Fix the parser", works(60, says="Fixed."))
        await fix.until("running")
        await world.pass_(100)
        assert fix.starts == 0
        laptop.mend()
        await fix.until("completed")
        assert await fix.outcome() == ["completed"]
        assert fix.starts == 1

    enact(story)


def test_a_new_daemon_leaves_the_directory_of_a_live_run_alone(enact: Callable[..., None]) -> None:
    """R8.1, R8.3"""

    async def story(world: Scenario) -> None:
        laptop = await world.machine("laptop")
        fix = await world.assign("Fix the parser", keeps_notes)
        await fix.until("running")
        for _ in range(3):
            await world.pass_(30)
            laptop.kill_daemon()
            await world.pass_(5)
            laptop.start_daemon()
        await fix.until("completed")
        assert fix.starts == 1
        assert await fix.comments() == ["half"]

    enact(story)


async def test_a_redelivered_task_leaves_its_live_run_alone(tmp_path: Path) -> None:
    """R3.5, R8.3: also by a new daemon, while the old one's keeper lives on."""
    desk = Desk(tmp_path)
    order = desk.order(desk.repository())
    work = await prepare(order, desk.repositories)
    (work.path / "edit").write_text("half")
    keeper = await trio.lowlevel.open_process(
        ["cat"], stdin=subprocess.PIPE, pass_fds=work.claim.descriptors
    )
    work.claim.close()
    new_daemon = Repositories(desk.repositories.root, Git(desk.env))
    for prior in (None, str(work.path)):
        with pytest.raises(WorkDirBusy):
            await prepare(replace(order, prior_work_dir=prior), new_daemon)
    assert (work.path / "edit").read_text() == "half"
    assert keeper.stdin is not None
    await keeper.stdin.aclose()
    await keeper.wait()
    again = await prepare(order, new_daemon)
    again.claim.close()
    assert again.path == work.path
    assert (again.path / "edit").read_text() == "half"
