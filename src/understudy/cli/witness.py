"""What can be seen of runs from outside: in the repository, on the board, among the processes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

import httpx2
import trio

from understudy.cli.evidence import Evidence
from understudy.core.restarts import CannotStart
from understudy.daemon import processes
from understudy.daemon.processes import Process

POLL_S: Final = 0.1
AGENT: Final = "Nia"
ENDED: Final = frozenset({"completed", "failed", "cancelled"})
GIT: Final = ("git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org")


@dataclass(eq=False)
class Run:
    """An issue that was assigned once."""

    key: str
    task_id: str
    agents: set[Process] = field(default_factory=set)
    """All that were ever seen at work on it."""


@final
class Witness:
    """Assigns work in one repository and sees what becomes of it. `http` carries a key."""

    def __init__(self, http: httpx2.AsyncClient, repository: Path) -> None:
        self._http = http
        self._repository = repository
        self._runs: list[Run] = []

    async def watch(self) -> None:
        """Note each agent that is ever at work; /proc tells, not the daemon."""
        while True:
            for run in self._runs:
                run.agents |= _agents(run.task_id)
            await trio.sleep(POLL_S)

    async def hire(self, *arguments: str) -> None:
        body = {"name": AGENT, "provider": "scripted", "custom_args": arguments}
        (await self._http.post("/api/agents", json=body)).raise_for_status()

    async def assign(self, title: str) -> Run:
        body = {"title": title, "agent": AGENT, "repository": str(self._repository)}
        answer = await self._http.post("/api/issues", json=body)
        answer.raise_for_status()
        run = Run(answer.json()["issue"]["key"], answer.json()["task"]["id"])
        self._runs.append(run)
        return run

    async def wait_status(self, run: Run, is_it: Callable[[str], bool]) -> str:
        status = ""
        while not is_it(status):
            await trio.sleep(POLL_S)
            status = (await self.task(run))["status"]
        return status

    async def wait_commits(self, run: Run, number: int) -> int:
        """Until its agent has made so many, as its work directory shows them."""
        found = 0
        while found < number:
            await trio.sleep(POLL_S)
            if (work_dir := (await self.task(run))["work_dir"]) is not None:
                found = len(await self._commits(Path(work_dir), "HEAD"))
        return found

    async def task(self, run: Run) -> Any:
        return (await self._get(f"/api/tasks/{run.task_id}"))["task"]

    async def collect(self, run: Run) -> Evidence:
        detail = await self._get(f"/api/issues/{run.key}")
        tasks = [task["id"] for task in detail["tasks"]]
        told = [each for task in tasks for each in await self._get(f"/api/tasks/{task}/messages")]
        used = [each for task in tasks for each in (await self._get(f"/api/tasks/{task}"))["usage"]]
        return Evidence(
            key=run.key,
            statuses=tuple(task["status"] for task in detail["tasks"]),
            comments=len(detail["comments"]),
            messages=tuple(message["seq"] for message in told),
            said=tuple(message["content"] for message in told if message["type"] == "text"),
            commits=await self._published(run),
            tokens=sum(each["input_tokens"] + each["output_tokens"] for each in used),
            agents=len(run.agents),
        )

    async def _published(self, run: Run) -> tuple[str, ...]:
        branch = f"understudy/{AGENT.lower()}/{run.key.lower()}"
        if not await git(self._repository, "branch", "--list", branch):
            return ()
        return tuple(await self._commits(self._repository, branch))

    async def _commits(self, path: Path, tip: str) -> list[str]:
        """The subjects of what was made on top of the user's own."""
        root = await git(self._repository, "rev-parse", "main")
        return (await git(path, "log", "--format=%s", f"{root}..{tip}")).splitlines()

    async def _get(self, path: str) -> Any:
        answer = await self._http.get(path)
        answer.raise_for_status()
        return answer.json()


async def make_repository(path: Path) -> None:
    await git(path.parent, "init", "--quiet", "--initial-branch=main", str(path))
    await trio.Path(path / "README").write_text("A project.\n")
    await git(path, "add", "README")
    await git(path, "commit", "--quiet", "--no-verify", "--no-gpg-sign", "--message=Begin")


async def git(path: Path, *arguments: str) -> str:
    try:
        done = await trio.run_process(
            [*GIT, *arguments], cwd=path, capture_stdout=True, capture_stderr=True
        )
    except FileNotFoundError:
        raise CannotStart("agents work in a git repository, and there is no git here") from None
    except subprocess.CalledProcessError as error:
        raise CannotStart(f"git {arguments[0]} failed: {error.stderr.decode()}") from None
    return done.stdout.decode().strip()


def _agents(run: str) -> set[Process]:
    """The keeper gives each agent a session; what the agent starts is not its leader."""
    found = set[Process]()
    for process in processes.marked(run):
        with suppress(ProcessLookupError):
            if os.getsid(process.pid) == process.pid:
                found.add(process)
    return found
