"""nul_byte: one NUL in the output made a row immortal."""

from __future__ import annotations

import pytest

from understudy.testing.workplace import Workplace

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
