"""The process lived 64 min after `cancelled`, holding the only slot."""

from __future__ import annotations

import os
from pathlib import Path

import trio

from understudy.daemon import processes
from understudy.daemon.kept import Kept, spawn_keeper
from understudy.daemon.rundir import Spec, Standing

# As Claude Code does it: the tool gets a session of its own, where no signal to a group arrives.
AGENT = """
setsid sh -c 'trap "" INT TERM HUP; echo working; while :; do sleep 0.2; done' &
exec sleep 600
"""


async def wait_line(kept: Kept, line: str) -> None:
    while line not in await trio.Path(kept.run_dir / "out").read_text():  # noqa: ASYNC110  A file.
        await trio.sleep(0.01)


async def test_cancel_orphan(tmp_path: Path) -> None:
    """R7.1, R7.2: the exit, which frees slot and directory, comes when the last tool is gone."""
    spec = Spec(
        run=f"cancel-orphan-{os.getpid()}",
        argv=["sh", "-c", AGENT],
        cwd=str(tmp_path),
        env={"PATH": os.environ["PATH"]},
        grace_s=0.3,
        max_s=60,
    )
    with trio.fail_after(60):
        kept = await spawn_keeper(tmp_path / "run", spec)
        await wait_line(kept, "working")
        await kept.stop("cancelled")
        while kept.look() is Standing.KEPT:
            assert not (tmp_path / "run" / "exit.json").exists() or not processes.marked(spec.run)
            await trio.sleep(0.01)
    assert (kept.exit().why, kept.exit().left) == ("cancelled", [])
    assert processes.marked(spec.run) == []
