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
from trio._core._run import GLOBAL_RUN_CONTEXT, _r
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
            self._doom = math.inf
            self.died.set()
            while self.at_death:
                self.at_death.pop()()

    def unwind(self) -> None:
        """At the end of the world: let what is left of it go, through its own `finally` blocks."""
        self.kill()
        self._is_unwinding = True
        for scope in self._scopes:
            scope.cancel()
        self._let_go()

    def holds_back(self, task: Task) -> bool:
        """Asked each time a task of it is about to run."""
        if self._is_unwinding:
            return False
        if self._is_suspended or not self.is_alive:
            self._stopped.append(task)
            return True
        self.steps += 1
        if self.steps < self._doom:
            return False
        self._stopped.append(task)
        self.kill()
        return True

    def _let_go(self) -> None:
        stopped, self._stopped = self._stopped, []
        for task in stopped:
            _queue().append(task)


@final
class _Queue(deque[Task]):
    """Of runnable tasks. trio takes a batch of them, in the seed's order, and lets each run once;
    here they are handed out one by one, so that who was stopped meanwhile does not run.
    """

    def __init__(self, tasks: Iterable[Task] = ()) -> None:
        super().__init__(tasks)
        self._batch: list[Task] = []
        self.processes: dict[VirtualProcess, None] = {}
        """All that ever ran, in the order in which they began."""

    def __iter__(self) -> Iterator[Task]:
        """The next to run, at most one."""
        if not self._batch:
            while deque.__len__(self):
                self._batch.append(self.popleft())
            self._batch.sort(key=_age)
            _r.shuffle(self._batch)
        while self._batch:
            task = self._batch.pop()
            process = task.context.get(CURRENT)
            if process is None or not process.holds_back(task):
                yield task
                return

    def __len__(self) -> int:
        return deque.__len__(self) + len(self._batch)

    def clear(self) -> None:
        """What was handed out is gone already."""


def _age(task: Task) -> int:
    age: int = task._counter  # noqa: SLF001  # As trio sorts them.
    return age


def current_process() -> VirtualProcess | None:
    return CURRENT.get()


@contextmanager
def suspendable() -> Iterator[None]:
    """Within it, in a running trio, processes can be stopped. The queue is private to trio, which
    is pinned; `tests/testing/test_virtual_process.py` guards its name."""
    runner = GLOBAL_RUN_CONTEXT.runner
    runner.runq = _Queue(runner.runq)
    yield


def unwind_all() -> None:
    """At the end of the world: whoever is stopped goes, too."""
    for process in [*_queue().processes]:
        process.unwind()


def _queue() -> _Queue:
    queue = GLOBAL_RUN_CONTEXT.runner.runq
    assert isinstance(queue, _Queue)
    return queue
