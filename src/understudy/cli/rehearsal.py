"""The demo's story, with real processes: three runs, a daemon killed in the second, a verdict."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final, final

import httpx2
import msgspec
import trio

from understudy.cli.children import end_child, open_child, wait_answers
from understudy.cli.credentials import Credentials, MachineKey
from understudy.cli.evidence import STEPS, Outcome
from understudy.cli.witness import AGENT, ENDED, POLL_S, Run, Witness, make_repository
from understudy.config import Home, ServerConfig
from understudy.core.restarts import CannotStart, RestartPolicy
from understudy.core.tree import Branch
from understudy.daemon.kept import KeeperGone, Kept
from understudy.daemon.rundir import Standing
from understudy.daemon.status import DaemonStatus, read_status
from understudy.server import open_database, own_database
from understudy.store import issues, people, tokens
from understudy.store.tokens import Owner
from understudy.supervisor import open_children, supervise

STEP_S: Final = 0.45
KILL_AT: Final = 1
"""Commits of the second run."""
READY_S: Final = 60.0
RUN_S: Final = 60.0
STOP_S: Final = 15.0
TAIL: Final = 2000
TITLES: Final = (
    "Say in the README how to start",
    "Name the flags in the help text",
    "Explain the last error message",
)

Tell = Callable[[str], None]


async def rehearse(directory: Path, database_url: str | None, tell: Tell) -> Outcome:
    """In `directory`, which must be empty. Raises `CannotStart`; leaves no process behind."""
    home = Home(directory / "home")
    home.create()
    server = ServerConfig(home, port=_free_port(), database_url=database_url)
    async with open_children(stop_s=STOP_S) as children:
        if server.database_url is None:
            database = own_database(server)
            branch = Branch("postgres")
            await children.start(supervise, branch, database.run, RestartPolicy())
            server = replace(server, database_url=database.url)
        key = await _admit(server)
        tell("a scratch database is up")
        async with _open_stage(server, key, directory, tell) as stage:
            return await _play(stage)


async def _play(stage: Stage) -> Outcome:
    daemon = await stage.start_daemon()
    stage.tell(f"the daemon (pid {daemon.pid}) is linked to the server")
    await stage.witness.hire("--steps", str(STEPS), "--step-s", str(STEP_S))
    first, second, third = TITLES
    runs = [await _assign(stage, first)]
    await _finish(stage, runs[0])
    runs.append(await _assign(stage, second))
    adopted = await _kill_in_the_middle(stage, runs[1])
    await _finish(stage, runs[1])
    runs.append(await _assign(stage, third))
    await _finish(stage, runs[2])
    return Outcome(tuple([await stage.witness.collect(run) for run in runs]), adopted)


async def _assign(stage: Stage, title: str) -> Run:
    run = await stage.witness.assign(title)
    stage.tell(f"{run.key} is assigned to {AGENT}: {title}")
    return run


async def _finish(stage: Stage, run: Run) -> None:
    """Until it has ended; one that does not within `RUN_S` is left to the verdict."""
    with trio.move_on_after(RUN_S) as patience:
        status = await stage.witness.wait_status(run, ENDED.__contains__)
        agents = ", ".join(str(process.pid) for process in sorted(run.agents))
        stage.tell(f"{run.key} is {status}; agents seen at work on it: pid {agents}")
    if patience.cancelled_caught:
        stage.tell(f"{run.key} has not ended within {RUN_S:.0f} s")


async def _kill_in_the_middle(stage: Stage, run: Run) -> int:
    """SIGKILL the daemon at work, start another; how many runs that one has taken over."""
    with trio.move_on_after(RUN_S):
        await stage.witness.wait_commits(run, KILL_AT)
    killed = await stage.kill_daemon()
    stage.tell(f"SIGKILL: the daemon (pid {killed}) is dead")
    with trio.move_on_after(RUN_S):
        commits = await stage.witness.wait_commits(run, KILL_AT + 1)
        stage.tell(f"its agent goes on alone: {commits} of {STEPS} steps are committed")
    daemon = await stage.start_daemon()
    adopted = [each.issue for each in daemon.runs if each.issue]
    took = f"and has taken over {', '.join(adopted)}" if adopted else "and found nothing"
    stage.tell(f"a second daemon (pid {daemon.pid}) is linked {took}")
    return len(adopted)


async def _admit(server: ServerConfig) -> str:
    """A person and a machine; the person's key."""
    async with open_database(server) as database:
        user, workspace = await people.first_user(database, name="Ada", email="ada@example.org")
        if await issues.of_workspace(database, workspace.id):
            raise CannotStart("that database holds issues: the demo wants one of its own")
        owner = Owner(user_id=user.id, workspace_id=workspace.id)
        key = await tokens.create(database, "personal", owner)
        secret = await tokens.create(database, "daemon", owner)
    machine = MachineKey(server=server.address, key=secret, workspace_id=str(workspace.id))
    known = Credentials(server=server.address, key=key, machine=machine)
    server.home.credentials.touch(0o600)
    server.home.credentials.write_bytes(msgspec.json.encode(known))
    return key


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@asynccontextmanager
async def _open_stage(
    server: ServerConfig, key: str, directory: Path, tell: Tell
) -> AsyncIterator[Stage]:
    """A repository, the server, and somebody who watches the processes."""
    repository = directory / "project"
    await make_repository(repository)
    headers = {"Authorization": f"Bearer {key}"}
    async with (
        httpx2.AsyncClient(
            base_url=server.address, headers=headers, trust_env=False, timeout=READY_S
        ) as http,
        trio.open_nursery() as nursery,
    ):
        stage = Stage(server, Witness(http, repository), tell)
        try:
            nursery.start_soon(stage.witness.watch)
            await stage.start_server(nursery)
            yield stage
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await stage.clear()


