"""The task's actor in virtual time: reports in order, and a crash that costs one message."""

from __future__ import annotations

import pytest
import trio

from understudy.actors.mailbox import ActorGone
from understudy.actors.task import IDLE_S, Renew, Start, Told
from understudy.core.lifecycle import Status
from understudy.core.records import Message
from understudy.store import tasks
from understudy.store.errors import DatabaseUnavailable
from understudy.store.tasks import Holder, Outcome
from understudy.testing.board import Claim
from understudy.testing.stage import Perform, Stage
from understudy.wire.daemon import Complete, Messages


async def claimed(stage: Stage) -> tuple[Claim, Holder]:
    (claim,) = await stage.board.dispatched("A thing")
    return claim, Holder(stage.board.workspace_id, claim.task.id, claim.claim_token)


def test_a_lease_ends_after_60_s_and_each_renewal_gives_45_more(perform: Perform) -> None:
    """R3.4, R3.5"""

    async def play(stage: Stage) -> None:
        claim, holder = await claimed(stage)
        for _ in range(5):
            await trio.sleep(44)
            moved = await stage.cast.report(claim.task.id, lambda: Renew(holder))
            assert moved.outcome is Outcome.MOVED
        await trio.sleep(45)
        for late in (Renew(holder), Start(holder)):
            moved = await stage.cast.report(claim.task.id, lambda: late)  # noqa: B023  # Asked now.
            assert moved.outcome is Outcome.FENCED

    perform(play)


def test_who_watches_hears_of_a_message_once_it_is_stored(perform: Perform) -> None:
    async def play(stage: Stage) -> None:
        claim, holder = await claimed(stage)
        newest = stage.cast.newest(claim.task.id)
        said = Messages(messages=[Message(seq=seq, type="text", content="x") for seq in (0, 1)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.cast.report, claim.task.id, lambda: Told(holder, said))
            assert await newest.wait_above(-1) == 1
            assert len(await tasks.messages(stage.database, claim.task.id)) == 2

    perform(play)


def test_a_crash_costs_one_try(perform: Perform) -> None:
    async def play(stage: Stage) -> None:
        claim, holder = await claimed(stage)
        stage.outage.crashing["start_task"] = 1
        moved = await stage.cast.report(claim.task.id, lambda: Start(holder))
        assert moved.outcome is Outcome.MOVED

    perform(play)


def test_a_report_that_crashes_its_actor_every_time_is_refused_and_the_next_is_heard(
    perform: Perform,
) -> None:
    async def play(stage: Stage) -> None:
        claim, holder = await claimed(stage)
        stage.outage.crashing["start_task"] = 100
        for _ in range(4):
            with pytest.raises(ActorGone):
                await stage.cast.report(claim.task.id, lambda: Start(holder))
        stage.outage.crashing.clear()
        moved = await stage.cast.report(claim.task.id, lambda: Start(holder))
        assert moved.outcome is Outcome.MOVED

    perform(play)


def test_an_answer_that_was_lost_is_given_again(perform: Perform) -> None:
    """R3.5, R6.6"""

    async def play(stage: Stage) -> None:
        claim, holder = await claimed(stage)
        await stage.cast.report(claim.task.id, lambda: Start(holder))
        stage.outage.failing.add("complete_task")
        with pytest.raises(DatabaseUnavailable):
            await stage.cast.report(claim.task.id, lambda: Told(holder, Complete(output="x")))
        stage.outage.failing.clear()
        first = await stage.cast.report(claim.task.id, lambda: Told(holder, Complete(output="x")))
        again = await stage.cast.report(claim.task.id, lambda: Told(holder, Complete(output="x")))
        assert [first.outcome, again.outcome] == [Outcome.MOVED, Outcome.REPLAYED]
        assert first.task == again.task

    perform(play)


def test_the_actor_ends_with_its_task_or_when_nobody_speaks_of_it(perform: Perform) -> None:
    async def play(stage: Stage) -> None:
        claim, holder = await claimed(stage)
        await stage.cast.report(claim.task.id, lambda: Start(holder))
        assert stage.cast.tasks.get(claim.task.id) is not None
        await trio.sleep(IDLE_S + 1)
        assert stage.cast.tasks.get(claim.task.id) is None
        moved = await stage.cast.report(claim.task.id, lambda: Told(holder, Complete(output="x")))
        assert moved.task is not None
        assert moved.task.status is Status.COMPLETED
        await trio.sleep(0.001)
        assert stage.cast.tasks.get(claim.task.id) is None

    perform(play)


def test_reports_of_one_task_are_carried_out_in_their_order(perform: Perform) -> None:
    """R6.9: what was said last is not stored first, however slow the database is."""

    async def play(stage: Stage) -> None:
        claim, holder = await claimed(stage)
        stage.outage.slow["append_messages"] = 1
        done: list[int] = []

        async def say(seq: int) -> None:
            said = Messages(messages=[Message(seq=seq, type="text", content="x")])
            await stage.cast.report(claim.task.id, lambda: Told(holder, said))
            done.append(seq)

        async with trio.open_nursery() as nursery:
            for seq in range(5):
                nursery.start_soon(say, seq)
                await trio.sleep(0.01)
        assert done == [0, 1, 2, 3, 4]

    perform(play)
