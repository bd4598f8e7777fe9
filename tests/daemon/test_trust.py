"""How long a machine that is not heard goes on with work that may be given away (R4.11)."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import uuid4

import msgspec
import pytest
import trio

from understudy.daemon.boottime import boot_s
from understudy.daemon.machine import ThisMachine
from understudy.daemon.trust import LOOK_S, MARGIN_S, Trust, now
from understudy.testing.clock import VirtualClock
from understudy.wire.daemon import ClaimedTask

OURS, OTHER = uuid4(), uuid4()


@pytest.fixture
def virtual_clock() -> VirtualClock:
    return VirtualClock()


def task(*, is_movable: bool) -> ClaimedTask:
    at = "2026-01-01T00:00:00Z"
    return msgspec.convert(
        {
            "id": uuid4(), "agent_id": OURS, "workspace_id": OURS, "provider": "command",
            "status": "running", "move": "start", "trigger": "assign", "priority": 0,
            "attempt": 1, "max_attempts": 2, "created_at": at, "claim_expires_at": at,
            "agent": {"id": OURS, "name": "Nia"}, "runtime_id": OURS, "is_movable": is_movable,
        },
        ClaimedTask,
    )  # fmt: skip


async def ends_at(trust: Trust) -> float:
    with trio.fail_after(10_000):
        await trust.wait_end(OURS)
    return trio.current_time()


async def test_a_promise_ends_before_the_server_gives_the_work_away(
    virtual_clock: VirtualClock,
) -> None:
    """R4.11: from the request, less what it takes to end an agent."""
    trust = Trust(until=1.0)
    trust.promise(0.0, {OURS: 90.0, OTHER: 45.0})
    assert await ends_at(trust) == 90.0 - MARGIN_S


async def test_each_promise_takes_the_place_of_the_last(
    virtual_clock: VirtualClock, nursery: trio.Nursery
) -> None:
    """R4.11: a later one prolongs, and a shorter one counts at once."""
    trust = Trust(until=0.0)
    trust.promise(0.0, {OURS: 90.0})
    ends: list[float] = []

    async def wait() -> None:
        ends.append(await ends_at(trust))

    nursery.start_soon(wait)
    for asked_at in (0.0, 15.0, 30.0):
        await trio.sleep_until(asked_at + 1.0)
        trust.promise(asked_at, {OURS: 3 * 3600.0})
    await trio.sleep_until(3000.0)
    assert ends == []
    trust.promise(2995.0, {OURS: 90.0})
    await trio.sleep_until(4000.0)
    assert ends == [2995.0 + 90.0 - MARGIN_S]


async def test_a_daemon_that_has_just_begun_has_a_window_of_its_own(
    virtual_clock: VirtualClock,
) -> None:
    """R4.11: it has found runs again, and nobody has promised it anything yet."""
    trust = Trust(until=45.0)
    trust.promise(0.0, {OTHER: 90.0})
    assert await ends_at(trust) == 45.0


@dataclass
class Sleep:
    """What the machine has slept: trio's clock knows nothing of it."""

    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


async def test_a_machine_that_slept_has_used_up_its_window(
    virtual_clock: VirtualClock, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    """R4.11: trio's clock stands still while a machine sleeps, the server's does not."""
    slept = Sleep(500.0)
    monkeypatch.setattr(ThisMachine, "slept_s", slept)
    trust = Trust(until=0.0)
    trust.promise(now(), {OURS: 90.0})
    ends: list[float] = []

    async def wait() -> None:
        ends.append(await ends_at(trust))

    nursery.start_soon(wait)
    await trio.sleep_until(30.0)
    assert not trust.may_be_elsewhere(task(is_movable=True), has_minder=False)
    slept.seconds += 3600.0
    assert trust.may_be_elsewhere(task(is_movable=True), has_minder=False)
    await trio.sleep_until(31.0 + LOOK_S)
    assert len(ends) == 1


async def test_keepers_are_told_the_end_on_their_own_clock(virtual_clock: VirtualClock) -> None:
    """R4.11"""
    trust = Trust(until=0.0)
    trust.promise(now(), {OURS: 90.0})
    assert trust.until_boot_s(OURS) - boot_s() == pytest.approx(90.0 - MARGIN_S, abs=1.0)


async def test_only_what_another_machine_may_take_is_elsewhere(
    virtual_clock: VirtualClock,
) -> None:
    """R4.11"""
    trust = Trust(until=45.0)
    await trio.sleep_until(44.0)
    assert not trust.may_be_elsewhere(task(is_movable=True), has_minder=False)
    await trio.sleep_until(45.0)
    assert trust.may_be_elsewhere(task(is_movable=True), has_minder=False)
    assert not trust.may_be_elsewhere(task(is_movable=False), has_minder=False)
