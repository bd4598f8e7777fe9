"""Time that jumps: run hours of waiting in milliseconds, in an order that a seed replays.

`run_virtual(main, seed=7)` is `trio.run` under a `VirtualClock`. Nothing sleeps for real: as soon
as nobody can run, the clock jumps to the next deadline. If there is none, nobody can ever run
again; that is a finding, and `NobodyCanRun` tells where everybody waits.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar, final

import trio
from trio._core import _run
from trio._core._run import GLOBAL_RUN_CONTEXT, _r
from trio.lowlevel import Task

R = TypeVar("R")

TRIO_PATH: Final = str(Path(trio.__file__).parent)
IO_POLL_S: Final = 1.0  # Real seconds; whatever ends the wait ends it sooner.


class NobodyCanRun(Exception):
    """Every task waits for another, without a deadline. The message says who waits where."""


@final
class VirtualClock(trio.abc.Clock):
    """Stands still while anybody runs, jumps to the next deadline when nobody does.

    Real I/O must be counted, else the clock jumps while the answer is on its way: wrap it in
    `with clock.waiting():`, and threads too. `trio.testing.wait_all_tasks_blocked` does not work
    under this clock, which never lets the run loop idle; use events.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._waits = 0
        self._watched = trio.CancelScope()
        self.stuck: str | None = None
        """Who waits where, once nobody can run."""

    def start_clock(self) -> None: ...

    def current_time(self) -> float:
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Called by trio's run loop, and only when no task is runnable."""
        if GLOBAL_RUN_CONTEXT.runner.entry_queue.size() or deadline <= self._now:
            return 0.0
        if self._waits:
            return IO_POLL_S
        if deadline == math.inf:
            self._give_up()
        else:
            self._now = deadline
        return 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Hold time still: within the block something real is on its way."""
        self._waits += 1
        try:
            yield
        finally:
            self._waits -= 1

    async def watch(self, async_fn: Callable[[], Awaitable[R]]) -> R:
        """Cancelled once nobody can run; without it, the run loop ends with an internal error."""
        with self._watched:
            return await async_fn()
        raise NobodyCanRun(self.stuck)

    def _give_up(self) -> None:
        if self.stuck is not None:
            raise NobodyCanRun(self.stuck)  # Somebody waits on, under a shield.
        self.stuck = "\n".join(sorted(_waiting_tasks()))
        self._watched.cancel()


def run_virtual(async_fn: Callable[[], Awaitable[R]], *, seed: int) -> R:
    """`trio.run` in virtual time; the seed orders whatever happens at the same time.

    Raises `NobodyCanRun` as soon as that is so, whatever else went wrong in its wake. The clock
    is `trio.lowlevel.current_clock()`.
    """
    clock = VirtualClock()
    try:
        with seeded_schedule(seed):
            return trio.run(clock.watch, async_fn, clock=clock)
    finally:
        if clock.stuck is not None:
            raise NobodyCanRun(clock.stuck)


@contextmanager
def seeded_schedule(seed: int) -> Iterator[None]:
    """Let the seed order tasks that are runnable at once, instead of chance.

    The two names are private to trio, which is pinned; its own Hypothesis hook uses them.
    """
    scheduler = vars(_run)
    was, state = scheduler["_ALLOW_DETERMINISTIC_SCHEDULING"], _r.getstate()
    scheduler["_ALLOW_DETERMINISTIC_SCHEDULING"] = True
    _r.seed(seed)
    try:
        yield
    finally:
        scheduler["_ALLOW_DETERMINISTIC_SCHEDULING"] = was
        _r.setstate(state)


def reseed(seed: int) -> None:
    """From here on the order is that of the seed, whatever came before in this run."""
    _r.seed(seed)


def _waiting_tasks() -> Iterator[str]:
    """The task's name and the lines it waits at, outermost first, trio's own left out."""
    for task in _descendants(trio.lowlevel.current_root_task()):
        stack = [
            f"{Path(frame.f_code.co_filename).name}:{line} {frame.f_code.co_name}"
            for frame, line in task.iter_await_frames()
            if not frame.f_code.co_filename.startswith(TRIO_PATH)
        ]
        if stack:
            yield f"{task.name}: {' > '.join(stack)}"


def _descendants(task: Task | None) -> Iterator[Task]:
    for nursery in task.child_nurseries if task else ():
        for child in nursery.child_tasks:
            yield child
            yield from _descendants(child)
