"""error_as_success: the API said 400, the run said completed."""

from __future__ import annotations

import pytest

from understudy.testing.workplace import Workplace

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
