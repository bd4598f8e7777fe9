"""What is committed at another node reaches the machines attached here."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import pytest
import trio

from understudy.actors import broadcast
from understudy.actors.broadcast import POLL_S
from understudy.actors.courier import Courier
from understudy.actors.link import Link
from understudy.actors.sweepers import Sweepers, all_sweeps
from understudy.core.leases import Leases
from understudy.core.records import Event, Runtime
from understudy.core.tree import Branch
from understudy.store import runtimes, tasks
from understudy.store.tasks import Holder
from understudy.testing.board import PROVIDER, Claim
from understudy.testing.stage import Perform, Stage
from understudy.wire.frames import Cancel, FromServer, RuntimesGone, TasksPushed

REPORT = {"session_id": None, "work_dir": None}


@asynccontextmanager
async def carrying(stage: Stage) -> AsyncIterator[None]:
    """With the courier at work, and a machine that stays alive."""

    async def beat() -> None:
        while True:
            stage.cast.heard(stage.board.runtime_id)
            await trio.sleep(15)

    async with trio.open_nursery() as nursery:
        listed = all_sweeps(stage.database, stage.cast.node_id, Leases(), lambda: False)
        sweepers = Sweepers(listed, lambda: None)
        await nursery.start(sweepers.run, Branch("sweepers"))
        await trio.sleep(1)  # Until the tail is settled.
        await nursery.start(Courier(stage.cast, sweepers).run)
        nursery.start_soon(beat)
        yield
        nursery.cancel_scope.cancel()


def nudge(stage: Stage) -> None:
    """As the other node's NOTIFY does."""
    broadcast.nudged(stage.cast.news)


async def told(link: Link) -> FromServer:
    """The next frame, at once."""
    with trio.fail_after(0.5):
        return await link.frames.receive()


async def running(stage: Stage, link: Link) -> Claim:
    await stage.board.assign(await stage.board.issue("A thing"))
    nudge(stage)
    frame = await told(link)
    assert isinstance(frame, TasksPushed)
    (task,) = frame.payload
    claim = Claim(task, task.claim_token)
    await tasks.start(stage.database, held(claim))
    return claim


def held(claim: Claim) -> Holder:
    return Holder(claim.task.workspace_id, claim.task.id, claim.claim_token)


def test_an_assignment_at_another_node_reaches_the_machine_here_at_once(perform: Perform) -> None:
    """R3.10"""

    async def play(stage: Stage) -> None:
        async with carrying(stage):
            link = await stage.attach(slots=1)
            await stage.board.assign(await stage.board.issue("A thing"))
            nudge(stage)
            assert isinstance(await told(link), TasksPushed)

    perform(play)


def test_without_the_nudge_it_reaches_it_with_the_next_poll(perform: Perform) -> None:
    """NOTIFY is never the only wake-up."""

    async def play(stage: Stage) -> None:
        async with carrying(stage):
            link = await stage.attach(slots=1)
            await stage.board.assign(await stage.board.issue("A thing"))
            with trio.fail_after(POLL_S + 0.5):
                assert isinstance(await link.frames.receive(), TasksPushed)

    perform(play)


def test_the_end_of_a_run_at_another_node_starts_its_successor_here(perform: Perform) -> None:
    """R3.10: a terminal move frees a slot of the agent."""

    async def play(stage: Stage) -> None:
        narrow = await stage.board.agent("Narrow", max_concurrent_tasks=1)
        other = await stage.board.runtime("other-daemon")
        await stage.board.assign(await stage.board.issue("First"), narrow)
        (first,) = await stage.board.claim(runtime_id=other.id)
        await tasks.start(stage.database, held(first))
        async with carrying(stage):
            link = await stage.attach(slots=1)
            await stage.board.assign(await stage.board.issue("Second"), narrow)
            nudge(stage)
            await trio.sleep(40)
            with pytest.raises(trio.WouldBlock):
                link.frames.receive_nowait()
            await tasks.complete(stage.database, held(first), {"output": "x"}, **REPORT)
            nudge(stage)
            assert isinstance(await told(link), TasksPushed)

    perform(play)


def test_a_cancel_at_another_node_reaches_the_run_here(perform: Perform) -> None:
    """R7.1: and with every heartbeat until it is confirmed, wherever that is."""

    async def play(stage: Stage) -> None:
        async with carrying(stage):
            link = await stage.attach(slots=1)
            claim = await running(stage, link)
            await cancel(stage, claim)
            nudge(stage)
            frame = await told(link)
            assert isinstance(frame, Cancel)
            assert [each.task_id for each in frame.payload] == [claim.task.id]
            presence = stage.cast.presence(stage.board.runtime_id)
            assert presence is not None
            assert presence.stops == {claim.task.id}
            await tasks.confirm_stop(stage.database, held(claim))
            nudge(stage)
            await trio.sleep(0.5)
            assert presence.stops == set()

    perform(play)


async def cancel(stage: Stage, claim: Claim) -> None:
    workspace_id, by = stage.board.workspace_id, stage.board.user_id
    await tasks.cancel(stage.database, workspace_id, claim.task.id, by=by)


