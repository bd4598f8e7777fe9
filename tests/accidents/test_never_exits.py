"""The CLI printed its result and did not exit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from understudy.daemon import processes
from understudy.daemon.kept import spawn_keeper
from understudy.daemon.lines import Line
from understudy.daemon.rundir import Spec
from understudy.daemon.spool import Spool

RESULT = '{"type":"result","output":"42"}'


@pytest.mark.parametrize("says", ["printf '%s\\n'", "printf '%s\\nstill busy\\n'"])
async def test_never_exits(tmp_path: Path, says: str) -> None:
    """R9.3: after its linger it is stopped, the result is whole, and nothing is left."""
    spec = Spec(
        run=f"never-exits-{os.getpid()}",
        argv=["sh", "-c", f"{says} '{RESULT}'; trap '' INT; while :; do sleep 1; done"],
        cwd=str(tmp_path),
        env={"PATH": os.environ["PATH"]},
        done='"type":"result"',
        linger_s=0.2,
        grace_s=0.2,
        max_s=60,
    )
    with trio.fail_after(60):
        kept = await spawn_keeper(tmp_path / "run", spec)
        with Spool(kept.run_dir) as spool:
            output = [piece async for pieces in spool for piece in pieces]
        ended = await kept.wait_exit()
    assert ended is not None
    assert (ended.why, ended.left) == ("done", [])
    assert output[0] == Line(0, len(RESULT) + 1, RESULT.encode())
    assert processes.marked(spec.run) == []
