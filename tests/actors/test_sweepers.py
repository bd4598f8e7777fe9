"""When a sweep runs: at its tick, sooner when there is more, and never the end of its node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio

from understudy.actors.courier import Courier
from understudy.actors.sweepers import PAUSE_S, Sweep, Sweepers, Swept, all_sweeps
from understudy.core.failures import FailureReason
from understudy.core.leases import Leases
from understudy.core.records import Task
from understudy.core.tree import Branch
from understudy.store import sweeps, tasks
from understudy.store.errors import DatabaseUnavailable
from understudy.store.tasks import Failure, Holder
from understudy.testing.board import Claim
from understudy.testing.clock import run_virtual
from understudy.testing.stage import Perform, Stage

TICK_S = 30.0
STRICT = Leases(takeover_grace_s=0.0, alone_grace_s=0.0)
REPORT = {"session_id": None, "work_dir": None}


@dataclass
class Broom:
    """What is swept: `rows` lie there, up to 10 at a time."""

    rows: int = 0
    away: bool = False
    crashes: bool = False
    swept_at: list[float] = field(default_factory=list)
    committed: int = 0

    async def sweep(self) -> int:
        await trio.lowlevel.checkpoint()
        self.swept_at.append(trio.current_time())
        if self.away:
            raise DatabaseUnavailable("away")
        if self.crashes:
            raise ZeroDivisionError("a row that breaks it")
        taken = min(10, self.rows)
        self.rows -= taken
        return taken

    def note(self) -> None:
        self.committed += 1

    @asynccontextmanager
    async def at_work(self, may_run: Callable[[], bool] = lambda: True) -> AsyncIterator[Sweepers]:
        sweep = Sweep("dust", self.sweep, TICK_S, batch_max=10, may_run=may_run)
        sweepers = Sweepers([sweep], self.note)
        async with trio.open_nursery() as nursery:
            await nursery.start(sweepers.run, Branch("sweepers"))
            yield sweepers
            nursery.cancel_scope.cancel()


def virtually(play: Callable[[], Awaitable[None]]) -> None:
    run_virtual(play, seed=1)


def test_a_sweep_runs_at_the_start_and_at_every_tick() -> None:
    """R4.1 [seed]: sweeps tick every 30 s."""

    async def play() -> None:
        broom = Broom()
        async with broom.at_work():
            await trio.sleep(3600)
        assert len(broom.swept_at) == 120
        assert broom.swept_at[:3] == [0, TICK_S, 2 * TICK_S]
        assert broom.committed == 0

    virtually(play)


def test_a_full_batch_is_followed_by_another_after_a_pause() -> None:
    async def play() -> None:
        broom = Broom(rows=35)
        async with broom.at_work() as sweepers:
            await trio.sleep(1)
            assert broom.rows == 0
            assert broom.swept_at == pytest.approx([0, PAUSE_S, 2 * PAUSE_S, 3 * PAUSE_S])
            assert broom.committed == 4
            tally = sweepers.tallies["dust"]
            assert (tally.runs, tally.rows, tally.last_rows) == (4, 35, 5)

    virtually(play)


def test_a_thousand_hints_cost_two_sweeps() -> None:
    async def play() -> None:
        broom = Broom()
        async with broom.at_work() as sweepers:
            await trio.sleep(5)
            for _ in range(1000):
                sweepers.soon("dust")
            await trio.sleep(5)
            assert broom.swept_at == [0, 5, 5 + PAUSE_S]  # Some came while it swept.

    virtually(play)


def test_whoever_asks_hears_how_many_rows_went() -> None:
    async def play() -> None:
        broom = Broom()
        async with broom.at_work() as sweepers:
            await trio.sleep(1)
            broom.rows = 12
            assert await sweepers.sweep_now("dust") == Swept(10, is_full=True)
            assert await sweepers.sweep_now("dust") == Swept(2, is_full=False)
            broom.away = True
            with pytest.raises(DatabaseUnavailable):
                await sweepers.sweep_now("dust")

    virtually(play)


def test_while_the_database_is_away_a_sweep_waits_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def play() -> None:
        broom = Broom(rows=1, away=True)
        async with broom.at_work():
            await trio.sleep(601)
            assert len(broom.swept_at) == 21
            broom.away = False
            await trio.sleep(TICK_S)
            assert broom.rows == 0

    virtually(play)
    assert caplog.messages == ["dust waits: the database is away"]


def test_a_row_that_breaks_a_sweep_does_not_stop_its_node() -> None:
    async def play() -> None:
        broom = Broom(rows=1, crashes=True)
        async with broom.at_work():
            await trio.sleep(3600)
            assert len(broom.swept_at) > 100
            broom.crashes = False
            await trio.sleep(TICK_S + 1)
            assert broom.rows == 0

    virtually(play)


def test_what_was_given_up_on_may_first_come_back_after_a_start() -> None:
    """R4.4"""

    async def play() -> None:
        broom = Broom(rows=1)
        async with broom.at_work(may_run=lambda: trio.current_time() >= 45) as sweepers:
            assert await sweepers.sweep_now("dust") == Swept(0, is_full=False)
            await trio.sleep(59)
            assert broom.swept_at == []
            await trio.sleep(2)
            assert broom.swept_at == [60]

    virtually(play)


# On the board


@asynccontextmanager
async def at_work(stage: Stage, leases: Leases) -> AsyncIterator[Sweepers]:
    """The real ones, and the courier that hints at work for them."""
    listed = all_sweeps(stage.database, stage.cast.node_id, leases, lambda: True)
    sweepers = Sweepers(listed, lambda: stage.cast.committed(None))
    async with trio.open_nursery() as nursery:
        await nursery.start(sweepers.run, Branch("sweepers"))
        await nursery.start(Courier(stage.cast, sweepers).run)
        yield sweepers
        nursery.cancel_scope.cancel()


async def running(stage: Stage) -> Claim:
    (claim,) = await stage.board.dispatched("A thing")
    await tasks.start(stage.database, held(claim))
    return claim


def held(claim: Claim) -> Holder:
    return Holder(claim.task.workspace_id, claim.task.id, claim.claim_token)


async def row(stage: Stage, claim: Claim) -> Task:
    found = await tasks.find(stage.database, stage.board.workspace_id, claim.task.id)
    assert found is not None
    return found


def test_with_a_grace_of_0_the_silent_runtime_s_task_is_lost_at_that_moment(
    perform: Perform,
) -> None:
    """R4.2 [seed]: not a tick later."""

    async def play(stage: Stage) -> None:
        await trio.sleep(7)
        stage.cast.heard(stage.board.runtime_id)
        claim = await running(stage)
        async with at_work(stage, STRICT):
            await trio.sleep(44.9)
            assert (await row(stage, claim)).status == "running"
            await trio.sleep(1)
            assert await stage.status() == "offline"
            assert (await row(stage, claim)).failure_reason == "runtime_offline"

    perform(play)


def test_a_deferred_task_is_in_the_queue_the_moment_it_is_due(perform: Perform) -> None:
    """Spec section 2: not at the next tick."""

    async def play(stage: Stage) -> None:
        async with at_work(stage, Leases()):
            await trio.sleep(3)
            claim = await running(stage)
            overloaded = Failure(FailureReason.PROVIDER_OVERLOADED, "529", retry_after_s=5)
            failed = await tasks.fail(stage.database, held(claim), overloaded, **REPORT)
            stage.cast.committed(failed)
            due_in_s = await sweeps.next_due_in(stage.database)
            assert due_in_s is not None
            assert 5 <= due_in_s <= 6
            await trio.sleep(due_in_s - 0.1)
            assert await waiting(stage) == ["deferred"]
            await trio.sleep(0.2)
            assert await waiting(stage) == ["queued"]

    perform(play)


async def waiting(stage: Stage) -> list[str]:
    rows = await stage.database.pool.fetch(
        "select status from understudy.tasks where completed_at is null"
    )
    return [each["status"] for each in rows]


def test_what_a_sweep_has_put_into_the_queue_goes_to_an_idle_machine_at_once(
    perform: Perform,
) -> None:
    """R3.10: the retry of what another machine lost."""

    async def play(stage: Stage) -> None:
        claim = await running(stage)
        async with at_work(stage, STRICT):
            await trio.sleep(45.5)
            lost = await row(stage, claim)
            assert lost.failure_reason == "runtime_offline"
            link = await stage.attach(slots=1)
            with trio.fail_after(1):
                frame = await link.frames.receive()
            assert lost.retry_task_id is not None
            assert str(lost.retry_task_id) in str(frame)

    perform(play)