def test_a_cancel_among_more_events_than_are_kept_reaches_the_run_all_the_same(
    perform: Perform,
) -> None:
    """R7.1"""

    async def play(stage: Stage) -> None:
        async with carrying(stage):
            link = await stage.attach(slots=1)
            claim = await running(stage, link)
            await trio.sleep(1)
            await cancel(stage, claim)
            stage.tail.recent = Forgetful()
            nudge(stage)
            assert isinstance(await told(link), Cancel)

    perform(play)


class Forgetful(deque[Event]):
    """Of whatever comes, nothing is kept."""

    def extend(self, _: object) -> None:
        self.clear()


async def registers_elsewhere(stage: Stage) -> Runtime:
    return await registers(stage, "first-daemon", stage.database.new_id())


async def registers(stage: Stage, daemon_id: str, node_id: UUID) -> Runtime:
    machine = runtimes.Machine(stage.board.workspace_id, daemon_id, "laptop", None, node_id)
    offer = runtimes.Offer(PROVIDER, "scripted (laptop)", "laptop", "1", "online", None)
    (row,) = (await runtimes.register(stage.database, machine, [offer])).runtimes
    assert row.node_id == node_id
    return row


def test_a_machine_that_registers_elsewhere_and_is_heard_here_again_is_taken_over_again(
    perform: Perform,
) -> None:
    """R4.4: else the other node would take it for silent, and nobody would know better."""

    async def play(stage: Stage) -> None:
        async with carrying(stage):
            await registers_elsewhere(stage)
            nudge(stage)
            await trio.sleep(20)  # A heartbeat comes here.
            assert (await stage.row()).node_id == stage.cast.node_id

    perform(play)


def test_a_late_sign_of_life_at_another_node_takes_the_machine_away_for_one_heartbeat_at_most(
    perform: Perform,
) -> None:
    """R4.3, R4.11: else that node would take for silent whom this one hears."""

    async def play(stage: Stage) -> None:
        async with carrying(stage):
            other = stage.database.new_id()
            await runtimes.take_over(stage.database, stage.board.runtime_id, other)
            await trio.sleep(20)  # Without a nudge: the poll brings it, and a heartbeat comes.
            assert (await stage.row()).node_id == stage.cast.node_id
            assert await stage.status() == "online"

    perform(play)


def test_a_sign_of_life_that_the_database_hears_of_too_late_takes_no_machine_away(
    perform: Perform,
) -> None:
    """R4.3: it has gone to another node meanwhile; its next sign here counts again."""

    async def play(stage: Stage) -> None:
        heard_at, mine = trio.current_time(), stage.cast.node_id
        await trio.sleep(5)
        there = await registers_elsewhere(stage)
        row = await runtimes.take_over(stage.database, there.id, mine, heard_at=heard_at)
        assert row is not None
        assert row.node_id == there.node_id
        await trio.sleep(5)
        heard_at = trio.current_time()
        row = await runtimes.take_over(stage.database, there.id, mine, heard_at=heard_at)
        assert row is not None
        assert row.node_id == mine

    perform(play)


def test_a_node_whose_news_are_late_asks_who_attends_a_machine_before_it_promises(
    perform: Perform,
) -> None:
    """R4.11: a registration of long ago, carried out late at another node, has that judge it (seed
    147 of the simulation at f7be5aa)."""

    async def play(stage: Stage) -> None:
        async with carrying(stage):
            stage.outage.failing.add("pg_snapshot_xmin")
            place = await registers_elsewhere(stage)
            await trio.sleep(20)
            assert stage.cast.heard(place.id)
            assert await stage.cast.own(place.id)
            assert (await stage.row()).node_id == stage.cast.node_id

    perform(play)


def test_a_machine_whose_registration_was_not_answered_is_known_and_judged(
    perform: Perform,
) -> None:
    """R4.1, R4.11: it is online for all, and the others' promises count with it."""

    async def play(stage: Stage) -> None:
        async with carrying(stage):
            assert stage.cast.trust_s(stage.board.runtime_id) > 90
            place = await registers(stage, "newcomer", stage.cast.node_id)
            await trio.sleep(POLL_S + 1)
            assert stage.cast.trust_s(stage.board.runtime_id) == 90
            await trio.sleep(46)
            row = await runtimes.find(stage.database, place.id)
            assert row is not None
            assert row.status == "offline"

    perform(play)


def test_a_machine_that_another_node_has_taken_for_silent_is_online_at_its_next_heartbeat(
    perform: Perform,
) -> None:
    """R4.4: this node was cut off from the database, not the machine from this node."""

    async def play(stage: Stage) -> None:
        async with carrying(stage):
            board = stage.board
            await runtimes.go_offline(stage.database, [board.runtime_id], action="stale_sweep")
            nudge(stage)
            await trio.sleep(20)
            assert await stage.status() == "online"
            assert (await stage.row()).node_id == stage.cast.node_id

    perform(play)


def test_a_runtime_removed_at_another_node_is_told_so_here(perform: Perform) -> None:
    """R4.7"""

    async def play(stage: Stage) -> None:
        async with carrying(stage):
            link = await stage.attach(slots=1)
            await runtimes.delete(stage.database, stage.board.workspace_id, stage.board.runtime_id)
            nudge(stage)
            frame = await told(link)
            assert isinstance(frame, RuntimesGone)
            assert frame.payload == [stage.board.runtime_id]
            assert not stage.cast.heard(stage.board.runtime_id)

    perform(play)
