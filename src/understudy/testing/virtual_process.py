"""Processes of a simulated world: their tasks can be stopped, for a while or for good.

Nothing is unwound in a process that is killed: its tasks just never run again, as those of a real
one. What the kernel does for a dead process is done by `at_death`. Every await of a task is a place
to die at: `kill_after` counts them.

    with suspendable():
        process = VirtualProcess("machine-0/daemon")
        process.start_soon(nursery, main)
        process.suspend(); process.resume(); process.kill()
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import final

import trio
from trio._core._run import GLOBAL_RUN_CONTEXT
from trio.lowlevel import Task

CURRENT: ContextVar[VirtualProcess | None] = ContextVar("process", default=None)
Main = Callable[..., Awaitable[object]]


@final
class VirtualProcess:
    """`name` is for the log."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.steps = 0
        """How often one of its tasks was about to run."""
        self.at_death: list[Callable[[], object]] = []
        """What the kernel does: closes what it had open. Called once, the newest first."""
        self.died = trio.Event()
        self._is_suspended = False
        self._is_unwinding = False
        self._doom = math.inf
        self._stopped: list[Task] = []
        self._scopes: list[trio.CancelScope] = []

    @property
    def is_alive(self) -> bool:
        return not self.died.is_set()

    def start_soon(self, nursery: trio.Nursery, main: Main, *arguments: object) -> None:
        """Begin a task of it; what that task starts belongs to it, too."""
        _queue().processes[self] = None
        scope = trio.CancelScope()
        self._scopes.append(scope)
        context = copy_context()
        context.run(CURRENT.set, self)
        context.run(nursery.start_soon, self._run, main, arguments, scope)

    async def _run(
        self, main: Main, arguments: tuple[object, ...], scope: trio.CancelScope
    ) -> None:
        with scope:
            try:
                await main(*arguments)
            except BaseException:
                if not self._is_unwinding:
                    raise
                await trio.lowlevel.checkpoint_if_cancelled()

    def suspend(self) -> None:
        """From the next batch of runnable tasks on; it is the same with `kill`."""
        self._is_suspended = True

    def resume(self) -> None:
        self._is_suspended = False
        if self.is_alive:
            self._let_go()

    def kill_after(self, steps: int) -> None:
        """Die at the await that comes so many steps from now."""
        self._doom = self.steps + steps

    def kill(self) -> None:
        if self.is_alive:
            _queue().dying[self] = None

    def die(self) -> None:
        """For the queue, between two batches, and for who wants it unwound."""
        if self.is_alive:
            self.died.set()
            while self.at_death:
                self.at_death.pop()()

    def unwind(self) -> None:
        """At the end of the world: let what is left of it go, through its own `finally` blocks."""
        self.die()
        self._is_unwinding = True
        for scope in self._scopes:
            scope.cancel()
        self._let_go()

    def is_doomed(self) -> bool:
        """Asked each time a task of it is about to run."""
        self.steps += 1
        return self.steps >= self._doom and self.is_alive and not self._is_suspended

    def holds_back(self, task: Task) -> bool:
        if self._is_unwinding or (self.is_alive and not self._is_suspended):
            return False
        self._stopped.append(task)
        return True

    def _let_go(self) -> None:
        stopped, self._stopped = self._stopped, []
        for task in stopped:
            _queue().append(task)


@final
class _Queue(deque[Task]):
    """Of runnable tasks. trio takes all of them as a batch and lets each run once, in the order of
    the seed; between two batches processes die, and those of a stopped one do not get in.
    """

    def __init__(self, tasks: Iterable[Task] = ()) -> None:
        super().__init__(tasks)
        self.dying: dict[VirtualProcess, None] = {}
        self.processes: dict[VirtualProcess, None] = {}
        """All that ever ran, in the order in which they began."""

    def __iter__(self) -> Iterator[Task]:
        tasks = [(task, task.context.get(CURRENT)) for task in super().__iter__()]
        super().clear()
        for _, process in tasks:
            if process is not None and process.is_doomed():
                self.dying[process] = None
        if self.dying:
            self.bury()
        return iter([task for task, its in tasks if its is None or not its.holds_back(task)])

    def bury(self) -> None:
        while self.dying:
            self.dying.popitem()[0].die()

    def clear(self) -> None:
        """What was handed out is gone already."""


def current_process() -> VirtualProcess | None:
    return CURRENT.get()


@contextmanager
def suspendable() -> Iterator[None]:
    """Within it, in a running trio, processes can be stopped. The queue is private to trio, which
    is pinned; `tests/testing/test_virtual_process.py` guards its name."""
    runner = GLOBAL_RUN_CONTEXT.runner
    runner.runq = _Queue(runner.runq)
    yield


def bury() -> None:
    """Who was killed is dead from here on, not just from the next batch."""
    _queue().bury()


def unwind_all() -> None:
    """At the end of the world: whoever is stopped goes, too."""
    for process in [*_queue().processes]:
        process.unwind()


def _queue() -> _Queue:
    queue = GLOBAL_RUN_CONTEXT.runner.runq
    assert isinstance(queue, _Queue)
    return queue
