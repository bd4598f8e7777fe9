"""Processes of a simulated world are stopped at any await, for a while or for good."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar

import trio

from understudy.testing.clock import run_virtual
from understudy.testing.virtual_process import (
    VirtualProcess,
    bury,
    current_process,
    suspendable,
    unwind_all,
)

Play = Callable[[trio.Nursery], Awaitable[None]]


def perform(play: Play, seed: int = 1) -> None:
    async def world() -> None:
        with suspendable():
            async with trio.open_nursery() as nursery:
                await play(nursery)
                unwind_all()

    run_virtual(world, seed=seed)


class Ticker:
    def __init__(self) -> None:
        self.ticks: list[float] = []
        self.is_unwound = False

    async def live(self) -> None:
        """In a task of its own, as most of a process is."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tick)

    async def _tick(self) -> None:
        try:
            while True:
                await trio.sleep(1)
                self.ticks.append(trio.current_time())
        finally:
            self.is_unwound = True


def test_a_killed_process_does_nothing_any_more_not_even_its_finally_blocks() -> None:
    async def play(nursery: trio.Nursery) -> None:
        ticker, process = Ticker(), VirtualProcess("victim")
        process.start_soon(nursery, ticker.live)
        await trio.sleep(2.5)
        process.kill()
        await trio.sleep(10)
        assert ticker.ticks == [1, 2]
        assert not ticker.is_unwound
        assert not process.is_alive

    perform(play)


def test_at_the_end_of_the_world_the_dead_are_unwound() -> None:
    ticker = Ticker()

    async def play(nursery: trio.Nursery) -> None:
        process = VirtualProcess("victim")
        process.start_soon(nursery, ticker.live)
        await trio.sleep(1.5)
        process.kill()
        await trio.sleep(1)

    perform(play)
    assert ticker.is_unwound


def test_a_process_that_stands_still_goes_on_where_it_stood() -> None:
    async def play(nursery: trio.Nursery) -> None:
        ticker, process = Ticker(), VirtualProcess("laptop")
        process.start_soon(nursery, ticker.live)
        await trio.sleep(1.5)
        process.suspend()
        await trio.sleep(7)
        assert ticker.ticks == [1]
        process.resume()
        await trio.sleep(1.2)
        assert ticker.ticks == [1, 8.5, 9.5]

    perform(play)


def test_a_process_dies_at_any_of_its_awaits() -> None:
    async def play(nursery: trio.Nursery) -> None:
        reached = set[int]()
        for steps in range(1, 6):
            ticker, process = Ticker(), VirtualProcess("victim")
            process.start_soon(nursery, ticker.live)
            process.kill_after(steps)
            await process.died.wait()
            reached.add(len(ticker.ticks))
        assert reached == {0, 1, 2}

    perform(play)


def test_what_the_kernel_does_for_the_dead_is_done_before_anybody_runs_on() -> None:
    async def play(nursery: trio.Nursery) -> None:
        done: list[str] = []
        process = VirtualProcess("victim")
        process.at_death += [lambda: done.append("first opened"), lambda: done.append("last")]
        process.start_soon(nursery, trio.sleep_forever)
        process.kill()
        assert done == []
        bury()
        assert done == ["last", "first opened"]

    perform(play)


def test_no_task_of_a_dead_process_runs_on_in_the_batch_it_died_in() -> None:
    """For all orders in which the seed may have the two go."""

    async def play(nursery: trio.Nursery) -> None:
        steps: list[str] = []
        process = VirtualProcess("victim")

        async def two_steps(name: str) -> None:
            steps.append(f"{name} 1")
            await trio.lowlevel.checkpoint()
            steps.append(f"{name} 2")

        for name in "ab":
            process.start_soon(nursery, two_steps, name)
        process.kill_after(4)
        await process.died.wait()
        assert sorted(steps) == ["a 1", "b 1"]

    for seed in range(8):
        perform(play, seed)


def test_what_a_process_starts_belongs_to_it() -> None:
    mark = ContextVar("mark", default="outside")

    async def play(nursery: trio.Nursery) -> None:
        seen: list[tuple[object, str]] = []

        async def child() -> None:
            seen.append((current_process(), mark.get()))

        async def main() -> None:
            mark.set("inside")
            async with trio.open_nursery() as children:
                children.start_soon(child)

        process = VirtualProcess("parent")
        process.start_soon(nursery, main)
        await trio.sleep(1)
        assert seen == [(process, "inside")]
        assert current_process() is None

    perform(play)
