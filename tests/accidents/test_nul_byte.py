"""One NUL in the output made a row immortal.

PostgreSQL stores no NUL, so the report of such a run was refused, sent again, and refused for ever.
Here text is cleaned at the boundary, and a report has a form that cannot be refused (R6.8). What
real programs print, a real shell prints below.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from understudy.testing.scenario import Scenario
from understudy.testing.simulated_process import Agent
from understudy.testing.workplace import Workplace


async def prints_nul(agent: Agent) -> int:
    agent.raw(b"before\0after \xff\xfe \xed\xa0\x80\n")
    agent.say("text", text="a\0b\ud800")
    agent.say("result", output="done\0 \udfff")
    return 0


async def fails_with_nul(agent: Agent) -> int:
    agent.say("result", is_error=True, reason="auth", error="no\0t done")
    return 1


def test_nul_byte(enact: Callable[..., None]) -> None:
    """R6.8"""

    async def story(world: Scenario) -> None:
        await world.machine("laptop")
        fix = await world.assign("Fix the parser", prints_nul)
        write = await world.assign("Write it down", fails_with_nul)
        await fix.until("completed", "failed")
        failed = await write.until("completed", "failed")
        assert await fix.outcome() == ["completed"]
        assert await fix.comments() == ["done ?"]
        assert (failed["failure_reason"], failed["error"]) == ("auth", "not done")

    enact(story)


RAW = r"printf 'before\0after \377\376 \355\240\200\n'; "
ESCAPED = r"""printf '{"type":"text","text":"a\\u0000b\\ud800"}\n'; """
RESULT = r"""printf '{"type":"result","output":"done\\u0000 \\udfff"}\n'"""
FAILS = r"""printf '{"type":"result","is_error":true,"error":"no\\u0000t done"}\n'"""


@pytest.mark.parametrize(("end", "status"), [(RESULT, "completed"), (FAILS, "failed")])
async def test_no_byte_an_agent_prints_keeps_its_run_from_ending(
    workplace: Workplace, end: str, status: str
) -> None:
    """R6.8"""
    async with workplace.open_daemon():
        task = await workplace.assign("command", "sh", "-c", RAW + ESCAPED + end)
        done = await workplace.wait_status(task, "completed", "failed", "cancelled")
    assert done["status"] == status
    assert "\0" not in str(done)
    assert ("done" if status == "completed" else "t done") in str(done["result"] or done["error"])
