"""Status pings kept a hung run "active" for four days.

A run that is judged by whether anything comes from it lives as long as its program prints. Here
only progress counts: text, tools, new usage (R4.10).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from understudy.core.failures import FailureReason
from understudy.core.limits import Limits
from understudy.daemon.backends.backend import Notice, Session, Text, Unparsed
from understudy.daemon.kept import Kept
from understudy.daemon.rundir import OUT
from understudy.daemon.times import TIMES, Times
from understudy.daemon.watchdog import Stall, Watchdog
from understudy.testing.clock import run_virtual
from understudy.testing.plays import tell_session, works
from understudy.testing.scenario import Rules, Scenario
from understudy.testing.simulated_process import Agent
from understudy.testing.workplace import Workplace


async def pings(agent: Agent) -> int:
    agent.say("text", text="Let me see.")
    while True:
        tell_session(agent)
        await agent.sleep(PING_EVERY_S)


def test_ping_keeps_alive_in_a_world(enact: Callable[..., None]) -> None:
    """R4.10, R5.2: six minutes of nothing but pings, across a restart of its daemon."""

    async def story(world: Scenario) -> None:
        laptop = await world.machine("laptop")
        fix = await world.assign("Fix the parser", pings, works(60, says="Fixed."))
        first = await fix.until("running")
        began_at = world.now()
        await world.pass_(200)
        laptop.kill_daemon()
        laptop.start_daemon()
        await fix.until("completed")
        assert await fix.outcome() == ["agent_stalled", "completed"]
        assert world.now() - began_at < 360 + 60 + 60
        assert fix.starts == 2
        assert first["attempt"] == 1

    enact(story, rules=Rules(limits=Limits(silence_s=360.0)))


PINGS = (Session("s1", is_resumable=True), Notice("still alive"), Unparsed("{}", 2))
PING_EVERY_S = 20.0
FOUR_DAYS_S = 4 * 86400.0

HANGS = """
echo '{"type":"tool_use","id":"t1","name":"Bash","input":{}}'
while :; do echo '{"type":"session","id":"s1","resumable":true}'; sleep 0.05; done
"""


def test_ping_keeps_alive() -> None:
    """R4.10: it is stopped after the 30 minutes that it would have had without its pings."""

    async def main() -> tuple[Stall, float]:
        watchdog = Watchdog(Limits(), trio.current_time())
        watchdog.see(Text("hello"), trio.current_time())

        async def ping() -> None:
            while trio.current_time() < FOUR_DAYS_S:
                for event in PINGS:
                    watchdog.see(event, trio.current_time())
                watchdog.resume()
                await trio.sleep(PING_EVERY_S)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ping)
            stall = await watchdog.wait_stall()
            nursery.cancel_scope.cancel()
        return stall, trio.current_time()

    stall, at = run_virtual(main, seed=1)
    assert (stall.reason, at) == (FailureReason.AGENT_STALLED, 1800.0)


def test_ping_keeps_alive_across_restarts_of_the_daemon(tmp_path: Path) -> None:
    """R4.10: a daemon that reads the same output again, every ten minutes, is not fooled either."""
    out, now, due = tmp_path / OUT, 0.0, 0.0
    out.write_text("t")
    for _ in range(3):
        times = Times(tmp_path, now)
        watchdog = Watchdog(Limits(), now - times.began_ago_s(now))
        for byte in range(out.stat().st_size):
            event = Text("hello") if byte == 0 else PINGS[0]
            watchdog.see(event, now - times.ago_s(byte + 1, now))
        for _ in range(int(600 / PING_EVERY_S)):
            now += PING_EVERY_S
            with out.open("a") as file:
                file.write("p")
            size = out.stat().st_size
            watchdog.see(PINGS[0], now - times.ago_s(size, now))
            times.note(size, now)
        due = watchdog.due
    assert due == pytest.approx(1800.0, abs=60)


@pytest.fixture
async def emptied(workplace: Workplace) -> AsyncIterator[Workplace]:
    """The retry hangs as well: its keeper outlives the daemon of the test."""
    yield workplace
    for run_dir in workplace.path.glob("runs/*"):
        await Kept(run_dir).end("cancelled")


async def test_ping_keeps_alive_no_run_of_a_whole_board(emptied: Workplace) -> None:
    """R4.10, R5.1: its agent is gone, the task says what it waited for, and a fresh one follows."""
    workplace = emptied
    workplace.config = replace(workplace.config, limits=Limits(tool_s=1.0))
    async with workplace.open_daemon():
        task_id = await workplace.assign("command", "sh", "-c", HANGS)
        task = await workplace.wait_status(task_id, "failed")
    assert task["failure_reason"] == "agent_stalled"
    assert task["error"] == (
        "sh was stopped: no progress for 1 s inside Bash, which has not returned"
    )
    answer = await workplace.node.person.get(f"/api/tasks?issue_id={task['issue_id']}")
    retries = [each for each in answer.json() if each["parent_task_id"] == task_id]
    assert [each["session_id"] for each in retries] == [None]


async def test_ping_keeps_alive_no_run_that_a_new_daemon_adopts(emptied: Workplace) -> None:
    """R4.10: it reads hours of output in a second, and knows that they were hours."""
    workplace = emptied
    hour = Limits(tool_s=3600.0)
    workplace.config = replace(workplace.config, limits=hour)
    async with workplace.open_daemon():
        task_id = await workplace.assign("command", "sh", "-c", HANGS)
        await workplace.wait(lambda: list(workplace.path.glob("runs/*/heard")))
    (times,) = workplace.path.glob(f"runs/*/{TIMES}")
    began_at = float(times.read_text().split()[1]) - 3600
    times.write_text(f"0 {began_at}\n60 {began_at}\n")
    async with workplace.open_daemon():
        task = await workplace.wait_status(task_id, "failed")
    assert "no progress for 1 h inside Bash" in task["error"]
