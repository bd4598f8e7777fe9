"""A 17-minute partition stranded the run and its comment.

Whoever gives a silent machine's work away at once does it twice; whoever never does strands it.
Here it costs nothing where nobody could take over, and where somebody can, the machine that is cut
off stops its agent before another one begins (R4.2, R4.11, R6.2, R6.5).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any, Final
from uuid import UUID

import msgspec
import pytest
import trio

from understudy.core.lifecycle import Status
from understudy.core.struct import Struct
from understudy.http.auth import Machine
from understudy.http.calls import Desk
from understudy.store import issues, runtimes, sweeps, tasks
from understudy.testing import stage
from understudy.testing.plays import works
from understudy.testing.scenario import Scenario
from understudy.testing.stage import Perform, Stage
from understudy.wire import daemon as wire


def test_partition(enact: Callable[..., None]) -> None:
    """R4.2, R6.4: the only machine that could do it."""

    async def story(world: Scenario) -> None:
        laptop = await world.machine("laptop")
        fix = await world.assign("Fix the parser", works(600, says="Fixed."))
        await fix.until("running")
        laptop.cut_off()
        await world.pass_(17 * 60)
        assert await world.standing("laptop") == "offline"
        laptop.mend()
        await fix.until("completed")
        assert await fix.outcome() == ["completed"]
        assert fix.starts == 1
        assert await fix.comments() == ["Fixed."]

    enact(story)


def test_partition_from_one_of_two_machines(enact: Callable[..., None]) -> None:
    """R4.2, R4.11: the auditor would see two agents at work at the same time."""

    async def story(world: Scenario) -> None:
        laptop = await world.machine("laptop")
        fix = await world.assign("Fix", works(3600, says="Too late."), works(60, says="Fixed."))
        await fix.until("running")
        await world.machine("desktop")
        await world.pass_(60)
        laptop.cut_off()
        await world.pass_(17 * 60)
        assert laptop.agents() == 0
        assert await fix.outcome() == ["runtime_offline", "completed"]
        laptop.mend()
        await world.pass_(60)
        assert await fix.comments() == ["Fixed."]

    enact(story)


PARTITION_S: Final = 17 * 60.0
HEARTBEAT_S: Final = 15.0
SWEEP_S: Final = 30.0


@pytest.fixture
def perform(dsn: str, request: pytest.FixtureRequest) -> Perform:
    seed = request.config.getoption("--seed")
    return partial(stage.perform, dsn, Random(seed), seed)


class Laptop:
    """A machine, as the server sees it. While it is cut off it works on, and nobody hears of it."""

    def __init__(self, stage: Stage, name: str) -> None:
        self._desk = Desk(stage.cast)
        self._machine = Machine(stage.board.workspace_id, "full")
        self._name = name
        self.is_cut_off = False
        self.runtime_id: UUID

    async def ask(self, call: str, body: Struct, subject: UUID | None = None) -> Any:
        return await self._desk.answer(self._machine, call, subject, msgspec.json.encode(body))

    async def register(self, *, finished: list[wire.HeldTask]) -> wire.Registered:
        offer = wire.RuntimeOffer(type="scripted")
        body = wire.Register(
            workspace_id=str(self._machine.workspace_id),
            daemon_id=self._name,
            runtimes=[offer],
            incarnation=self._name,
            inventory=wire.Inventory(finished=finished),
        )
        answer: wire.Registered = await self.ask("register", body)
        self.runtime_id = answer.runtimes[0].id
        return answer

    async def beat_forever(self) -> None:
        while True:
            if not self.is_cut_off:
                await self.ask("heartbeats", wire.Heartbeats(runtime_ids=[self.runtime_id]))
            await trio.sleep(HEARTBEAT_S)

    async def begin(self) -> wire.ClaimedTask:
        task: wire.ClaimedTask = (await self.ask("claim", wire.Nothing(), self.runtime_id)).task
        await self.ask("start", wire.Held(claim_token=task.claim_token), task.id)
        return task

    async def complete(self, task: wire.ClaimedTask, output: str) -> Any:
        body = wire.Complete(claim_token=task.claim_token, output=output)
        return await self.ask("complete", body, task.id)


async def sweep_forever(stage: Stage) -> None:
    while True:
        await trio.sleep(SWEEP_S)
        await sweeps.lose(stage.database, stage.cast.leases)


def rehearse(perform: Perform, act: Callable[[Stage, Laptop, wire.ClaimedTask], Any]) -> None:
    """A laptop begins a run, and is cut off while it works."""

    async def play(stage: Stage) -> None:
        await runtimes.go_offline(stage.database, [stage.board.runtime_id], action="deregister")
        laptop = Laptop(stage, "laptop")
        await laptop.register(finished=[])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sweep_forever, stage)
            nursery.start_soon(laptop.beat_forever)
            await act(stage, laptop, await begun(stage, laptop))
            nursery.cancel_scope.cancel()

    perform(play)


async def begun(stage: Stage, laptop: Laptop) -> wire.ClaimedTask:
    await stage.queue("An hour of work")
    task = await laptop.begin()
    await trio.sleep(60)
    return task


async def row(stage: Stage, task_id: UUID) -> Any:
    return await tasks.find(stage.database, stage.board.workspace_id, task_id)


async def said(stage: Stage, task: wire.ClaimedTask) -> list[str]:
    assert task.issue_id is not None
    return [each.body for each in await issues.comments(stage.database, task.issue_id)]


def test_where_nobody_can_take_over_a_partition_costs_nothing(perform: Perform) -> None:
    """R4.2, R6.2, R6.4"""

    async def act(stage: Stage, laptop: Laptop, task: wire.ClaimedTask) -> None:
        laptop.is_cut_off = True
        await trio.sleep(PARTITION_S)
        assert (await row(stage, task.id)).status is Status.RUNNING
        laptop.is_cut_off = False
        held = wire.HeldTask(task_id=task.id, claim_token=task.claim_token)
        answer = await laptop.register(finished=[held])
        assert answer.verdicts == {str(task.id): "send"}
        await laptop.complete(task, "All of it.")
        assert (await row(stage, task.id)).status is Status.COMPLETED
        assert await said(stage, task) == ["All of it."]

    rehearse(perform, act)


def test_where_another_took_over_the_result_that_comes_late_is_kept_and_repeats_nothing(
    perform: Perform,
) -> None:
    """R4.2, R6.5"""

    async def act(stage: Stage, laptop: Laptop, task: wire.ClaimedTask) -> None:
        desktop = Laptop(stage, "desktop")
        await desktop.register(finished=[])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desktop.beat_forever)
            await trio.sleep(4 * HEARTBEAT_S)
            laptop.is_cut_off = True
            await trio.sleep(PARTITION_S)
            again = await desktop.begin()
            assert (again.parent_task_id, again.attempt) == (task.id, 2)
            laptop.is_cut_off = False
            await laptop.complete(task, "Too late.")
            await desktop.complete(again, "All of it.")
            nursery.cancel_scope.cancel()
        late = await row(stage, task.id)
        assert (late.status, late.result) == (Status.FAILED, {"output": "Too late."})
        assert await said(stage, task) == ["All of it."]

    rehearse(perform, act)


def test_a_result_that_comes_before_the_successor_starts_is_the_result(perform: Perform) -> None:
    """R6.5: nothing is done twice."""

    async def act(stage: Stage, laptop: Laptop, task: wire.ClaimedTask) -> None:
        desktop = Laptop(stage, "desktop")
        await desktop.register(finished=[])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desktop.beat_forever)
            await trio.sleep(4 * HEARTBEAT_S)
            laptop.is_cut_off = True
            await trio.sleep(PARTITION_S)
            assert (await row(stage, task.id)).failure_reason == "runtime_offline"
            laptop.is_cut_off = False
            await laptop.complete(task, "All of it.")
            assert (await desktop.ask("claim", wire.Nothing(), desktop.runtime_id)).task is None
            nursery.cancel_scope.cancel()
        assert (await row(stage, task.id)).status is Status.COMPLETED
        assert await said(stage, task) == ["All of it."]

    rehearse(perform, act)
