"""The API said 400, the run said completed.

A CLI that prints its provider's error as if it were its answer, and exits with status 0, looks like
one that has succeeded. Here success needs a proof: a result that says so (R5.11).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from understudy.testing.scenario import Scenario
from understudy.testing.simulated_process import Agent
from understudy.testing.workplace import Workplace


async def prints_an_error(agent: Agent) -> int:
    agent.say("text", text="API Error: 400 invalid_request_error")
    return 0


async def concludes_with_an_error(agent: Agent) -> int:
    agent.say("result", is_error=True, output="API Error: 400", reason="invalid_request")
    return 0


def test_error_as_success(enact: Callable[..., None]) -> None:
    """R5.11"""

    async def story(world: Scenario) -> None:
        await world.machine("laptop")
        fix = await world.assign("Fix the parser", prints_an_error)
        write = await world.assign("Write it down", concludes_with_an_error)
        await fix.until("failed", "completed")
        await write.until("failed", "completed")
        assert await fix.outcome() == ["no_result"]
        assert await write.outcome() == ["invalid_request"]
        assert await fix.comments() + await write.comments() == []
        assert await fix.status() == "todo"

    enact(story)


SAYS = {
    "an error as its result": r"""printf '{"type":"result","is_error":true,"error":"400"}\n'""",
    "no result after all": r"""printf '{"type":"text","text":"API Error: 400"}\n'; exit 1""",
    "half a result": r"""printf '{"type":"result","output":"API Err'; exit 1""",
}


@pytest.mark.parametrize("script", SAYS.values(), ids=SAYS)
async def test_an_agent_that_does_not_succeed_is_not_completed(
    workplace: Workplace, script: str
) -> None:
    """R5.11: success needs positive proof."""
    async with workplace.open_daemon():
        task = await workplace.assign("command", "sh", "-c", script)
        done = await workplace.wait_status(task, "completed", "failed", "cancelled")
    assert done["status"] == "failed"
    assert done["failure_reason"]
    assert await workplace.comments() == []
