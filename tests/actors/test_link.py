from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from understudy.actors.link import Link


async def test_no_more_is_reserved_than_was_granted() -> None:
    """R3.10, R9.6"""
    link = Link()
    link.grant(3)
    assert await link.reserve(2) == 2
    link.settle(2, used=2)
    assert await link.reserve(5) == 1
    link.settle(1, used=1)
    assert await link.reserve(5) == 0


async def test_a_grant_that_arrives_late_takes_nothing_back() -> None:
    link = Link()
    link.grant(3)
    link.grant(1)
    assert await link.reserve(5) == 3


async def test_a_runtime_waits_for_slots_that_another_may_not_need(nursery: trio.Nursery) -> None:
    """Else the one that asked second would hear of its task half a minute later."""
    link = Link()
    link.grant(20)
    reserved: list[int] = []

    async def second() -> None:
        reserved.append(await link.reserve(20))

    assert await link.reserve(20) == 20
    nursery.start_soon(second)
    await wait_all_tasks_blocked()
    assert reserved == []
    link.settle(20, used=0)
    await wait_all_tasks_blocked()
    assert reserved == [20]
