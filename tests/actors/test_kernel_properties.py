"""What holds whatever crashes, and whenever. Every example is one run in virtual time.

That no ask hangs needs no assertion: under the virtual clock a hanging ask is `NobodyCanRun`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from functools import partial

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.actors.actor import Actor, spawn
from understudy.actors.mailbox import ActorGone, Ask, Ref
from understudy.core.restarts import RestartPolicy
from understudy.core.tree import Branch
from understudy.supervisor import RestartsExhausted
from understudy.testing.clock import run_virtual

NEVER = 10_000


class End(Enum):
    """How an ask ended."""

    ANSWERED = auto()
    GONE = auto()
    IMPATIENT = auto()


class Act(Enum):
    """What the actor does with a message."""

    ANSWER = auto()
    IGNORE = auto()
    CRASH = auto()
    ANSWER_AND_CRASH = auto()
    CRASH_IN_CHILD = auto()
    STOP = auto()


@dataclass(frozen=True)
class Do(Ask[None]):
    act: Act
    work_s: int = 0


@dataclass(frozen=True)
class Asker:
    question: Act
    work_s: int
    asks_at: int
    patience_s: int


@dataclass(frozen=True)
class Scenario:
    askers: Sequence[Asker]
    mailbox_max: int
    policy: RestartPolicy
    start_s: int
    failing_starts: frozenset[int]
    cancelled_at: int
    seed: int


policies = st.builds(
    RestartPolicy,
    restarts_max=st.integers(0, 5),
    period_s=st.integers(1, 20),
    delay_s=st.integers(0, 3),
)
askers = st.builds(
    Asker,
    question=st.sampled_from(Act),
    work_s=st.integers(0, 3),
    asks_at=st.integers(0, 12),
    patience_s=st.integers(0, 5) | st.just(NEVER),
)
scenarios = st.builds(
    Scenario,
    askers=st.lists(askers, max_size=15),
    mailbox_max=st.integers(0, 4),
    policy=policies,
    start_s=st.integers(0, 2),
    failing_starts=st.frozensets(st.integers(2, 5), max_size=3),
    cancelled_at=st.integers(0, 20) | st.just(NEVER),
    seed=st.integers(0, 2**32),
)


@dataclass
class World:
    """A scenario and what happened in it."""

    scenario: Scenario
    starts: int = 0
    crashes: list[float] = field(default_factory=list)
    outcomes: list[tuple[Asker, End]] = field(default_factory=list)
    gave_up: bool = False
    over: trio.Event = field(default_factory=trio.Event)

    def crash(self) -> ValueError:
        self.crashes.append(trio.current_time())
        return ValueError("boom")


class Fragile(Actor[Do]):
    def __init__(self, world: World) -> None:
        self.world = world

    async def start(self) -> None:
        self.world.starts += 1
        await trio.sleep(self.world.scenario.start_s)
        if self.world.starts in self.world.scenario.failing_starts:
            raise self.world.crash()

    async def receive(self, message: Do) -> None:
        await trio.sleep(message.work_s)
        match message.act:
            case Act.ANSWER:
                message.reply(None)
            case Act.IGNORE:
                pass
            case Act.CRASH:
                raise self.world.crash()
            case Act.ANSWER_AND_CRASH:
                message.reply(None)
                raise self.world.crash()
            case Act.CRASH_IN_CHILD:
                self.nursery.start_soon(self.crash_in_child)
                await trio.sleep(1)
            case Act.STOP:
                self.stop()

    async def crash_in_child(self) -> None:
        raise self.world.crash()


async def ask(ref: Ref[Do], asker: Asker, world: World) -> None:
    await trio.sleep(asker.asks_at)
    end = End.IMPATIENT
    with trio.move_on_after(asker.patience_s):
        try:
            await ref.ask(Do(asker.question, asker.work_s))
            end = End.ANSWERED
        except ActorGone:
            end = End.GONE
    world.outcomes.append((asker, end))


async def keep_house(world: World, *, task_status: trio.TaskStatus[Ref[Do]]) -> None:
    """The actor's parent: stops it when all is over, or at the scenario's moment."""
    scenario = world.scenario
    incarnate = partial(Fragile, world)
    size, policy = scenario.mailbox_max, scenario.policy
    try:
        async with trio.open_nursery() as nursery:
            ref = await spawn(
                nursery, Branch("fragile"), incarnate, mailbox_max=size, policy=policy
            )
            task_status.started(ref)
            with trio.move_on_after(scenario.cancelled_at):
                await world.over.wait()
                await trio.sleep(60)  # Whatever was started in the last moment has its end.
            nursery.cancel_scope.cancel()
    except* RestartsExhausted:
        world.gave_up = True


async def play(scenario: Scenario) -> World:
    world = World(scenario)
    async with trio.open_nursery() as house:
        ref = await house.start(keep_house, world)
        async with trio.open_nursery() as crowd:
            for asker in scenario.askers:
                crowd.start_soon(ask, ref, asker, world)
        world.over.set()
    return world


def run(scenario: Scenario) -> World:
    return run_virtual(partial(play, scenario), seed=scenario.seed)


@settings(deadline=None, max_examples=200)
@given(scenarios)
def test_no_ask_hangs_and_none_is_answered_out_of_thin_air(scenario: Scenario) -> None:
    world = run(scenario)
    assert len(world.outcomes) == len(scenario.askers)
    answers = {Act.ANSWER, Act.ANSWER_AND_CRASH}
    assert all(asker.question in answers for asker, end in world.outcomes if end is End.ANSWERED)


@settings(deadline=None)
@given(scenarios)
def test_every_incarnation_but_the_first_was_paid_for_with_a_crash(scenario: Scenario) -> None:
    """So cancellation is not a crash: it starts nothing."""
    world = run(scenario)
    assert len(world.crashes) <= world.starts <= 1 + len(world.crashes)
    assert not world.gave_up or world.starts == len(world.crashes)


@settings(deadline=None)
@given(scenarios.map(lambda scenario: replace(scenario, cancelled_at=NEVER)))
def test_the_actor_is_given_up_at_exactly_the_first_crash_too_many(scenario: Scenario) -> None:
    world = run(scenario)
    policy = scenario.policy
    too_many = [
        sum(now - crash <= policy.period_s for crash in world.crashes[: number + 1])
        > policy.restarts_max
        for number, now in enumerate(world.crashes)
    ]
    assert not any(too_many[:-1])
    assert world.gave_up == any(too_many)


@settings(deadline=None)
@given(scenarios)
def test_patience_is_answered_when_nothing_crashes_and_nothing_stops(scenario: Scenario) -> None:
    calm = [replace(asker, question=Act.ANSWER, patience_s=NEVER) for asker in scenario.askers]
    world = run(replace(scenario, askers=calm, cancelled_at=NEVER))
    assert {end for _, end in world.outcomes} <= {End.ANSWERED}


@settings(deadline=None)
@given(scenarios)
def test_a_seed_replays_every_outcome(scenario: Scenario) -> None:
    assert run(scenario).outcomes == run(scenario).outcomes


class Ledger(Actor[int]):
    """Writes numbers down and crashes on negative ones."""

    def __init__(self, written: list[int]) -> None:
        self.written = written

    async def receive(self, message: int) -> None:
        if message < 0:
            raise ValueError("boom")
        self.written.append(message)
        if message == LAST:
            self.stop()


LAST = 1_000


@settings(deadline=None)
@given(
    numbers=st.lists(st.integers(-3, 10), max_size=30),
    mailbox_max=st.integers(0, 40),
    seed=st.integers(0, 2**32),
)
def test_the_backlog_survives_every_crash_in_order(
    numbers: list[int], mailbox_max: int, seed: int
) -> None:
    written: list[int] = []

    async def main() -> None:
        policy = RestartPolicy(restarts_max=len(numbers))
        async with trio.open_nursery() as nursery:
            ref = await spawn(
                nursery,
                Branch("ledger"),
                partial(Ledger, written),
                mailbox_max=mailbox_max,
                policy=policy,
            )
            for number in [*numbers, LAST]:
                await ref.tell(number)

    run_virtual(main, seed=seed)
    assert written == [*(number for number in numbers if number >= 0), LAST]
