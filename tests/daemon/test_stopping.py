"""How a daemon ends: with its runs, before them, or without them (R7.4)."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from understudy.core.tree import Branch
from understudy.daemon import link, processes
from understudy.daemon.main import run_daemon
from understudy.daemon.outbox import Outbox
from understudy.daemon.rundir import Standing
from understudy.daemon.status import DaemonStatus, read_status
from understudy.daemon.stopping import NOW_S, SIGNALS, Ending, Stopping
from understudy.testing.clock import VirtualClock
from understudy.testing.machine import Machine, open_machine
from understudy.testing.node import Node

GATE = """
while [ ! -e {gate} ]; do sleep 0.05; done
echo '{{"type":"result","output":"done"}}'
"""
STUBBORN = "trap '' INT TERM HUP; while :; do sleep 0.2; done"


@dataclass
class Working:
    """A daemon at work, and the way to send it a signal."""

    machine: Machine
    send: trio.MemorySendChannel[int]
    endings: list[Ending] = field(default_factory=list)
    ended: trio.Event = field(default_factory=trio.Event)

    def status(self) -> DaemonStatus:
        found = read_status(self.machine.config.path)
        assert found is not None
        return found

    async def wait_ended(self) -> Ending:
        with trio.fail_after(60):
            await self.ended.wait()
        return self.endings[0]

    async def wait_linked(self) -> None:
        await self.wait(lambda: (read := read_status(self.machine.config.path)) and read.is_linked)

    async def wait(self, is_so: Any) -> None:
        with trio.fail_after(60):
            while not is_so():  # noqa: ASYNC110  A file.
                await trio.sleep(0.02)

    async def runtime(self) -> str:
        """Whether the server believes that the machine is there."""
        found = await self.machine.get("/api/runtimes")
        return str({each["status"] for each in found if each["provider"] == "command"}.pop())

    async def task(self, task_id: str) -> Any:
        return (await self.machine.get(f"/api/tasks/{task_id}"))["task"]


@pytest.fixture
def machine(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(link, "RECONNECT_S_MIN", 0.01)
    monkeypatch.setattr(link, "RECONNECT_S_MAX", 0.02)
    with open_machine(node, tmp_path / "daemon") as machine:
        yield machine


@asynccontextmanager
async def at_work(machine: Machine) -> AsyncIterator[Working]:
    send, signals = trio.open_memory_channel[int](10)
    working = Working(machine, send)

    async def run() -> None:
        ending = await run_daemon(machine.config, Branch("daemon"), signals=signals)
        working.endings.append(ending)
        working.ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await working.wait_linked()
        yield working
        nursery.cancel_scope.cancel()


async def begin(machine: Machine, script: str) -> str:
    """The id of a task whose agent is at work."""
    await machine.agent("Nia", "command", custom_args=["sh", "-c", script])
    task_id = await machine.assign("Nia", title="Do it")
    await machine.wait_status(task_id, "running")
    with trio.fail_after(30):
        while [kept.look() for kept in machine.kept()] != [Standing.KEPT]:  # noqa: ASYNC110  A file.
            await trio.sleep(0.02)
    return task_id


async def test_a_daemon_that_drains_takes_nothing_new_and_ends_with_its_last_run(
    machine: Machine, tmp_path: Path
) -> None:
    """R7.4: nor under the credit that it has given before."""
    gate = tmp_path / "gate"
    async with at_work(machine) as working:
        first = await begin(machine, GATE.format(gate=gate))
        working.send.send_nowait(signal.SIGUSR1)
        await working.wait(lambda: working.status().ending == "drain")
        await working.wait_linked()
        await machine.agent("Bo", "command", custom_args=["true"])
        late = await machine.assign("Bo", title="Too late")
        assert [run.agent for run in working.status().runs] == ["Nia"]
        assert not working.ended.is_set()
        gate.touch()
        assert await working.wait_ended() is Ending.DRAIN
        assert (await working.task(first))["status"] == "completed"
        assert (await working.task(late))["status"] == "queued"
        assert await working.runtime() == "offline"


async def test_a_daemon_that_stops_now_leaves_no_agent_and_reports_a_shutdown(
    machine: Machine,
) -> None:
    """R7.4: which is tried again."""
    async with at_work(machine) as working:
        task_id = await begin(machine, STUBBORN)
        [kept] = machine.kept()
        working.send.send_nowait(signal.SIGQUIT)
        assert await working.wait_ended() is Ending.NOW
        assert processes.marked(kept.run_dir.name) == []
        task = await working.task(task_id)
        assert (task["status"], task["failure_reason"]) == ("failed", "runtime_shutdown")
        assert (await working.task(task["retry_task_id"]))["status"] == "queued"
        assert await working.runtime() == "offline"


async def test_a_drain_can_be_cut_short(machine: Machine) -> None:
    """R7.4"""
    async with at_work(machine) as working:
        task_id = await begin(machine, STUBBORN)
        working.send.send_nowait(signal.SIGUSR1)
        await working.wait(lambda: working.status().ending == "drain")
        working.send.send_nowait(signal.SIGQUIT)
        assert await working.wait_ended() is Ending.NOW
        assert (await working.task(task_id))["failure_reason"] == "runtime_shutdown"


async def test_what_cannot_be_reported_before_the_end_waits_in_the_outbox(
    machine: Machine, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R6.4, R7.4: a stop is bounded, whoever is away."""
    monkeypatch.setattr("understudy.daemon.stopping.NOW_S", 6.0)
    async with at_work(machine) as working:
        task_id = await begin(machine, STUBBORN)
        monkeypatch.setattr(link.Link, "is_up", property(lambda _: False))
        working.send.send_nowait(signal.SIGQUIT)
        assert await working.wait_ended() is Ending.NOW
        monkeypatch.undo()
    with Outbox(machine.config.path / "outbox.db") as outbox:
        [(reported, _)] = outbox.claims()
    assert reported == task_id


