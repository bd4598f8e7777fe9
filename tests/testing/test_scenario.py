"""Stories fail by what they assert, and by what the auditor finds."""

from __future__ import annotations

import pytest

from understudy.testing.plays import works
from understudy.testing.scenario import Scenario, enact


def test_a_story_fails_by_its_own_assertion_with_what_has_happened_beside_it(dsn: str) -> None:
    async def story(world: Scenario) -> None:
        await world.machine("laptop")
        fix = await world.assign("Fix the parser", works(60))
        await fix.until("running")
        assert fix.starts == 2, "as it should not be"

    with pytest.raises(AssertionError, match="as it should not be") as caught:
        enact(dsn, story)
    assert "laptop began" in "\n".join(caught.value.__notes__)


def test_a_story_whose_end_breaks_a_law_fails_though_it_asserts_nothing(dsn: str) -> None:
    async def story(world: Scenario) -> None:
        await world.machine("laptop")
        fix = await world.assign("Fix the parser", works(60, says="Fixed."))
        await fix.until("completed")
        await world.database.pool.execute("delete from understudy.comments")

    with pytest.raises(AssertionError, match="commented 0 times"):
        enact(dsn, story)


def test_a_story_whose_task_never_ends_fails(dsn: str) -> None:
    """It waits an hour for it to come to rest, which takes no time."""

    async def story(world: Scenario) -> None:
        await world.assign("Fix the parser", works(60))

    with pytest.raises(AssertionError, match="queued"):
        enact(dsn, story)
