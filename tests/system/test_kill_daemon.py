"""SIGKILL of the daemon at each moment of a run: nothing lost, nothing twice, one agent."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import trio

from understudy.cli.evidence import STEPS, doubled, lost
from understudy.cli.witness import ENDED, Run, Witness, make_repository
from understudy.daemon.rundir import Standing
from understudy.daemon.status import read_status
from understudy.testing.processes import Machine, free_port, open_machine, wait_until

# Stands before git on the daemon's PATH: while `hold` exists, a clone begins and does not go on.
SLOW_GIT = """#!/bin/sh
case " $* " in *clone*|*fetch*|*worktree*)
  while [ -e {hold} ]; do touch {held}; sleep 0.05; done;;
esac
exec {git} "$@"
"""


@dataclass
class Scene:
    machine: Machine
    witness: Witness
    daemon: trio.Process

    @property
    def hold(self) -> Path:
        return self.machine.directory / "hold"

    @property
    def held(self) -> Path:
        return self.machine.directory / "held"

    async def kill_daemon(self) -> None:
        self.daemon.kill()
        await self.daemon.wait()

    async def start_daemon(self) -> None:
        self.daemon = await self.machine.start("daemon", "run")
        await wait_until(self._is_linked)

    def _is_linked(self) -> bool:
        found = read_status(self.machine.home / "daemon")
        return found is not None and found.pid == self.daemon.pid and found.is_linked


@asynccontextmanager
async def open_scene() -> AsyncIterator[Scene]:
    async with open_machine(UNDERSTUDY_PORT=str(free_port())) as machine, trio.open_nursery() as n:
        machine.home.mkdir(mode=0o711)
        repository = machine.directory / "project"
        await make_repository(repository)
        await machine.start("up", "--no-daemon")
        await wait_until(lambda: "Ctrl-C stops" in machine.said("up"))
        key = re.search(r'"key":"([^"]+)"', (machine.home / "credentials.json").read_text())
        assert key
        address = f"http://127.0.0.1:{machine.environment['UNDERSTUDY_PORT']}"
        headers = {"Authorization": f"Bearer {key[1]}"}
        async with httpx2.AsyncClient(
            base_url=address, headers=headers, trust_env=False, timeout=60
        ) as http:
            witness = Witness(http, repository)
            scene = Scene(machine, witness, await machine.start("version"))
            _slow_git(scene)
            await scene.start_daemon()
            n.start_soon(witness.watch)
            await witness.hire("--steps", str(STEPS), "--step-s", "0.3")
            yield scene
        n.cancel_scope.cancel()


def _slow_git(scene: Scene) -> None:
    git, program = shutil.which("git"), scene.machine.directory / "bin" / "git"
    program.parent.mkdir()
    program.write_text(SLOW_GIT.format(hold=scene.hold, held=scene.held, git=git))
    program.chmod(0o755)
    scene.machine.environment["PATH"] = f"{program.parent}:{os.environ['PATH']}"


async def wait_ended(scene: Scene, run: Run) -> None:
    with trio.fail_after(90):
        assert await scene.witness.wait_status(run, ENDED.__contains__) == "completed"


async def check_whole(scene: Scene, run: Run) -> None:
    seen = await scene.witness.collect(run)
    assert (lost(seen), doubled(seen), seen.agents) == ([], [], 1)


@pytest.mark.slow
async def test_a_daemon_killed_while_it_prepares() -> None:
    """R3.8, R8.1: nothing has run, so its claim expires (60 s) and the task is given out again."""
    async with open_scene() as scene:
        scene.hold.touch()
        run = await scene.witness.assign("Prepare slowly")
        await wait_until(scene.held.exists)
        await scene.kill_daemon()
        scene.hold.unlink()
        await scene.start_daemon()
        with trio.fail_after(150):
            assert await scene.witness.wait_status(run, ENDED.__contains__) == "completed"
        await check_whole(scene, run)


async def test_a_daemon_killed_as_soon_as_the_run_has_started() -> None:
    """R2.6, R8.1"""
    async with open_scene() as scene:
        run = await scene.witness.assign("Start")
        with trio.fail_after(60):
            await scene.witness.wait_status(run, "running".__eq__)
        await scene.kill_daemon()
        await scene.start_daemon()
        await wait_ended(scene, run)
        await check_whole(scene, run)


@pytest.mark.slow
async def test_a_daemon_killed_five_times_in_one_run() -> None:
    """R8.1"""
    async with open_scene() as scene:
        run = await scene.witness.assign("Go on and on")
        for commits in range(1, STEPS):
            with trio.fail_after(60):
                await scene.witness.wait_commits(run, commits)
            await scene.kill_daemon()
            await scene.start_daemon()
        await wait_ended(scene, run)
        await check_whole(scene, run)


@pytest.mark.parametrize("how", ["stopped", pytest.param("killed", marks=pytest.mark.slow)])
async def test_a_report_in_the_outbox_survives_daemon_and_server(how: str) -> None:
    """R6.3, R6.4: the run ended while the server was away, then the daemon was killed."""
    async with open_scene() as scene:
        run = await scene.witness.assign("End while nobody listens")
        with trio.fail_after(60):
            await scene.witness.wait_commits(run, 1)
        serve = await wait_until(lambda: scene.machine.running("serve"))
        os.kill(serve.pid, signal.SIGSTOP)
        [kept] = scene.machine.runs()
        await wait_until(lambda: kept.look() is Standing.OVER)
        await wait_until(lambda: "ended: exited" in daemon_log(scene))
        await scene.kill_daemon()
        os.kill(serve.pid, signal.SIGCONT if how == "stopped" else signal.SIGKILL)
        await scene.start_daemon()
        await wait_ended(scene, run)
        await check_whole(scene, run)


def daemon_log(scene: Scene) -> str:
    return (scene.machine.home / "daemon" / "daemon.log").read_text()
