"""The processes of a simulated machine: their table, their clock, and agents that play a script."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from signal import SIGKILL
from typing import Final, NoReturn, TypeAlias, final

import trio

from understudy.daemon.processes import Process
from understudy.daemon.rundir import ERR, OUT, Spec
from understudy.testing.claims_of_agents import Said
from understudy.testing.evidence import Run
from understudy.testing.simulated_stdin import AgentsEnd
from understudy.testing.virtual_process import VirtualProcess

PID_FIRST: Final = 10_000_000
"""Beyond what a kernel gives out: a signal that strays to the real machine finds nobody."""
TICKS_PER_S: Final = 100
PRIOR_SESSION: Final = "UNDERSTUDY_PRIOR_SESSION_ID"
CLOSE_S: Final = 1e-6


@final
class AwakeClock:
    """Monotonic seconds: it stands still while its machine sleeps."""

    def __init__(self) -> None:
        self._slept_s = 0.0
        self._asleep_since: float | None = None

    def now(self) -> float:
        at = trio.current_time() if self._asleep_since is None else self._asleep_since
        return at - self._slept_s

    def has_come(self, due: float) -> bool:
        return due - self.now() < CLOSE_S

    def deadline(self, due: float) -> float:
        """When that is on trio's clock, if the machine stays awake."""
        return trio.current_time() + max(0.0, due - self.now())

    def stop(self) -> None:
        if self._asleep_since is None:
            self._asleep_since = trio.current_time()

    def go_on(self) -> None:
        if self._asleep_since is not None:
            self._slept_s += trio.current_time() - self._asleep_since
            self._asleep_since = None


@dataclass(frozen=True)
class Entry:
    name: str
    run: str | None
    """Whose mark its environment bears; a keeper bears none."""
    hear: Callable[[int], object]
    """Be sent a signal."""


@final
class ProcessTable:
    def __init__(self, boot_s: Callable[[], float]) -> None:
        self._boot_s = boot_s
        self._pids = count(PID_FIRST)
        self._entries: dict[Process, Entry] = {}
        self._marked: dict[str, list[Process]] = {}

    def enter(self, entry: Entry) -> Process:
        process = Process(next(self._pids), int(self._boot_s() * TICKS_PER_S))
        self._entries[process] = entry
        if entry.run is not None:
            self._marked.setdefault(entry.run, []).append(process)
        return process

    def leave(self, process: Process) -> None:
        entry = self._entries.pop(process, None)
        if entry is not None and entry.run is not None:
            self._marked[entry.run].remove(process)
            if not self._marked[entry.run]:
                del self._marked[entry.run]

    def clear(self) -> None:
        self._entries.clear()
        self._marked.clear()

    def living(self) -> dict[Process, Entry]:
        return dict(self._entries)

    def marked(self, run: str) -> list[Process]:
        return [*self._marked.get(run, ())]

    def name_of(self, process: Process) -> str:
        entry = self._entries.get(process)
        return entry.name if entry else "?"

    def send(self, processes: Iterable[Process], number: int) -> None:
        for process in processes:
            if entry := self._entries.get(process):
                entry.hear(number)


@final
class SimulatedTree:
    """All processes of a run: each bears its mark."""

    def __init__(self, table: ProcessTable, run: str) -> None:
        self._table = table
        self._run = run
        self.swept: list[str] = []

    def alive(self) -> list[Process]:
        return self._table.marked(self._run)

    def names(self) -> list[str]:
        return [self._table.name_of(process) for process in self.alive()]

    def signal(self, number: int) -> None:
        self._table.send(self.alive(), number)

    def note_swept(self) -> None:
        self.swept = list(dict.fromkeys(self.swept + self.names()))


Play: TypeAlias = Callable[["Agent"], Awaitable[int]]


@dataclass(frozen=True)
class Script:
    """`play` returns the exit status; a negative one is the signal that ends it."""

    kind: str
    play: Play
    cannot_start: str | None = None
    """Its program is missing: the error that says so."""


@dataclass(frozen=True)
class Home:
    """What keepers need of their machine."""

    nursery: trio.Nursery
    clock: AwakeClock
    table: ProcessTable
    boot_s: Callable[[], float]
    epoch_s: Callable[[], float]
    boot_id: str
    fate: Callable[[Path, Spec], tuple[Run, Script]]
    """What becomes of the agent of that directory."""
    began: Callable[[Run], None]
    ended: Callable[[], object]
    """An agent's end has been written down."""


@dataclass(frozen=True)
class Surroundings:
    """What an agent finds: its keeper's directory, and the machine."""

    run_dir: Path
    spec: Spec
    clock: AwakeClock
    table: ProcessTable
    epoch_s: Callable[[], float]


