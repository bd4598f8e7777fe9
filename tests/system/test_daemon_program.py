"""The daemon as a program, with real processes: start, status, restart, stop, and its secrets."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from understudy.daemon import processes
from understudy.daemon.rundir import Standing
from understudy.daemon.status import is_running, read_status
from understudy.testing.processes import Machine, free_port, open_machine, wait_until

SECRET = "correct-horse-battery-staple"
GATE = """
echo started >> {directory}/starts
while [ ! -e {directory}/gate ]; do sleep 0.1; done
echo '{{"type":"result","output":"done"}}'
"""


@dataclass
class Scene:
    """A server, an agent that works until `open_gate`, and a daemon in the background."""

    machine: Machine

    @property
    def daemon_dir(self) -> Path:
        return self.machine.home / "daemon"

    async def begin(self) -> str:
        """The id of a task whose agent is at work."""
        script = GATE.format(directory=self.machine.directory)
        arguments = ["--provider", "command", "--env", f"PASSWORD={SECRET}", "--", "sh", "-c"]
        await self.machine.run("agent", "create", "Nia", *arguments, script)
        made = await self.machine.ask("issue", "create", "Work", "--agent", "Nia")
        await wait_until(self.starts)
        return str(made["task"]["id"])

    def starts(self) -> int:
        trace = self.machine.directory / "starts"
        return len(trace.read_text().splitlines()) if trace.exists() else 0

    def open_gate(self) -> None:
        (self.machine.directory / "gate").touch()

    def at_work(self) -> list[int | None]:
        kept = [each for each in self.machine.runs() if each.look() is Standing.KEPT]
        return [each.state().agent_pid for each in kept]

    async def task(self, task_id: str) -> Any:
        return (await self.machine.ask("task", "show", task_id))["task"]

    async def wait_status(self, task_id: str, status: str) -> Any:
        with trio.fail_after(60):
            while (task := await self.task(task_id))["status"] != status:  # noqa: ASYNC110
                await trio.sleep(0.1)
        return task

    def command_lines(self) -> bytes:
        """Of all processes of this machine."""
        pids = [pid for pids in self.machine.left().values() for pid in pids]
        lines = []
        for pid in pids:
            path = processes.PROC / str(pid) / "cmdline"
            lines.append(path.read_bytes() if path.exists() else b"")
        return b"\n".join(lines)


@asynccontextmanager
async def open_scene() -> AsyncIterator[Scene]:
    async with open_machine(UNDERSTUDY_PORT=str(free_port())) as machine:
        scene = Scene(machine)
        await machine.start("up", "--no-daemon")
        await wait_until(lambda: "Ctrl-C stops" in machine.said("up"))
        started = await machine.run("daemon", "start")
        assert started.returncode == 0, started.stderr.decode()
        assert b"linked to http" in started.stdout
        assert str(scene.daemon_dir / "daemon.log").encode() in started.stdout
        yield scene
        if is_running(scene.daemon_dir):
            await machine.run("daemon", "stop")


async def test_a_status_says_who_works_on_what_since_when() -> None:
    """R9.6; and R9.5: no secret stands where another account could read it."""
    async with open_scene() as scene:
        task_id = await scene.begin()
        found = await scene.machine.ask("daemon", "status")
        [run] = found["runs"]
        assert (run["task_id"], run["agent"], run["issue"]) == (task_id, "Nia", "UND-1")
        assert run["since"] <= run["last_progress"]
        assert (found["is_linked"], found["slots"] - found["slots_free"]) == (True, 1)
        shown = (await scene.machine.run("daemon", "status")).stdout.decode()
        assert "Nia" in shown
        assert not re.search(rb"us[ladps]_[0-9a-f]{8}", scene.command_lines())
        assert SECRET.encode() not in scene.command_lines()
        for name in ("credentials.json", "daemon/daemon.log", "daemon/daemon.err"):
            assert (scene.machine.home / name).stat().st_mode & 0o077 == 0
        assert scene.daemon_dir.stat().st_mode & 0o077 == 0
        log = (scene.daemon_dir / "daemon.log").read_text()
        assert not re.search(rf"us[ladps]_[0-9a-f]{{8}}|{SECRET}", log)


async def test_a_restart_is_another_program_in_the_same_process_over_the_same_agents() -> None:
    """R7.4, R8.1: as after an upgrade."""
    async with open_scene() as scene:
        task_id = await scene.begin()
        before, agents = read_status(scene.daemon_dir), scene.at_work()
        assert before is not None
        after = await scene.machine.ask("daemon", "restart")
        assert (after["pid"], after["is_linked"]) == (before.pid, True)
        assert after["incarnation"] != before.incarnation
        assert scene.at_work() == agents
        scene.open_gate()
        await scene.wait_status(task_id, "completed")
        assert scene.starts() == 1


@pytest.mark.slow
async def test_a_stop_leaves_the_agents_to_the_next_daemon() -> None:
    """R7.4"""
    async with open_scene() as scene:
        task_id = await scene.begin()
        assert await scene.machine.ask("daemon", "stop") == {"stopped": True, "agents_going_on": 1}
        assert len(scene.at_work()) == 1
        scene.open_gate()
        await scene.machine.run("daemon", "start")
        await scene.wait_status(task_id, "completed")
        assert scene.starts() == 1


async def test_a_drain_says_what_it_waits_for_and_waits_for_it() -> None:
    """R7.4"""
    async with open_scene() as scene:
        task_id = await scene.begin()
        async with trio.open_nursery() as nursery:
            drained: list[subprocess.CompletedProcess[bytes]] = []

            async def drain() -> None:
                drained.append(await scene.machine.run("daemon", "stop", "--drain", "--json"))

            nursery.start_soon(drain)
            await wait_until(
                lambda: (found := read_status(scene.daemon_dir)) and found.ending == "drain"
            )
            said = (await scene.machine.run("daemon", "status")).stdout.decode()
            assert "It takes nothing new" in said
            scene.open_gate()
        assert json.loads(drained[0].stdout) == {"stopped": True, "agents_going_on": 0}
        assert b"Waiting for Nia on UND-1" in drained[0].stderr
        assert (await scene.task(task_id))["status"] == "completed"


@pytest.mark.slow
@pytest.mark.parametrize("by", ["timeout", "Ctrl-C twice"])
async def test_the_waiting_for_a_drain_can_be_ended_and_costs_no_agent(by: str) -> None:
    """R7.4"""
    async with open_scene() as scene:
        await scene.begin()
        timeout = ["--timeout", "1"] if by == "timeout" else []
        drain = await trio.lowlevel.open_process(
            [sys.executable, "-m", "understudy", "daemon", "stop", "--drain", *timeout],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=scene.machine.environment,
        )
        assert drain.stdout is not None
        assert drain.stderr is not None
        with trio.fail_after(60):
            assert b"Waiting for Nia" in await drain.stderr.receive_some()
            if by != "timeout":
                drain.send_signal(signal.SIGINT)
                assert b"Ctrl-C again" in await drain.stderr.receive_some()
                assert is_running(scene.daemon_dir)
                drain.send_signal(signal.SIGINT)
            assert b"1 agent goes on" in await drain.stdout.receive_some()
            assert await drain.wait() == 0
        assert len(scene.at_work()) == 1
        assert not is_running(scene.daemon_dir)


async def test_a_stop_that_waits_for_nobody_leaves_nothing() -> None:
    """R7.4: reported as `runtime_shutdown`, and tried again by the next daemon."""
    async with open_scene() as scene:
        task_id = await scene.begin()
        said = await scene.machine.ask("daemon", "stop", "--now")
        assert said == {"stopped": True, "agents_going_on": 0}
        assert scene.machine.runs() == []
        task = await scene.task(task_id)
        assert (task["status"], task["failure_reason"]) == ("failed", "runtime_shutdown")
        scene.open_gate()
        await scene.machine.run("daemon", "start")
        await scene.wait_status(task["retry_task_id"], "completed")
        assert scene.starts() == 2


async def test_up_leaves_a_daemon_alone_that_was_asked_to_stop() -> None:
    async with open_machine(UNDERSTUDY_PORT=str(free_port())) as machine:
        up = await machine.start("up")
        await wait_until(lambda: "Ctrl-C stops" in machine.said("up"))
        before = await machine.ask("daemon", "status")
        assert before["is_child"]
        after = await machine.ask("daemon", "restart")
        assert (after["pid"], after["is_child"]) == (before["pid"], True)
        assert (await machine.run("daemon", "stop")).returncode == 0
        await wait_until(lambda: "The daemon was stopped" in machine.said("up"))
        assert (await machine.run("daemon", "status")).returncode == 1
        assert up.returncode is None


@pytest.mark.slow
async def test_a_start_without_a_link_says_why_and_goes_on_trying() -> None:
    """R11.5: away is 6; the daemon is there when the server comes."""
    async with open_scene() as scene:
        await scene.machine.run("daemon", "stop")
        credentials = scene.machine.home / "credentials.json"
        known = json.loads(credentials.read_text())
        known["machine"]["server"] = f"http://127.0.0.1:{free_port()}"
        credentials.write_text(json.dumps(known))
        started = await scene.machine.run("daemon", "start")
        assert started.returncode == 6
        assert b"goes on trying" in started.stderr
        assert is_running(scene.daemon_dir)
