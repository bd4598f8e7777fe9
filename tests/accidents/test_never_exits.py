"""The CLI printed its result and did not exit.

Who waits for the exit waits for ever. Here the result is the end: the run is completed, and what is
left of the program is stopped ten seconds later (R9.3).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from signal import SIGINT

import pytest
import trio

from understudy.daemon import processes
from understudy.daemon.kept import spawn_keeper
from understudy.daemon.lines import Line
from understudy.daemon.rundir import Spec
from understudy.daemon.spool import Spool
from understudy.testing.scenario import Scenario
from understudy.testing.simulated_process import Agent


async def lingers(agent: Agent) -> int:
    agent.ignore(SIGINT)
    agent.say("result", output="Fixed.")
    await agent.hang()


def test_never_exits_in_a_world(enact: Callable[..., None]) -> None:
    """R9.3"""

    async def story(world: Scenario) -> None:
        laptop = await world.machine("laptop")
        fix = await world.assign("Fix the parser", lingers)
        await fix.until("running")
        said_at = world.now()
        await fix.until("completed")
        assert world.now() - said_at < 30
        assert laptop.agents() == 0
        assert await fix.comments() == ["Fixed."]

    enact(story)


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
