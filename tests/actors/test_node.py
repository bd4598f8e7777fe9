"""A node's lease: held while it lives, left when it stops, and what it may judge meanwhile."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest
import trio

from understudy.actors.node import NodeLease
from understudy.config import Home, ServerConfig
from understudy.http.auth import Machine
from understudy.http.calls import Desk
from understudy.store import nodes, runtimes
from understudy.store.connection import Record
from understudy.store.errors import DatabaseUnavailable
from understudy.testing.stage import Perform, Stage
from understudy.wire.daemon import Heartbeats, HeartbeatsHeard

CONFIG = ServerConfig(Home(Path("/nonexistent")), port=7)


async def lease_of(stage: Stage) -> Record:
    row = await stage.database.pool.fetchrow(
        "select *, extract(epoch from lease_expires_at - understudy.now())::float8 as left_s"
        " from understudy.nodes where id = $1",
        stage.cast.node_id,
    )
    assert row is not None
    return row


def a_lease(stage: Stage, heard: list[bool]) -> NodeLease:
    return NodeLease(stage.database, CONFIG, stage.cast.node_id, heard.append)


def test_a_node_holds_its_lease_by_one_write_in_10_s_and_leaves_it_when_it_stops(
    perform: Perform,
) -> None:
    """R4.3"""

    async def play(stage: Stage) -> None:
        heard: list[bool] = []
        async with trio.open_nursery() as nursery:
            await nursery.start(a_lease(stage, heard).run)
            await trio.sleep(605)
            row = await lease_of(stage)
            assert row["left_s"] == pytest.approx(25)
            assert row["address"] == "http://127.0.0.1:7"
            assert len(heard) == 61
            nursery.cancel_scope.cancel()
        assert (await lease_of(stage))["left_s"] <= 0

    perform(play)


def test_a_lease_whose_actor_crashes_is_kept(perform: Perform) -> None:
    """R4.3, R4.11: the machines of this node were promised that the others wait for its end."""

    async def play(stage: Stage) -> None:
        def tell(_: bool) -> None:  # noqa: FBT001
            if trio.current_time() > 5:
                raise ZeroDivisionError

        lease = NodeLease(stage.database, CONFIG, stage.cast.node_id, tell)
        with pytest.raises(ZeroDivisionError):
            await lease.run()
        assert (await lease_of(stage))["left_s"] == pytest.approx(lease.ends_at() - 10)
        assert lease.ends_at() == 40

    perform(play)


def test_a_node_judges_nobody_until_it_has_held_its_lease_for_45_s_without_a_gap(
    perform: Perform,
) -> None:
    """R4.4"""

    async def play(stage: Stage) -> None:
        lease = a_lease(stage, [])
        assert not lease.may_judge()
        async with trio.open_nursery() as nursery:
            await nursery.start(lease.run)
            assert await judges_after_s(lease) == 45
            stage.outage.failing.add("understudy.nodes")
            await trio.sleep(15)
            assert lease.may_judge()  # One renewal may be lost.
            await trio.sleep(25)
            assert not lease.may_judge()
            stage.outage.failing.clear()
            assert 45 <= await judges_after_s(lease) <= 55
            nursery.cancel_scope.cancel()

    perform(play)


async def judges_after_s(lease: NodeLease) -> float:
    began_at = trio.current_time()
    while not lease.may_judge():  # noqa: ASYNC110  # Nobody tells.
        await trio.sleep(1)
    return trio.current_time() - began_at


def test_a_node_knows_within_10_s_whether_there_are_others(perform: Perform) -> None:
    async def play(stage: Stage) -> None:
        heard: list[bool] = []
        other = stage.database.new_id()
        async with trio.open_nursery() as nursery:
            await nursery.start(a_lease(stage, heard).run)
            assert heard == [False]
            await nodes.renew(stage.database, other, "http://other", lease_s=30)
            await trio.sleep(10.1)
            assert heard.pop()
            await trio.sleep(30)
            assert not heard.pop()
            await nodes.renew(stage.database, other, "http://other", lease_s=math.pi * 1000)
            await trio.sleep(10.1)
            assert heard.pop()
            await nodes.leave(stage.database, other)
            await trio.sleep(10.1)
            assert not heard.pop()
            nursery.cancel_scope.cancel()

    perform(play)


def test_a_machine_that_is_online_with_no_node_may_be_taken_in_by_a_peer_any_moment(
    perform: Perform,
) -> None:
    """R4.11: who promises the long time of a node alone would not know that it is back."""

    async def play(stage: Stage) -> None:
        heard: list[bool] = []
        async with trio.open_nursery() as nursery:
            await nursery.start(a_lease(stage, heard).run)
            assert heard == [False]
            await stage.board.runtime("left alone")
            await trio.sleep(11)
            assert heard == [False, True]
            nursery.cancel_scope.cancel()

    perform(play)


def test_an_hour_without_the_database_is_one_line_in_the_log(
    perform: Perform, caplog: pytest.LogCaptureFixture
) -> None:
    async def play(stage: Stage) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(a_lease(stage, []).run)
            stage.outage.failing.add("understudy.nodes")
            await trio.sleep(3600)
            stage.outage.failing.clear()
            await trio.sleep(11)
            assert (await lease_of(stage))["left_s"] > 19
            nursery.cancel_scope.cancel()

    perform(play)
    assert [each for each in caplog.messages if "does not renew" in each] == [caplog.messages[0]]


def test_a_node_that_hears_its_first_peer_knows_it_at_once(perform: Perform) -> None:
    async def play(stage: Stage) -> None:
        heard: list[bool] = []
        lease = a_lease(stage, heard)
        async with trio.open_nursery() as nursery:
            await nursery.start(lease.run)
            await nodes.renew(stage.database, stage.database.new_id(), "http://other", lease_s=30)
            for _ in range(100):
                lease.meet()
                await trio.sleep(0.01)
            assert heard == [False, True]
            nursery.cancel_scope.cancel()

    perform(play)


def test_a_node_that_has_lost_the_database_promises_a_machine_nothing_behind_its_lease(
    perform: Perform,
) -> None:
    """R4.11: 45 s after the lease the others judge whom it hears, and 45 s later they give its
    work away."""

    async def play(stage: Stage) -> None:
        cast, runtime_id = stage.cast, stage.board.runtime_id
        lease = a_lease(stage, [])
        cast.has_peers = True
        cast.leased_until = lease.ends_at
        async with trio.open_nursery() as nursery:
            await nursery.start(lease.run)
            assert cast.trust_s(runtime_id) == 90
            stage.outage.failing.add("understudy.nodes")
            await trio.sleep(29)
            assert cast.trust_s(runtime_id) == 90
            await trio.sleep(41)
            cast.heard(runtime_id)
            assert cast.trust_s(runtime_id) == 50
            await trio.sleep(100)
            cast.heard(runtime_id)
            assert cast.trust_s(runtime_id) == 0
            nursery.cancel_scope.cancel()

    perform(play)


def test_a_machine_that_cannot_be_put_on_record_as_gone_may_be_at_another_node(
    perform: Perform,
) -> None:
    """R4.11: who is cut off from the database, and was alone, promises no long time (seed
    920000503)."""

    async def play(stage: Stage) -> None:
        cast, runtime_id = stage.cast, stage.board.runtime_id
        await cast.attend(await stage.board.runtime("second-daemon"))
        stage.outage.failing.add("update understudy.runtimes")
        for _ in range(10):
            await trio.sleep(10)
            cast.heard(runtime_id)
            assert cast.trust_s(runtime_id) == 90
        stage.outage.failing.clear()
        await trio.sleep(10)
        assert cast.trust_s(runtime_id) > 90

    perform(play)


def test_a_promise_is_made_once_it_is_on_record_who_keeps_it(perform: Perform) -> None:
    """R4.11: until then another node may judge whom this one has heard."""

    async def play(stage: Stage) -> None:
        desk, me = Desk(stage.cast), Machine(stage.board.workspace_id, fence="full")
        runtime_id = stage.board.runtime_id
        beat = msgspec.json.encode(Heartbeats(runtime_ids=[runtime_id]))
        stage.cast.disown(runtime_id)
        await runtimes.take_over(stage.database, runtime_id, stage.database.new_id())
        await trio.sleep(1)
        stage.outage.failing.add("set node_id")
        with pytest.raises(DatabaseUnavailable):
            await desk.answer(me, "heartbeats", None, beat)
        stage.outage.failing.clear()
        heard = await desk.answer(me, "heartbeats", None, beat)
        assert isinstance(heard, HeartbeatsHeard)
        assert list(heard.trust_s) == [runtime_id]
        assert (await stage.row()).node_id == stage.cast.node_id

    perform(play)
