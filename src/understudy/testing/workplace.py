"""A daemon against a whole node in one process, over a crossing that can be cut."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from understudy.config import DaemonConfig
from understudy.core.tree import Branch
from understudy.daemon.main import run_daemon
from understudy.testing.crossing import Crossing
from understudy.testing.node import Node

PATIENCE_S: Final = 60.0
RESULT: Final = '{"type":"result","output":"done"}'


@dataclass
class Workplace:
    node: Node
    path: Path
    crossing: Crossing
    config: DaemonConfig

    @asynccontextmanager
    async def open_daemon(self) -> AsyncIterator[None]:
        """Stopped as by SIGTERM when the block ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._work)
            yield
            nursery.cancel_scope.cancel()

    async def _work(self) -> None:
        await run_daemon(self.config, Branch("daemon"), dialer=self.crossing.dial)

    async def assign(self, provider: str, *arguments: str) -> str:
        body = {"name": "Nia", "provider": provider, "custom_args": arguments}
        await self.node.person.post("/api/agents", json=body)
        made = await self.node.person.post("/api/issues", json={"title": "Do it", "agent": "Nia"})
        return str(made.json()["task"]["id"])

    async def task(self, task_id: str) -> Any:  # noqa: ANN401  JSON.
        return (await self.node.person.get(f"/api/tasks/{task_id}")).json()["task"]

    async def wait_status(self, task_id: str, *statuses: str) -> Any:  # noqa: ANN401  JSON.
        with trio.fail_after(PATIENCE_S):
            while True:
                if (task := await self.task(task_id))["status"] in statuses:
                    return task
                await trio.sleep(0.02)

    async def wait_ended_here(self) -> None:
        """Until the agent is gone and its end is written down."""
        await self.wait(lambda: list(self.path.glob("runs/*/exit.json")))

    async def wait(self, condition: Callable[[], object]) -> None:
        with trio.fail_after(PATIENCE_S):
            while not condition():  # noqa: ASYNC110  A file, a counter.
                await trio.sleep(0.02)

    async def comments(self) -> list[str]:
        shown = (await self.node.person.get("/api/issues/UND-1")).json()
        return [comment["body"] for comment in shown["comments"]]

    async def assign_traced(self) -> str:
        """An agent that leaves a line in a file of its own whenever it is started."""
        script = f"echo started >> {self._trace}; sleep 0.5; echo '{RESULT}'"
        return await self.assign("command", "sh", "-c", script)

    def starts(self) -> int:
        return len(self._trace.read_text().splitlines())

    @property
    def _trace(self) -> Path:
        return self.path.with_name("trace")
