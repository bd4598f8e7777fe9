"""Real agent CLIs under test: where they are, a network without an outside, a plain run.

`tests/clis.sh` installs them under `.clis`; `UNDERSTUDY_TEST_CLIS` names another such directory,
and what is on PATH is taken too.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from understudy.daemon.backends.backend import (
    Event,
    Exit,
    HangUp,
    Interrupt,
    Launch,
    Reader,
    Say,
    Usage,
    Verdict,
)
from understudy.daemon.lines import Line, LineSplitter
from understudy.testing.model_api import open_listener

CLONE_NEWNET: Final = 0x40000000
SIOCSIFFLAGS: Final = 0x8914
IFF_UP: Final = 1
LOOK_AGAIN_S: Final = 0.05


def find_cli(name: str) -> str | None:
    root = os.environ.get("UNDERSTUDY_TEST_CLIS", ".clis")
    places = [f"{Path(root).absolute()}/node_modules/.bin", os.environ.get("PATH", "")]
    return shutil.which(name, path=os.pathsep.join(places))


@dataclass(frozen=True)
class Ending:
    verdict: Verdict
    events: list[Event]
    bill: list[Usage]


async def run_cli(
    launch: Launch,
    reader: Reader,
    *,
    work_dir: Path,
    run_dir: Path,
    enter: tuple[str, ...] = (),
    on_event: Callable[[Event], bool] = lambda event: False,
) -> Ending:
    """Run without a keeper, to the end. Where `on_event` says true, the program is interrupted."""
    _write_files(launch.files)
    with (run_dir / "out").open("wb") as out, (run_dir / "err").open("wb") as err:
        process = await trio.lowlevel.open_process(
            [*enter, *launch.argv],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=err,
            env=launch.env,
            cwd=work_dir,
            start_new_session=True,
        )
    try:
        run = _Run(process, launch, reader, on_event)
        await run.follow(run_dir / "out")
        end = Exit("cancelled" if run.is_interrupted else "exited", process.returncode)
        verdict = reader.finish(end, _tail(run_dir / "err"))
        return Ending(verdict, run.events, reader.usage())
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with trio.CancelScope(shield=True):
            await process.wait()


def _write_files(files: dict[str, str]) -> None:
    for path, text in files.items():
        Path(path).write_text(text)


def _tail(path: Path) -> str:
    return path.read_bytes()[-2000:].decode("utf-8", "replace")


class _Run:
    def __init__(
        self,
        process: trio.Process,
        launch: Launch,
        reader: Reader,
        on_event: Callable[[Event], bool],
    ) -> None:
        self._process = process
        self._launch = launch
        self._reader = reader
        self._on_event = on_event
        self._interrupt = launch.interrupt or ""
        self.is_interrupted = False
        self.events: list[Event] = []

    async def follow(self, out: Path) -> None:
        await self._write(self._launch.stdin, is_last=self._launch.close_stdin)
        splitter = LineSplitter()
        with out.open("rb") as file:
            is_over = False
            while not is_over:
                is_over = self._process.poll() is not None  # Asked before the last look.
                for line in splitter.feed(file.read()):
                    assert isinstance(line, Line)
                    await self._read(line.text)
                await trio.sleep(LOOK_AGAIN_S)
        if torn := splitter.finish():
            await self._read(torn.text)

    async def _read(self, line: bytes) -> None:
        for event in self._reader.feed(line):
            self.events.append(event)
            await self._converse(event)
            if self._on_event(event):
                self.is_interrupted = True
                await self._write(self._interrupt, is_last=False)
        if self._launch.done and re.search(self._launch.done.encode(), line):
            await self._write("", is_last=True)

    async def _converse(self, event: Event) -> None:
        match event:
            case Say(frame):
                await self._write(frame, is_last=False)
            case Interrupt(frame):
                self._interrupt = frame
            case HangUp():
                await self._write("", is_last=True)
            case _:
                pass

    async def _write(self, frame: str, *, is_last: bool) -> None:
        stdin = self._process.stdin
        assert stdin
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await stdin.send_all(frame.encode())
        if is_last:
            await stdin.aclose()


@dataclass(frozen=True)
class Loopback:
    """A listener, and the words before a command that put it where there is nothing else."""

    listener: socket.socket
    enter: tuple[str, ...]


def write_entrance(program: str, loopback: Loopback, directory: Path) -> None:
    """A program of the same name, in `directory`, that runs the real one where only `lo` is."""
    command = shlex.join([*loopback.enter, program])
    entrance = directory / Path(program).name
    entrance.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    entrance.chmod(0o755)


@contextmanager
def open_loopback() -> Iterator[Loopback]:
    """In a network namespace that has only `lo`, where the system lets us make one."""
    with ThreadPoolExecutor(1) as thread:  # A namespace belongs to a thread; this one ends here.
        namespace, listener = thread.submit(_listen_alone).result()
    with listener:
        if namespace is None:
            yield Loopback(listener, ())
            return
        try:
            path = f"/proc/{os.getpid()}/fd/{namespace}"
            yield Loopback(listener, ("nsenter", f"--net={path}", "--"))
        finally:
            os.close(namespace)


def _listen_alone() -> tuple[int | None, socket.socket]:
    libc = ctypes.CDLL(None)
    if not shutil.which("nsenter") or libc.unshare(CLONE_NEWNET):
        return None, open_listener()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        lo_up = struct.pack("16sh14x", b"lo", IFF_UP)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, lo_up)
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY), open_listener()


def codex_settings(model: str) -> tuple[str, ...]:
    """What makes Codex ask the model at this address, and no more than once or twice."""
    provider = {
        "name": "stub",
        "base_url": f"{model}/v1",
        "wire_api": "responses",
        "env_key": "STUB_KEY",
        "request_max_retries": 0,
        "stream_max_retries": 1,
    }
    settings = {f"model_providers.stub.{name}": value for name, value in provider.items()}
    chosen = {"model_provider": "stub", **settings}
    return tuple(word for name, value in chosen.items() for word in ("-c", f"{name}={value}"))
