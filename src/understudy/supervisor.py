"""Run services forever: restart what crashes, give up loudly when it keeps crashing.

A supervision tree is a function that opens a nursery and starts its children in order:

    async def serve(config: Config, tree: Branch) -> None:
        async with open_children(stop_s=10) as children:
            await children.start(supervise, tree.child("listener"), listen, POLICY)
            await children.start(supervise, tree.child("http"), serve_http, POLICY)
            await trio.sleep_forever()

    sys.exit(run_tree(partial(serve, config, Branch("server"))))
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol, final

import trio

from understudy.core.restarts import CannotStart, ChildEnded, RestartLog, RestartPolicy
from understudy.core.tree import Branch, Kind

logger = logging.getLogger(__name__)

EXIT_CANNOT_START: Final = 1
EXIT_CRASHED: Final = 70  # EX_SOFTWARE in sysexits.h
EXIT_INTERRUPTED: Final = 130  # as shells report SIGINT


class RestartsExhausted(Exception):
    """A service crashed too often; the failure now belongs to its parent."""


class Service(Protocol):
    def __call__(self, *, task_status: trio.TaskStatus[None]) -> Awaitable[None]: ...


async def supervise(
    branch: Branch,
    service: Service,
    policy: RestartPolicy,
    *,
    kind: Kind = Kind.SERVICE,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run until the service returns. A crash before its first `started()` is the starter's."""
    crashes = RestartLog(policy)
    started = _Started(branch, task_status)
    with branch.grown(kind):
        while (crash := await _crash_of(branch, service, started)) is not None:
            if not started.once:
                raise crash  # It never ran: a broken setup, not a crash to ride out.
            if not crashes.admits(trio.current_time()):
                often = f"more than {policy.restarts_max} times within {policy.period_s:g} s"
                raise RestartsExhausted(f"{branch} crashed {often}") from crash
            _log_crash(branch, crash, policy.delay_s)
            await trio.sleep(policy.delay_s)


def _log_crash(branch: Branch, crash: Exception, delay_s: float) -> None:
    if isinstance(crash, ChildEnded):
        logger.error("%s: %s; again in %s s", branch, crash, delay_s)
    else:
        logger.error("%s crashed; again in %s s", branch, delay_s, exc_info=crash)


@final
class _Started:
    """Forward the first incarnation's `started()`; the parent hears of no other."""

    def __init__(self, branch: Branch, task_status: trio.TaskStatus[None]) -> None:
        self._branch = branch
        self._task_status = task_status
        self.once = False

    def started(self, value: None = None) -> None:
        self._branch.running()
        if not self.once:
            self.once = True
            self._task_status.started()


async def _crash_of(branch: Branch, service: Service, started: _Started) -> Exception | None:
    """Run one incarnation: the exception it ended with, or None after a normal return."""
    branch.starting()
    try:
        await service(task_status=started)
    except Exception as error:  # noqa: BLE001  # Here crashes end; the caller logs them.
        crash = sole(error)
        branch.crashed(crash, trio.current_time())
        return crash
    except BaseExceptionGroup as group:  # It crashed at the moment it was cancelled.
        crashes, stop = group.split(Exception)
        if stop is None or crashes is None:
            raise
        logger.exception("%s crashed while it stopped", branch, exc_info=crashes)
        raise stop from None
    return None


def sole(error: Exception) -> Exception:
    """The error in a nursery's group of one."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


@asynccontextmanager
async def open_children(*, stop_s: float) -> AsyncIterator[Children]:
    """A nursery whose children are stopped one after the other, the last started first.

    They are stopped when the block ends: by itself, cancelled, or because a child crashed. A
    child's own crash while it stops is logged and holds nothing up. trio cannot kill a task: one
    that ignores its cancellation is named in the log, the others are stopped, the block waits.
    """
    async with trio.open_nursery() as nursery:
        children = Children(nursery, stop_s)
        try:
            yield children
        finally:
            await children.stop()


@dataclass(eq=False)
class _Child:
    name: str
    finish: Callable[[], None] | None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)


@final
class Children:
    def __init__(self, nursery: trio.Nursery, stop_s: float) -> None:
        self._nursery = nursery
        self._stop_s = stop_s
        self._running: list[_Child] = []
        self._stopping = False

    async def start(
        self,
        async_fn: Callable[..., Awaitable[object]],
        branch: Branch,
        *args: object,
        finish: Callable[[], None] | None = None,
    ) -> None:
        """Start a child, as `trio.Nursery.start` does.

        In its turn a child is cancelled and has `stop_s` for its last words: a `finally` under
        a shield with a deadline. With `finish` it is first asked to return, and has `stop_s`.
        """
        child = _Child(str(branch), finish)
        await self._nursery.start(self._run, child, async_fn, branch, *args)
        child.scope.shield = True  # From here on it stops in its turn, whoever is cancelled.

    async def _run(
        self,
        child: _Child,
        async_fn: Callable[..., Awaitable[object]],
        *args: object,
        task_status: trio.TaskStatus[None],
    ) -> None:
        self._running.append(child)
        try:
            with child.scope:
                await async_fn(*args, task_status=task_status)
        except Exception:
            if not self._stopping:
                raise
            logger.exception("%s crashed while it stopped", child.name)
        finally:
            self._running.remove(child)
            child.ended.set()

    async def stop(self) -> None:
        self._stopping = True
        with trio.CancelScope(shield=True):
            try:
                for child in reversed(self._running.copy()):
                    await self._stop(child)
            finally:
                for child in self._running:  # After a second Ctrl-C nobody has turns any more.
                    child.scope.cancel()

    async def _stop(self, child: _Child) -> None:
        if child.finish is not None:
            child.finish()
            with trio.move_on_after(self._stop_s):
                await child.ended.wait()
        child.scope.cancel()
        with trio.move_on_after(self._stop_s):
            await child.ended.wait()
            return
        logger.error("%s ignores its cancellation; the others stop without it", child.name)


def run_tree(main: Callable[[], Awaitable[None]]) -> int:
    """Run a process's tree to its end, or until SIGTERM stops it; returns the exit code."""
    try:
        trio.run(_until_sigterm, main)
    except (KeyboardInterrupt, BaseExceptionGroup) as error:
        return exit_code(error)
    return 0


async def _until_sigterm(main: Callable[[], Awaitable[None]]) -> None:
    async def cancel_at(signals: AsyncIterator[int]) -> None:
        async for _ in signals:
            scope.cancel()

    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_at, signals)
            with trio.CancelScope() as scope:
                await main()
            nursery.cancel_scope.cancel()


def exit_code(error: BaseException) -> int:
    """Say what ended the process: 130 after Ctrl-C, 1 when it cannot start, 70 after crashes."""
    ends = list(_ends(error))
    crashes = [end for end in ends if not isinstance(end, CannotStart | KeyboardInterrupt)]
    for crash in crashes:
        chain = list(_chain(crash))
        story = "\n  because ".join(f"{type(link).__name__}: {link}" for link in chain)
        logger.critical("gave up: %s", story, exc_info=chain[-1])
    for end in ends:
        if isinstance(end, CannotStart):
            sys.stderr.write(f"{end}\n")
    if any(isinstance(end, KeyboardInterrupt) for end in ends):
        return EXIT_INTERRUPTED
    return EXIT_CRASHED if crashes else EXIT_CANNOT_START


def _ends(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _ends(part)
    else:
        yield error


def _chain(crash: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = crash
    while link is not None:
        yield link
        link = link.__cause__
