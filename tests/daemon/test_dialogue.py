"""Real keepers; an agent that echoes what it is told. Nothing of a run outlives its test."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from understudy.daemon import processes, rundir
from understudy.daemon.backends.backend import HangUp, Interrupt, Say
from understudy.daemon.dialogue import Dialogue
from understudy.daemon.kept import Kept, spawn_keeper
from understudy.daemon.rundir import Exit, Spec, Standing

LAST = 4


class Hosts:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs: list[str] = []

    async def start(self, script: str, *, linger_s: float = 20, grace_s: float = 20) -> Kept:
        run = uuid.uuid4().hex
        self.runs.append(run)
        spec = Spec(
            run=run,
            argv=["sh", "-c", script],
            cwd=str(self.root),
            env={"PATH": os.environ["PATH"]},
            stdin="0\n",
            linger_s=linger_s,
            grace_s=grace_s,
        )
        return await spawn_keeper(self.root / run, spec)

    def end(self) -> None:
        for run in self.runs:
            while left := processes.marked(run):
                processes.send(left, signal.SIGKILL)
                time.sleep(0.01)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    hosts = Hosts(tmp_path)
    yield hosts
    hosts.end()


def output(kept: Kept) -> list[str]:
    return (kept.run_dir / rundir.OUT).read_text().splitlines()


async def wait_output(kept: Kept, lines: int) -> list[str]:
    with trio.fail_after(30):
        while len(output(kept)) < lines:  # noqa: ASYNC110  A file sends no event.
            await trio.sleep(0.01)
    return output(kept)


async def wait_over(kept: Kept) -> Exit:
    with trio.fail_after(30):
        record = await kept.wait_exit()
    assert record is not None
    return record


async def live(kept: Kept, lines: int, *, is_killed_before_saying: bool) -> None:
    """A daemon that reads so many lines from the start, answers each with the next, and dies."""
    dialogue = Dialogue(kept)
    for line in (await wait_output(kept, lines))[:lines]:
        if is_killed_before_saying and int(line) == lines - 1:
            return
        await dialogue.tell(Say(f"{int(line) + 1}\n") if int(line) < LAST else HangUp())


@pytest.mark.parametrize("before", [True, False], ids=["before it spoke", "after it spoke"])
async def test_nothing_is_said_twice_however_many_daemons_read_it(
    hosts: Hosts, *, before: bool
) -> None:
    """R8.1: each daemon dies one line later, and the next one begins at the first."""
    kept = await hosts.start("exec cat")
    for lines in range(1, LAST + 2):
        await live(kept, lines, is_killed_before_saying=before)
        await live(kept, lines, is_killed_before_saying=False)
    assert (await wait_over(kept)).why == "exited"
    assert output(kept) == [str(number) for number in range(LAST + 1)]
    assert [frame.strip() for frame in kept.frames()] == output(kept)


async def test_an_interrupt_takes_no_frames_number(hosts: Hosts) -> None:
    """R7.2: what is answered while the agent stops reaches it."""
    kept = await hosts.start("exec cat")
    dialogue = Dialogue(kept)
    await dialogue.tell(Say("1\n"))
    await dialogue.tell(Interrupt("too early\n"))
    await dialogue.tell(Interrupt("stop\n"))
    await kept.stop("cancelled")
    await dialogue.tell(Say("2\n"))
    assert await wait_output(kept, 4) == ["0", "1", "stop", "2"]
    await dialogue.tell(HangUp())
    assert (await wait_over(kept)).why == "cancelled"


async def test_an_agent_that_does_not_leave_is_stopped_however_often_it_is_told(
    hosts: Hosts,
) -> None:
    """R9.3: the second word grants no more time."""
    kept = await hosts.start("cat; echo end; exec sleep 613", linger_s=1.0, grace_s=0.3)
    with trio.fail_after(20):
        while kept.look() is Standing.KEPT:
            await Dialogue(kept).tell(HangUp())
            await trio.sleep(0.2)
    assert kept.exit().why == "done"
    assert output(kept) == ["0", "end"]


@pytest.mark.parametrize("lost", [False, True], ids=["over", "lost"])
async def test_nobody_waits_for_a_keeper_that_is_gone(hosts: Hosts, *, lost: bool) -> None:
    kept = await hosts.start("exec cat")
    await wait_output(kept, 1)
    if lost:
        os.kill(kept.state().keeper_pid, signal.SIGKILL)
    else:
        await kept.close_stdin()
    with trio.fail_after(30):
        await kept.wait_exit()
        for event in (Say("1\n"), Interrupt("stop\n"), HangUp()):
            await Dialogue(kept).tell(event)
    assert output(kept) == ["0"]


async def test_what_a_closed_stdin_refuses_is_let_go(hosts: Hosts) -> None:
    kept = await hosts.start("cat; exec sleep 614")
    await kept.close_stdin()
    with trio.fail_after(30):
        await Dialogue(kept).tell(Say("1\n"))
    assert kept.look() is Standing.KEPT
    await kept.end("cancelled")
