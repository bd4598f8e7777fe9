from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from understudy.actors.actor import Actor, spawn
from understudy.actors.mailbox import ActorGone, Ask, R, Ref
from understudy.core.restarts import RestartPolicy
from understudy.core.tree import Branch, Mailbox, Node, State
from understudy.supervisor import RestartsExhausted, open_children

POLICY = RestartPolicy(restarts_max=3, period_s=60, delay_s=1)


@dataclass(frozen=True)
class Add:
    amount: int


@dataclass(frozen=True)
class Explode:
    pass


@dataclass(frozen=True)
class Retire:
    pass


@dataclass(frozen=True)
class Total(Ask[int]):
    pass


@dataclass(frozen=True)
class Shrug(Ask[str]):
    """Asks for what the counter never answers."""


Message: TypeAlias = Add | Explode | Retire | Total | Shrug


class Counter(Actor[Message]):
    def __init__(self) -> None:
        self.total = 0

    async def receive(self, message: Message) -> None:
        match message:
            case Add(amount):
                self.total += amount
            case Total(reply=reply):
                reply(self.total)
            case Explode():
                raise ValueError("boom")
            case Retire():
                self.stop()
            case Shrug():
                pass


async def counter(nursery: trio.Nursery, tree: Branch | None = None) -> Ref[Message]:
    branch = tree.child("counter") if tree else Branch("counter")
    return await spawn(nursery, branch, Counter, mailbox_max=8, policy=POLICY)


def only_child(tree: Branch) -> Node:
    (node,) = tree.snapshot(trio.current_time()).children
    return node


async def ask(ref: Ref[Message], question: Ask[R]) -> R:
    with trio.fail_after(3600):
        return await ref.ask(question)


async def test_ask_sees_every_message_told_before_it(nursery: trio.Nursery) -> None:
    ref = await counter(nursery)
    await ref.tell(Add(2))
    await ref.tell(Add(3))
    assert await ref.ask(Total()) == 5