@final
class Stage:
    """The processes of the demo."""

    def __init__(self, server: ServerConfig, witness: Witness, tell: Tell) -> None:
        self.tell = tell
        self.witness = witness
        self._server = server
        self._children: list[trio.Process] = []
        kept = {k: v for k, v in os.environ.items() if not k.startswith("UNDERSTUDY_")}
        self._environment = {**kept, "UNDERSTUDY_HOME": str(server.home.path)}

    async def start_server(self, nursery: trio.Nursery) -> None:
        assert self._server.database_url is not None
        self._environment["DATABASE_URL"] = self._server.database_url
        process = await self._start("serve", "--port", str(self._server.port))
        nursery.start_soon(self._watch_server, process)
        with trio.move_on_after(READY_S) as patience:
            await wait_answers(self._server.address)
        if patience.cancelled_caught:
            raise CannotStart(f"the server did not answer: {self._last_words('serve')}")
        self.tell(f"the server answers at {self._server.address}")

    async def _watch_server(self, process: trio.Process) -> None:
        code = await process.wait()
        raise CannotStart(f"the server ended with status {code}: {self._last_words('serve')}")

    async def start_daemon(self) -> DaemonStatus:
        """What it says of itself once it is linked."""
        process = await self._start("daemon", "run")
        with trio.move_on_after(READY_S):
            while process.returncode is None:
                found = read_status(self._server.home.daemon)
                if found is not None and found.pid == process.pid and found.is_linked:
                    return found
                await trio.sleep(POLL_S)
        raise CannotStart(f"the daemon did not come up: {self._last_words('daemon')}")

    async def kill_daemon(self) -> int:
        """The process alone: keepers and agents are not its process group."""
        daemon = self._children.pop()
        daemon.kill()
        await daemon.wait()
        return daemon.pid

    async def _start(self, *arguments: str) -> trio.Process:
        with self._log(arguments[0]).open("ab") as log:
            process = await open_child(list(arguments), self._environment, stderr=log)
        self._children.append(process)
        return process

    def _log(self, name: str) -> Path:
        return self._server.home.path / f"{name}.err"

    def _last_words(self, name: str) -> str:
        return self._log(name).read_text(errors="replace").strip()[-TAIL:] or "it said nothing"

    async def clear(self) -> None:
        """End what runs, the last first. Agents only run here when something went wrong."""
        for process in reversed(self._children):
            await end_child(process)
        with trio.move_on_after(STOP_S):
            for run_dir in _entries(self._server.home.daemon / "runs"):
                await _end_agent(Kept(run_dir))


def _entries(directory: Path) -> list[Path]:
    return list(directory.iterdir()) if directory.is_dir() else []


async def _end_agent(kept: Kept) -> None:
    try:
        await kept.stop("cancelled")
        await kept.wait_exit()
    except KeeperGone:
        if kept.look() is Standing.LOST:
            await kept.sweep()
