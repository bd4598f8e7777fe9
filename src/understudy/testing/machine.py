"""A machine that works for a node: a whole daemon in this process, its runs under real keepers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from understudy.config import DaemonConfig
from understudy.core.lifecycle import TERMINAL
from understudy.core.tree import Branch
from understudy.daemon import processes, rundir
from understudy.daemon.kept import Kept
from understudy.daemon.main import run_daemon
from understudy.daemon.processes import Process
from understudy.testing.node import Node

LOOK_AGAIN_S: Final = 0.05
WAIT_S: Final = 90.0


@dataclass(frozen=True)
class Machine:
    """`config.path` outlives the daemons that work there one after the other."""

    node: Node
    config: DaemonConfig

    @asynccontextmanager
    async def daemon(self) -> AsyncIterator[None]:
        """It works while the block lasts. Its agents go on, as those of any daemon do (R7.4)."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_daemon, self.config, Branch("daemon"))
            yield
            nursery.cancel_scope.cancel()

    async def agent(self, name: str, provider: str, **fields: object) -> None:
        body = {"name": name, "provider": provider, **fields}
        made = await self.node.person.post("/api/agents", json=body)
        assert made.is_success, made.text

    async def assign(self, agent: str, **issue: object) -> str:
        """An issue for the agent; the id of its task."""
        made = await self.node.person.post("/api/issues", json={"agent": agent, **issue})
        assert made.is_success, made.text
        return str(made.json()["task"]["id"])

    async def wait_task(self, task_id: str, is_so: Callable[[Any], object]) -> Any:  # noqa: ANN401  JSON.
        """The task's page once it is so; no later than its end."""
        with trio.fail_after(WAIT_S):
            while not is_so(shown := await self.get(f"/api/tasks/{task_id}")):
                assert shown["task"]["status"] not in TERMINAL, shown["task"]
                await trio.sleep(LOOK_AGAIN_S)
        return shown

    async def wait_status(self, task_id: str, status: str) -> Any:  # noqa: ANN401  JSON.
        return await self.wait_task(task_id, lambda shown: shown["task"]["status"] == status)

    async def wait_told(self, task_id: str, count: int) -> None:
        """Until so many messages have arrived."""
        with trio.fail_after(WAIT_S):
            while len(await self.messages(task_id)) < count:  # noqa: ASYNC110  They are in a database.
                await trio.sleep(LOOK_AGAIN_S)

    async def messages(self, task_id: str) -> list[Any]:
        told: list[Any] = await self.get(f"/api/tasks/{task_id}/messages")
        return told

    async def get(self, path: str) -> Any:  # noqa: ANN401  JSON.
        answer = await self.node.person.get(path)
        assert answer.is_success, answer.text
        return answer.json()

    def kept(self) -> list[Kept]:
        """Its runs that are not reported yet."""
        runs = self.config.path / "runs"
        return [Kept(run_dir) for run_dir in runs.iterdir()] if runs.exists() else []

    def end(self) -> None:
        """Kill whatever it has left behind."""
        for kept in self.kept():
            while left := [*_keeper(kept), *processes.marked(kept.run_dir.name)]:
                processes.send(left, signal.SIGKILL)
                time.sleep(LOOK_AGAIN_S)


def _keeper(kept: Kept) -> list[Process]:
    if not (kept.run_dir / rundir.STATE).exists():
        return []
    state = kept.state()
    keeper = Process(state.keeper_pid, state.keeper_start)
    return [keeper] if processes.identify(keeper.pid) == keeper else []


@contextmanager
def open_machine(node: Node, path: Path, search_path: str = os.defpath) -> Iterator[Machine]:
    """`search_path` is where its daemon looks for agent CLIs, and the PATH of its agents."""
    config = DaemonConfig(
        path, node.address, node.daemon_key, str(node.workspace.id), search_path=search_path
    )
    machine = Machine(node, config)
    try:
        yield machine
    finally:
        machine.end()
