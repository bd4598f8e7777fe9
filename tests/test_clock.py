"""The virtual clock: time jumps, real I/O holds it, deadlock is a finding, seeds replay."""

from __future__ import annotations

import time

import pytest
import trio
from trio._core import _run

from understudy.testing.clock import NobodyCanRun, VirtualClock, run_virtual, seeded_schedule


def test_a_day_passes_at_once_and_exactly() -> None:
    async def main() -> float:
        await trio.sleep(86_400)
        return trio.current_time()

    assert run_virtual(main, seed=0) == 86_400


def test_deadlines_fire_in_their_order() -> None:
    async def main() -> list[int]:
        woken: list[int] = []

        async def sleeper(duration_s: int) -> None:
            await trio.sleep(duration_s)
            woken.append(duration_s)

        async with trio.open_nursery() as nursery:
            for duration_s in (30, 10, 20):
                nursery.start_soon(sleeper, duration_s)
        return woken

    assert run_virtual(main, seed=0) == [10, 20, 30]


def virtual_clock() -> VirtualClock:
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, VirtualClock)
    return clock


def test_time_stands_still_while_an_answer_is_on_its_way() -> None:
    async def main() -> float:
        with trio.fail_after(3600), virtual_clock().waiting():
            await trio.to_thread.run_sync(time.sleep, 0.01)
        return trio.current_time()

    assert run_virtual(main, seed=0) == 0


def test_uncounted_io_loses_against_the_jump() -> None:
    """Why `waiting` exists: an hour's deadline fires during a short real wait."""

    async def main() -> None:
        with trio.fail_after(3600):
            await trio.to_thread.run_sync(time.sleep, 0.01, abandon_on_cancel=True)

    with pytest.raises(trio.TooSlowError):
        run_virtual(main, seed=0)


def test_waiting_ends_with_its_block_however_that_ends() -> None:
    async def main() -> float:
        with pytest.raises(ValueError, match="refused"), virtual_clock().waiting():
            raise ValueError("refused")
        await trio.sleep(5)
        return trio.current_time()

    assert run_virtual(main, seed=0) == 5


async def wait_for_nothing() -> None:
    await trio.Event().wait()


def test_nobody_can_run_is_raised_and_says_who_waits_where() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_nothing, name="the forgotten one")
            await trio.sleep(10)

    with pytest.raises(
        NobodyCanRun, match=r"the forgotten one: test_clock.py:\d+ wait_for_nothing"
    ):
        run_virtual(main, seed=0)


def test_nobody_can_run_wins_over_what_goes_wrong_in_its_wake() -> None:
    async def main() -> None:
        try:
            await wait_for_nothing()
        finally:
            raise ValueError("never told")

    with pytest.raises(NobodyCanRun):
        run_virtual(main, seed=0)


def test_last_words_may_still_sleep_when_nobody_can_run() -> None:
    said: list[float] = []

    async def main() -> None:
        try:
            await wait_for_nothing()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(3)
                said.append(trio.current_time())

    with pytest.raises(NobodyCanRun):
        run_virtual(main, seed=0)
    assert said == [3]


def test_the_clock_serves_a_plain_run_too() -> None:
    clock = VirtualClock(start=100)
    trio.run(trio.sleep, 5, clock=clock)
    assert clock.current_time() == 105


def test_results_and_errors_come_out_as_they_are() -> None:
    async def main() -> str:
        await trio.lowlevel.checkpoint()
        return "result"

    async def fail() -> None:
        raise LookupError("as it is")

    assert run_virtual(main, seed=0) == "result"
    with pytest.raises(LookupError, match="as it is"):
        run_virtual(fail, seed=0)


def test_what_was_posted_to_the_loop_goes_before_the_jump() -> None:
    async def main() -> float:
        posted_at: list[float] = []
        trio.lowlevel.current_trio_token().run_sync_soon(
            lambda: posted_at.append(trio.current_time())
        )
        await trio.sleep(60)
        return posted_at[0]

    assert run_virtual(main, seed=0) == 0


async def race() -> str:
    order: list[str] = []

    async def runner(name: str) -> None:
        for _ in range(3):
            await trio.sleep(1)
            order.append(name)

    async with trio.open_nursery() as nursery:
        for name in "abcdefgh":
            nursery.start_soon(runner, name)
    return "".join(order)


def test_a_seed_replays_its_order_and_another_seed_has_another() -> None:
    orders = [run_virtual(race, seed=seed) for seed in range(8)]
    assert [run_virtual(race, seed=seed) for seed in range(8)] == orders
    assert len(set(orders)) == 8


def test_the_two_private_names_of_trio_are_still_there() -> None:
    assert isinstance(_run._ALLOW_DETERMINISTIC_SCHEDULING, bool)
    state = _run._r.getstate()
    with seeded_schedule(7):
        assert _run._ALLOW_DETERMINISTIC_SCHEDULING
        assert _run._r.getstate() != state
    assert _run._r.getstate() == state
