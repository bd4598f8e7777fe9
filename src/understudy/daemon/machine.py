"""What a daemon asks of the machine it runs on, beside its files and its network.

A process has one machine, so it stands in a context variable. A simulated world has several in one
process: each daemon's tasks inherit their own (`understudy.testing.world`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from pathlib import Path
from random import Random, SystemRandom
from typing import Final, Protocol, TypeVar, final
from uuid import UUID

import trio

from understudy.daemon import boottime, keeper, processes, rundir
from understudy.daemon.probe import Found, find_clis
from understudy.daemon.processes import Process

START_GRACE_S: Final = 10.0

R = TypeVar("R")


class Machine(Protocol):
    dice: Random

    def boot_s(self) -> float:
        """Seconds since it was started, asleep or not: the same for all its processes."""
        ...

    def slept_s(self) -> float:
        """For how long it slept since this process began."""
        ...

    def monotonic_s(self) -> float: ...

    def epoch_s(self) -> float:
        """The wall clock, which may be set."""
        ...

    async def find_clis(self, path: str) -> list[Found]: ...

    async def start_keeper(self, run_dir: Path, descriptors: Sequence[int]) -> str:
        """What the keeper has to say before it falls silent. It inherits the descriptors."""
        ...

    async def open_tcp(self, host: str, port: int) -> trio.abc.Stream:
        """Raises OSError."""
        ...

    async def connect(self, address: Path) -> trio.abc.Stream:
        """To a keeper's socket. Raises OSError where nobody listens."""
        ...

    def marked(self, run: str) -> list[Process]: ...

    def name_of(self, process: Process) -> str: ...

    def send(self, receivers: Iterable[Process], number: int) -> None: ...

    async def aside(self, function: Callable[[], R]) -> R:
        """Call what takes long without keeping the others waiting."""
        ...


@final
class ThisMachine:
    dice: Random = SystemRandom()
    boot_s = staticmethod(boottime.boot_s)
    slept_s = staticmethod(boottime.slept_s)
    monotonic_s = staticmethod(time.monotonic)
    find_clis = staticmethod(find_clis)
    marked = staticmethod(processes.marked)
    name_of = staticmethod(processes.name)
    send = staticmethod(processes.send)

    def epoch_s(self) -> float:
        return time.time()  # noqa: TID251  It is what was asked for.

    async def start_keeper(self, run_dir: Path, descriptors: Sequence[int]) -> str:
        with (run_dir / rundir.LOG).open("ab") as log:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-I", "-S", keeper.__file__, run_dir],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_keeper_environment(),
                pass_fds=descriptors,
                start_new_session=True,
            )
        assert process.stdout is not None
        try:
            async with process.stdout as stdout:
                return b"".join([data async for data in stdout]).decode()
        finally:
            # What we started has forked the keeper and ended: reap it, even when cancelled.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + START_GRACE_S):
                await process.wait()

    async def open_tcp(self, host: str, port: int) -> trio.abc.Stream:
        return await trio.open_tcp_stream(host, port)

    async def connect(self, address: Path) -> trio.abc.Stream:
        return await trio.open_unix_socket(address)

    async def aside(self, function: Callable[[], R]) -> R:
        return await trio.to_thread.run_sync(function, abandon_on_cancel=True)


_MACHINE: ContextVar[Machine] = ContextVar("machine")
_THIS: Final = ThisMachine()


def here() -> Machine:
    return _MACHINE.get(_THIS)


def stand_on(machine: Machine) -> None:
    """From now on this task and what it starts run there."""
    _MACHINE.set(machine)


def new_id() -> UUID:
    return UUID(bytes=here().dice.randbytes(16), version=4)


def _keeper_environment() -> dict[str, str]:
    """The daemon's, without its secrets; with the mark, should it run inside a run itself."""
    return {
        name: value
        for name, value in os.environ.items()
        if name == processes.MARKER or not name.startswith("UNDERSTUDY_")
    }
