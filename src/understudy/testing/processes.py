"""Understudy as real processes: one machine's, in a home of its own, started and killed from here.

Whoever kills a process here means that process alone; `left` tells what lives on.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeVar, final

import trio

from understudy.daemon import processes
from understudy.daemon.kept import KeeperGone, Kept
from understudy.daemon.processes import Process
from understudy.daemon.rundir import Standing

POLL_S: Final = 0.05
PATIENCE_S: Final = 90.0
T = TypeVar("T")


async def wait_until(find: Callable[[], T | None], *, within_s: float = PATIENCE_S) -> T:
    """What `find` finds at last."""
    with trio.fail_after(within_s):
        while True:
            if found := find():
                return found
            await trio.sleep(POLL_S)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@final
class Machine:
    """`home` is its `UNDERSTUDY_HOME`. What it starts writes into `*.log` beside it."""

    def __init__(self, directory: Path, **environment: str) -> None:
        directory.chmod(0o711)
        self.directory = directory
        self.home = directory / "home"
        kept = {name: value for name, value in os.environ.items() if not _is_ours(name)}
        self.environment = {**kept, "UNDERSTUDY_HOME": str(self.home), **environment}
        self._started: list[trio.Process] = []

    async def start(self, *arguments: str) -> trio.Process:
        """A process that goes on; its output is in `log(arguments[0])`."""
        with self.log(arguments[0]).open("ab") as log:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "understudy", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def said(self, name: str) -> str:
        return self.log(name).read_text(errors="replace")

    async def run(
        self, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """A command, to its end."""
        with trio.fail_after(PATIENCE_S):
            return await trio.run_process(
                [sys.executable, "-m", "understudy", *arguments],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env={**self.environment, **(environment or {})},
            )

    async def ask(self, *arguments: str) -> Any:  # noqa: ANN401  JSON.
        """The JSON that a command answers with."""
        done = await self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    def left(self) -> dict[str, list[int]]:
        """Living processes that belong to this machine, by name."""
        mark, found = str(self.directory).encode(), dict[str, list[int]]()
        for entry in processes.PROC.glob("[0-9]*"):
            if mark in _traces(entry) and (process := processes.identify(int(entry.name))):
                found.setdefault(processes.name(process), []).append(process.pid)
        return found

    def running(self, *arguments: str) -> Process | None:
        """The process of ours with these arguments: `up`'s child, say."""
        wanted = b"\0".join([b"-m", b"understudy", *(each.encode() for each in arguments)])
        for pids in self.left().values():
            for pid in pids:
                if wanted in _read(Path(f"/proc/{pid}/cmdline")):
                    return processes.identify(pid)
        return None

    def runs(self) -> list[Kept]:
        runs = self.home / "daemon" / "runs"
        return [Kept(entry) for entry in runs.iterdir()] if runs.is_dir() else []

    async def clear(self) -> None:
        """End what was started, then whatever outlived it."""
        for process in reversed(self._started):
            if process.returncode is None:
                process.terminate()
                with trio.move_on_after(20):
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        for kept in self.runs():
            if kept.look() is Standing.KEPT:
                try:
                    await kept.stop("cancelled")
                    await kept.wait_exit()
                except KeeperGone:
                    pass
        for pids in self.left().values():
            for pid in pids:
                kill(pid)


@asynccontextmanager
async def open_machine(**environment: str) -> AsyncIterator[Machine]:
    """In a directory that other accounts can pass through: PostgreSQL does not run as root."""
    with TemporaryDirectory(prefix="understudy-") as directory:
        machine = Machine(Path(directory), **environment)
        try:
            yield machine
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + PATIENCE_S):
                await machine.clear()


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # It has just ended.


def _is_ours(name: str) -> bool:
    return name.startswith("UNDERSTUDY_") or name == "DATABASE_URL"


def _traces(entry: Path) -> bytes:
    """Where a directory would show that a process belongs to it."""
    try:
        cwd = os.fsencode((entry / "cwd").readlink())
    except OSError:
        cwd = b""
    return b"\0".join([_read(entry / "cmdline"), _read(entry / "environ"), cwd])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
