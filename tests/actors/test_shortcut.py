"""The answer "nothing queued" without the database, and all that ends it (R3.8, R3.9)."""

from __future__ import annotations

import pytest
import trio

from understudy.store import tasks
from understudy.store.errors import DatabaseUnavailable
from understudy.store.tasks import Holder
from understudy.testing.stage import Perform, Stage


async def poll(stage: Stage) -> list[str]:
    found = await stage.cast.claim(stage.board.runtime_id, slots=1, fence="full")
    return [task.issue.title for task in found if task.issue]


async def learn_that_nothing_waits(stage: Stage) -> None:
    assert await poll(stage) == []


def test_a_runtime_that_polls_in_vain_costs_the_database_nothing(perform: Perform) -> None:
    """R3.9"""

    async def play(stage: Stage) -> None:
        await learn_that_nothing_waits(stage)
        stage.outage.failing.add("claim_tasks")
        assert await poll(stage) == []

    perform(play)


def test_a_poll_asks_again_after_30_s(perform: Perform) -> None:
    """R3.9: no invalidation may be all that there is; one that was lost costs this much."""

    async def play(stage: Stage) -> None:
        await learn_that_nothing_waits(stage)
        stage.outage.failing.add("claim_tasks")
        await trio.sleep(30)
        with pytest.raises(DatabaseUnavailable):
            await poll(stage)

    perform(play)


def test_what_is_queued_is_found_by_the_next_poll(perform: Perform) -> None:
    """R3.9"""

    async def play(stage: Stage) -> None:
        await learn_that_nothing_waits(stage)
        await stage.queue("New")
        assert await poll(stage) == ["New"]

    perform(play)


def test_work_that_comes_while_the_database_is_asked_is_not_overlooked(perform: Perform) -> None:
    """R3.9: commit first, then invalidate: an answer older than that does not count."""

    async def play(stage: Stage) -> None:
        await learn_that_nothing_waits(stage)
        await trio.sleep(30)
        stage.outage.slow["claim_tasks"] = 5
        async with trio.open_nursery() as nursery:
            nursery.start_soon(poll, stage)
            await trio.sleep(1)
            stage.cast.wake(stage.board.workspace_id, "scripted")  # Committed meanwhile.
        stage.outage.slow.clear()
        stage.outage.failing.add("claim_tasks")
        with pytest.raises(DatabaseUnavailable):
            await poll(stage)

    perform(play)


def test_a_finished_predecessor_makes_its_successor_claimable(perform: Perform) -> None:
    """R3.9, R3.10"""

    async def play(stage: Stage) -> None:
        (claim,) = await stage.board.dispatched("First")
        holder = Holder(stage.board.workspace_id, claim.task.id, claim.claim_token)
        await tasks.start(stage.database, holder)
        issue = await stage.board.issue("First")
        await stage.database.pool.execute(
            "insert into understudy.tasks (id, workspace_id, issue_id, agent_id, provider, status,"
            " move, trigger) select $1, workspace_id, issue_id, agent_id, provider, 'queued',"
            " 'enqueue', 'mention' from understudy.tasks where id = $2",
            issue.id,
            claim.task.id,
        )
        await learn_that_nothing_waits(stage)
        done = await tasks.complete(
            stage.database, holder, {"output": "x"}, session_id=None, work_dir=None
        )
        stage.cast.committed(done)
        assert await poll(stage) == ["First"]

    perform(play)


def test_an_expired_claim_of_a_live_runtime_goes_back_before_the_shortcut(perform: Perform) -> None:
    """R3.8: on its own claim, or by its actor at the moment it runs out."""

    async def play(stage: Stage) -> None:
        await learn_that_nothing_waits(stage)
        await stage.queue("Dropped")
        assert await poll(stage) == ["Dropped"]
        assert await poll(stage) == []
        for _ in range(4):
            await trio.sleep(14.9)
            assert await poll(stage) == []
        await trio.sleep(0.5)
        assert await poll(stage) == ["Dropped"]

    perform(play)


def test_a_machine_without_a_free_slot_gives_back_what_it_lost(perform: Perform) -> None:
    """R3.8: its live actor needs no slot for that, so that another machine may take it."""

    async def play(stage: Stage) -> None:
        link = await stage.attach(slots=1)
        await stage.queue("Lost push")
        await trio.sleep(0.1)
        assert len(link.frames.receive_nowait().payload) == 1  # type: ignore[union-attr, arg-type]
        for _ in range(5):
            await trio.sleep(14)
            stage.cast.heard(stage.board.runtime_id)
        row = await stage.database.pool.fetchrow("select status, move from understudy.tasks")
        assert row is not None
        assert (row["status"], row["move"]) == ("queued", "requeue")

    perform(play)