@final
class Agent:
    """Plays a script. Nothing of it happens any more once it is dead, whoever holds it.

    `grew` is told what it writes to stdout and how many bytes to stderr; `ended` and `orphaned`
    are the keeper's SIGCHLD.
    """

    def __init__(
        self,
        run: Run,
        around: Surroundings,
        stdin: AgentsEnd,
        *,
        grew: Callable[[bytes, int], object],
        child_ended: Callable[[], object],
    ) -> None:
        self.run = run
        self.spec = around.spec
        self.stdin = stdin
        self.traps: dict[int, Callable[[], object]] = {}
        """What it does at a signal instead of dying of it. Nothing traps SIGKILL."""
        self.status: int | None = None
        self.process = VirtualProcess(f"{run.machine}/agent of {run.task.id}")
        self.process.at_death.append(self._leave)
        self._around = around
        self._grew, self._child_ended = grew, child_ended
        self._said = Said(run)
        self._unwritten = bytearray()
        self._out = os.open(around.run_dir / OUT, os.O_WRONLY | os.O_APPEND)
        self.identity = around.table.enter(Entry("python3", around.spec.run, self.hear))

    @property
    def prior_session(self) -> str | None:
        return self.run.offered

    async def live(self, play: Play) -> None:
        await self._stay_dead()
        try:
            status = await play(self)
            self.flush()
        except OSError:  # As an agent ends that finds its disk full.
            status = 1
        if self.is_alive:
            self.end(status)

    @property
    def is_alive(self) -> bool:
        return self.status is None

    # What a script does

    def say(self, kind: str, **fields: object) -> None:
        """A line of the `scripted` provider's protocol. It is written when it next waits: nobody
        could have seen it before."""
        self._unwritten += json.dumps({"type": kind, **fields}).encode() + b"\n"

    def raw(self, data: bytes) -> None:
        """To stdout, as it is."""
        self._unwritten += data
        self.flush()

    def flush(self) -> None:
        data, self._unwritten = bytes(self._unwritten), bytearray()
        if data and self.is_alive:
            os.write(self._out, data)
            self._touch(self._out)
            told = self.run.messages
            self._said.hear(data)
            if self.run.messages > told:
                self.run.spoke_at.append(trio.current_time())
            self._grew(data, 0)

    def complain(self, data: bytes) -> None:
        """To stderr."""
        if self.status is None:
            with (self._around.run_dir / ERR).open("ab") as err:
                err.write(data)
            self._grew(b"", len(data))

    def write(self, name: str, text: str) -> None:
        """A file in its directory."""
        (Path(self.spec.cwd) / name).write_text(text)

    def read(self, name: str) -> str:
        return (Path(self.spec.cwd) / name).read_text()

    def files(self, pattern: str) -> list[str]:
        return sorted(path.name for path in Path(self.spec.cwd).glob(pattern))

    async def sleep(self, seconds: float) -> None:
        self.flush()
        clock = self._around.clock
        due = clock.now() + seconds
        while True:
            await trio.sleep_until(clock.deadline(due))
            await self._stay_dead()
            if clock.has_come(due):
                return

    async def read_line(self) -> bytes:
        """Of stdin; empty at its end."""
        self.flush()
        line = await self.stdin.read_line()
        await self._stay_dead()
        return line

    async def hang(self) -> NoReturn:
        self.flush()
        await trio.sleep_forever()

    def ignore(self, *numbers: int) -> None:
        self.traps |= dict.fromkeys(numbers, lambda: None)

    def fork(self, name: str = "sleep", ignores: Iterable[int] = ()) -> Process:
        """A child that does nothing and never ends by itself; it lives on when the agent is gone,
        and its keeper, wherever it hangs in the tree."""
        assert self.status is None
        table, deaf_to = self._around.table, {*ignores} - {SIGKILL}

        def hear(number: int) -> None:
            if number not in deaf_to:
                table.leave(child)
                self._child_ended()

        child = table.enter(Entry(name, self.spec.run, hear))
        return child

    # What is done to it

    def hear(self, number: int) -> None:
        if number != SIGKILL and number in self.traps:
            self.traps[number]()
        else:
            self.end(-number)

    def end(self, status: int) -> None:
        if self.status is None:
            self.status = status
            self.process.unwind()

    def stand_still(self) -> None:
        self.process.suspend()
        self.run.stands_still(trio.current_time())

    def go_on(self) -> None:
        self.run.goes_on(trio.current_time())
        self.process.resume()

    def _leave(self) -> None:
        if self.status is None:
            self.status = -SIGKILL
            self.process.unwind()
        self.run.stands_still(trio.current_time())
        os.close(self._out)
        self._around.table.leave(self.identity)
        self._child_ended()

    def _touch(self, file: int) -> None:
        """A file's time is that of the wall clock, which is the world's."""
        at = self._around.epoch_s()
        os.utime(file, (at, at))

    async def _stay_dead(self) -> None:
        """It may have been killed while it was about to run."""
        if not self.is_alive:
            await trio.sleep_forever()
