"""A virtual machine was cloned with its daemon, and two machines were one to the server.

The disk holds who a machine is. So the copy had the other's name, and each gave up what the other
worked on whenever its connection came back: runs were begun again and again until they counted as
poison, and nobody said why (R6.2).
"""

from __future__ import annotations

from collections.abc import Callable

from understudy.testing.plays import works
from understudy.testing.scenario import Scenario


def test_clones_do_not_give_up_each_others_runs_and_the_one_without_the_name_says_why(
    enact: Callable[..., None],
) -> None:
    async def story(world: Scenario) -> None:
        original = await world.machine("original")
        copy = world.clone(original, "copy")
        await world.until(lambda: original.trouble)
        assert "another machine" in str(original.trouble)
        assert "daemon_id" in str(original.trouble)
        fix = await world.assign("Fix the parser", works(600.0, says="Fixed."))
        await fix.until("running")
        assert copy.agents()
        for _ in range(5):
            original.cut_off()
            await world.pass_(20)
            original.mend()
            await world.pass_(40)
        assert copy.trouble is None
        await fix.until("completed")
        assert fix.starts == 1

    enact(story)


def test_a_restart_gives_a_clone_no_right_to_the_name(enact: Callable[..., None]) -> None:
    async def story(world: Scenario) -> None:
        original = await world.machine("original")
        copy = world.clone(original, "copy")
        await world.until(lambda: original.trouble)
        await original.stop_daemon()
        original.start_daemon()
        await world.until(lambda: original.trouble)
        await copy.stop_daemon()
        copy.start_daemon()
        await world.pass_(60)
        assert copy.trouble is None
        assert original.trouble

    enact(story)


def test_a_clone_that_is_gone_leaves_the_name_to_the_other(enact: Callable[..., None]) -> None:
    async def story(world: Scenario) -> None:
        original = await world.machine("original")
        copy = world.clone(original, "copy")
        await world.until(lambda: original.trouble)
        copy.kill_daemon()
        await world.until(lambda: original.trouble is None)
        fix = await world.assign("Fix the parser", works(60.0, says="Fixed."))
        await fix.until("completed")
        assert fix.starts == 1

    enact(story)


def test_a_run_that_is_under_way_when_its_machine_is_cloned_is_not_lost(
    enact: Callable[..., None],
) -> None:
    """The copy has its directory and not its agent, and says so; the other one hears of it."""

    async def story(world: Scenario) -> None:
        original = await world.machine("original")
        fix = await world.assign("Fix the parser", works(300.0, says="Fixed."))
        await fix.until("running")
        await world.pass_(10)
        copy = world.clone(original, "copy")
        await world.until(lambda: original.trouble)
        await world.pass_(10)
        assert original.agents() == 0
        assert copy.agents() == 1
        await fix.until("completed")
        assert await fix.outcome() == ["keeper_lost", "completed"]

    enact(story)