async def test_ref_survives_a_crash_but_state_does_not(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    ref = await counter(nursery)
    await ref.tell(Add(2))
    await ref.tell(Explode())
    await ref.tell(Add(3))
    assert await ref.ask(Total()) == 3
    assert trio.current_time() == 1


async def test_unanswered_ask_raises_and_names_the_actor_and_the_question(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    ref = await counter(nursery)
    with pytest.raises(ActorGone, match="counter left Shrug unanswered"):
        await ask(ref, Shrug())


async def test_too_many_crashes_reach_the_parent(autojump_clock: MockClock) -> None:
    with pytest.RaisesGroup(RestartsExhausted):
        async with trio.open_nursery() as nursery:
            ref = await counter(nursery)
            for _ in range(4):
                await ref.tell(Explode())
            await trio.sleep_forever()


async def test_crashes_spread_out_are_ridden_out(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    ref = await counter(nursery)
    for _ in range(10):
        await ref.tell(Explode())
        await trio.sleep(30)
    assert await ref.ask(Total()) == 0


async def ask_total(ref: Ref[Message], outcomes: list[int | None]) -> None:
    try:
        total = await ask(ref, Total())
        outcomes.append(total)
    except ActorGone:
        outcomes.append(None)


async def test_backlog_of_a_dead_actor_is_refused_and_so_are_those_who_wait_for_room(
    autojump_clock: MockClock,
) -> None:
    outcomes: list[int | None] = []
    async with trio.open_nursery() as askers:
        with pytest.RaisesGroup(RestartsExhausted):
            async with trio.open_nursery() as nursery:
                ref = await counter(nursery)
                for _ in range(4):
                    ref.tell_nowait(Explode())
                for _ in range(10):
                    askers.start_soon(ask_total, ref, outcomes)
                await trio.sleep_forever()
    assert outcomes == [None] * 10
    with pytest.raises(ActorGone, match="counter has stopped"):
        await ref.tell(Add(1))


async def test_backlog_of_a_cancelled_actor_is_refused(autojump_clock: MockClock) -> None:
    class Stuck(Counter):
        async def receive(self, message: Message) -> None:
            await trio.sleep_forever()

    outcomes: list[int | None] = []
    async with trio.open_nursery() as askers, trio.open_nursery() as nursery:
        ref = await spawn(nursery, Branch("stuck"), Stuck, mailbox_max=8, policy=POLICY)
        for _ in range(20):
            askers.start_soon(ask_total, ref, outcomes)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert outcomes == [None] * 20


async def test_full_mailbox_blocks_tell() -> None:
    class Stuck(Actor[Add]):
        async def receive(self, message: Add) -> None:
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        ref = await spawn(nursery, Branch("stuck"), Stuck, mailbox_max=1, policy=POLICY)
        await ref.tell(Add(1))
        await wait_all_tasks_blocked()
        ref.tell_nowait(Add(2))
        with pytest.raises(trio.WouldBlock):
            ref.tell_nowait(Add(3))
        nursery.cancel_scope.cancel()


async def test_cancelled_asker_does_not_crash_the_actor(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    class Slow(Actor[Total]):
        async def receive(self, message: Total) -> None:
            await trio.sleep(10)
            message.reply(1)

    ref = await spawn(nursery, Branch("slow"), Slow, mailbox_max=1, policy=POLICY)
    with trio.move_on_after(5):
        await ref.ask(Total())
    assert await ref.ask(Total()) == 1
    assert trio.current_time() == 20


async def test_failing_first_start_fails_the_spawner_and_comes_unwrapped() -> None:
    class Unready(Actor[Add]):
        async def start(self) -> None:
            raise LookupError("no schema")

        async def receive(self, message: Add) -> None: ...

    async with trio.open_nursery() as nursery:
        with pytest.raises(LookupError, match="no schema"):
            await spawn(nursery, Branch("unready"), Unready, mailbox_max=1, policy=POLICY)


async def test_a_start_that_keeps_crashing_after_a_restart_leaves_no_asker_waiting(
    autojump_clock: MockClock,
) -> None:
    starts = 0

    class Doomed(Counter):
        async def start(self) -> None:
            nonlocal starts
            starts += 1
            if starts > 1:
                raise LookupError("no schema any more")

    outcomes: list[int | None] = []
    async with trio.open_nursery() as askers:
        with pytest.RaisesGroup(RestartsExhausted):
            async with trio.open_nursery() as nursery:
                ref = await spawn(nursery, Branch("doomed"), Doomed, mailbox_max=8, policy=POLICY)
                await ref.tell(Explode())
                askers.start_soon(ask_total, ref, outcomes)
    assert outcomes == [None]
    assert starts == 4


async def test_a_stopped_actor_finishes_its_message_and_refuses_the_rest(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    finished: list[str] = []

    class Retiring(Actor[Retire | Total]):
        async def receive(self, message: Retire | Total) -> None:
            self.stop()
            await trio.sleep(1)
            finished.append(type(message).__name__)

    tree = Branch("server")
    ref = await spawn(nursery, tree.child("r"), Retiring, mailbox_max=8, policy=POLICY)
    await ref.tell(Retire())
    with pytest.raises(ActorGone), trio.fail_after(3600):
        await ref.ask(Total())
    with pytest.raises(ActorGone):
        ref.tell_nowait(Retire())
    assert finished == ["Retire"]
    assert tree.snapshot(0.0).children == ()


async def test_an_actor_may_find_in_start_that_there_is_nothing_left_to_do(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    class Finished(Counter):
        async def start(self) -> None:
            self.stop()

    ref = await spawn(nursery, Branch("done"), Finished, mailbox_max=8, policy=POLICY)
    with pytest.raises(ActorGone):
        await ask(ref, Total())


class Parent(Actor[Explode | Retire]):
    """Its child logs its own life, and crashes if told to."""

    def __init__(self, lives: list[str]) -> None:
        self.lives = lives
        self.fuse = trio.Event()

    async def start(self) -> None:
        self.nursery.start_soon(self.child)

    async def child(self) -> None:
        self.lives.append("born")
        try:
            await self.fuse.wait()
            raise ValueError("boom")
        finally:
            self.lives.append("died")

    async def receive(self, message: Explode | Retire) -> None:
        match message:
            case Explode():
                self.fuse.set()
            case Retire():
                self.stop()


async def parent(nursery: trio.Nursery, tree: Branch, lives: list[str]) -> Ref[Explode | Retire]:
    incarnate = partial(Parent, lives)
    return await spawn(nursery, tree.child("parent"), incarnate, mailbox_max=8, policy=POLICY)


async def test_a_child_tasks_crash_is_the_incarnations_crash(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    tree = Branch("server")
    lives: list[str] = []
    ref = await parent(nursery, tree, lives)
    await ref.tell(Explode())
    await trio.sleep(2)
    assert lives == ["born", "died", "born"]
    crash = only_child(tree).last_crash
    assert crash is not None
    assert (crash.error, crash.message) == ("ValueError", "boom")


async def test_child_tasks_end_with_the_actor(nursery: trio.Nursery) -> None:
    lives: list[str] = []
    ref = await parent(nursery, Branch("server"), lives)
    await wait_all_tasks_blocked()
    await ref.tell(Retire())
    await wait_all_tasks_blocked()
    assert lives == ["born", "died"]


async def test_an_actors_children_hang_below_it_and_restart_with_it(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    class Cast(Actor[Explode]):
        async def start(self) -> None:
            for name in ("t1", "t2"):
                branch = self.branch.child(name)
                await spawn(self.nursery, branch, Counter, mailbox_max=1, policy=POLICY)

        async def receive(self, message: Explode) -> None:
            raise ValueError("boom")

    tree = Branch("server")
    ref = await spawn(nursery, tree.child("cast"), Cast, mailbox_max=8, policy=POLICY)
    await ref.tell(Explode())
    await trio.sleep(0.5)
    assert (only_child(tree).children, only_child(tree).ended) == ((), 2)
    await trio.sleep(1)
    assert [child.name for child in only_child(tree).children] == ["t1", "t2"]


@dataclass(frozen=True)
class Heard:
    pass


class Silence(Actor[Heard | Explode]):
    """Notes when nothing was heard for ten seconds."""

    def __init__(self, notes: list[float]) -> None:
        self.notes = notes

    async def start(self) -> None:
        self.deadline = trio.current_time() + 10

    async def receive(self, message: Heard | Explode) -> None:
        match message:
            case Heard():
                self.deadline = trio.current_time() + 10
            case Explode():
                raise ValueError("boom")

    async def wake(self) -> None:
        assert self.deadline == math.inf
        self.notes.append(trio.current_time())


async def test_an_actor_wakes_once_at_its_last_deadline(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    notes: list[float] = []
    ref = await spawn(
        nursery, Branch("silence"), partial(Silence, notes), mailbox_max=8, policy=POLICY
    )
    for _ in range(3):
        await trio.sleep(7)
        await ref.tell(Heard())
    await trio.sleep(100)
    assert notes == [31]


async def test_a_new_incarnation_has_a_new_deadline(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    notes: list[float] = []
    ref = await spawn(
        nursery, Branch("silence"), partial(Silence, notes), mailbox_max=8, policy=POLICY
    )
    await trio.sleep(5)
    await ref.tell(Explode())
    await trio.sleep(100)
    assert notes == [16]


async def test_a_flood_of_messages_does_not_hold_up_the_deadline(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    order: list[str] = []

    class Busy(Actor[Add]):
        async def start(self) -> None:
            self.deadline = trio.current_time() + 10

        async def receive(self, message: Add) -> None:
            await trio.sleep(4)
            order.append(f"message {message.amount}")

        async def wake(self) -> None:
            order.append("woken")

    ref = await spawn(nursery, Branch("busy"), Busy, mailbox_max=8, policy=POLICY)
    for number in range(5):
        ref.tell_nowait(Add(number))
    await trio.sleep(60)
    assert order == ["message 0", "message 1", "message 2", "woken", "message 3", "message 4"]


async def test_a_child_task_tells_its_own_actor(nursery: trio.Nursery) -> None:
    class Streaming(Counter):
        async def start(self) -> None:
            self.nursery.start_soon(self.ref.tell, Add(5))

    ref = await spawn(nursery, Branch("streaming"), Streaming, mailbox_max=8, policy=POLICY)
    await wait_all_tasks_blocked()
    assert await ref.ask(Total()) == 5


async def test_the_tree_shows_how_full_the_mailbox_is_and_how_long_a_message_takes(
    autojump_clock: MockClock,
) -> None:
    class Sleepy(Actor[Add]):
        async def receive(self, message: Add) -> None:
            await trio.sleep(message.amount)

    tree = Branch("server")
    async with trio.open_nursery() as nursery:
        branch = tree.child("sleepy")
        ref = await spawn(nursery, branch, Sleepy, mailbox_max=8, policy=POLICY)
        assert only_child(tree).mailbox == Mailbox(depth=0, size=8, handled=0, busy_s=None)
        for amount in (10, 100, 1, 1):
            ref.tell_nowait(Add(amount))
        await trio.sleep(50)
        assert only_child(tree).mailbox == Mailbox(depth=2, size=8, handled=1, busy_s=40)
        nursery.cancel_scope.cancel()


async def test_the_tree_counts_messages_over_all_incarnations(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    tree = Branch("server")
    ref = await counter(nursery, tree)
    for message in (Add(1), Explode(), Add(1), Explode(), Add(1)):
        await ref.tell(message)
    assert await ref.ask(Total()) == 1
    await wait_all_tasks_blocked()
    node = only_child(tree)
    assert (node.state, node.incarnation, node.restarts) == (State.RUNNING, 3, 2)
    assert node.mailbox is not None
    assert node.mailbox.handled == 4


async def test_actors_stop_in_their_turn_among_ordered_children() -> None:
    stopped: list[str] = []

    class Named(Actor[Add]):
        async def start(self) -> None:
            self.nursery.start_soon(self.note_the_end)

        async def note_the_end(self) -> None:
            try:
                await trio.sleep_forever()
            finally:
                stopped.append(self.branch.name)

        async def receive(self, message: Add) -> None: ...

    async with open_children(stop_s=10) as children:
        for name in ("first", "second", "third"):
            await spawn(children, Branch(name), Named, mailbox_max=1, policy=POLICY)
        await wait_all_tasks_blocked()
    assert stopped == ["third", "second", "first"]