async def test_a_daemon_that_starts_anew_leaves_its_agents_and_the_board_alone(
    machine: Machine, tmp_path: Path
) -> None:
    """R7.4, R8.1: the next one, of whatever version, takes them over."""
    gate = tmp_path / "gate"
    async with at_work(machine) as working:
        task_id = await begin(machine, GATE.format(gate=gate))
        working.send.send_nowait(signal.SIGUSR2)
        assert await working.wait_ended() is Ending.RESTART
        [kept] = machine.kept()
        assert kept.look() is Standing.KEPT
        assert await working.runtime() == "online"
    async with at_work(machine) as working:
        assert [str(run.task_id) for run in working.status().runs] == [task_id]
        gate.touch()
        await machine.wait_status(task_id, "completed")


async def test_a_daemon_that_starts_anew_takes_no_leave(machine: Machine) -> None:
    """Though nothing is at work: it is back in a second."""
    async with at_work(machine) as working:
        working.send.send_nowait(signal.SIGUSR2)
        assert await working.wait_ended() is Ending.RESTART
        assert await working.runtime() == "online"


@pytest.mark.parametrize(("is_at_work", "says"), [(True, "online"), (False, "offline")])
async def test_a_stopped_daemon_takes_leave_unless_agents_go_on(
    machine: Machine, *, is_at_work: bool, says: str
) -> None:
    """R4.11: their time is counted from when the server last heard of them, by both sides."""
    async with at_work(machine) as working:
        if is_at_work:
            await begin(machine, STUBBORN)
        await working.wait(lambda: not is_at_work or machine.kept())
    assert await working.runtime() == says


async def test_a_stop_of_agents_that_do_not_end_is_bounded(virtual_clock: VirtualClock) -> None:
    """R7.4"""
    stopping = Stopping(is_idle=lambda: False)
    stopping.ask(Ending.DRAIN)
    with trio.move_on_after(10 * NOW_S) as drain:
        await stopping.wait_over()
    assert drain.cancelled_caught
    asked_at = trio.current_time()
    stopping = Stopping(is_idle=lambda: False)
    stopping.ask(Ending.NOW)
    stopping.ask(Ending.DRAIN)
    assert await stopping.wait_over() is Ending.NOW
    assert trio.current_time() == asked_at + NOW_S


@pytest.fixture
def virtual_clock() -> VirtualClock:
    return VirtualClock()


def test_every_way_to_end_has_its_signal() -> None:
    """A service manager's own, SIGTERM, is the one that harms nobody."""
    assert set(SIGNALS.values()) == set(Ending)
    assert not {signal.SIGTERM, signal.SIGINT} & set(SIGNALS)
