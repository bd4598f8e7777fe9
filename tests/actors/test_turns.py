"""Who looks when there may be work: one after the other, and nobody in vain (R3.9, R3.10)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from uuid import UUID

import trio

from understudy.actors.courier import Courier
from understudy.actors.link import Link
from understudy.actors.place import FOR_ANYBODY, PATIENCE_S, POLL_S, Place
from understudy.actors.presence import Presence
from understudy.actors.sweepers import Sweepers
from understudy.actors.task import Start, Told
from understudy.core.records import Agent, Task
from understudy.core.tree import Branch
from understudy.store.tasks import Holder
from understudy.testing.board import PROVIDER
from understudy.testing.stage import Perform, Stage
from understudy.wire.daemon import ClaimedTask, Complete
from understudy.wire.frames import TaskAvailable, TasksPushed

AT_ONCE_S = 0.1
SPENT = "update understudy.runtimes set quota_resets_at = understudy.now() + interval '100 s'"
LIFTED = "update understudy.runtimes set quota_resets_at = null"


@dataclass(frozen=True)
class Machine:
    id: UUID
    link: Link

    def got(self) -> list[ClaimedTask]:
        """What was pushed since this was asked last."""
        found: list[ClaimedTask] = []
        while True:
            try:
                frame = self.link.frames.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel):
                return found
            assert isinstance(frame, TasksPushed)
            found += frame.payload


async def machine(stage: Stage, name: str, *, slots: int = 1) -> Machine:
    row = await stage.board.runtime(name)
    link = Link()
    link.grant(slots)
    await stage.cast.attend(row)
    await stage.cast.attach(row.id, link)
    return Machine(row.id, link)


async def fleet(stage: Stage, machines: int, *, slots: int = 1) -> list[Machine]:
    found = [await machine(stage, f"daemon {number}", slots=slots) for number in range(machines)]
    await trio.sleep(1)
    return found


@asynccontextmanager
async def carrying(stage: Stage) -> AsyncIterator[None]:
    """With the courier at work, as on every node."""
    async with trio.open_nursery() as nursery:
        sweepers = Sweepers([], lambda: None)
        await nursery.start(sweepers.run, Branch("sweepers"))
        await trio.sleep(1)  # Until the tail is settled.
        await nursery.start(Courier(stage.cast, sweepers).run)
        yield
        nursery.cancel_scope.cancel()


@contextmanager
def claiming(stage: Stage, expected: int) -> Iterator[None]:
    """So many claims are made within it."""
    before = stage.outage.claims()
    yield
    assert stage.outage.claims() - before == expected


async def beat(stage: Stage, machines: list[Machine], seconds: float) -> None:
    while seconds > 0:
        for each in machines:
            assert stage.cast.heard(each.id)
        await trio.sleep(min(seconds, 15))
        seconds -= 15


async def commit(stage: Stage, title: str, agent: Agent | None = None) -> Task:
    """Assigned, and nobody hears of it."""
    done = await stage.board.assign(await stage.board.issue(title), agent)
    assert done.task is not None
    return done.task


async def busy(stage: Stage) -> Agent:
    """An agent that has all that it may do at a time."""
    narrow = await stage.board.agent("Narrow", max_concurrent_tasks=1)
    stage.cast.wake_for(await commit(stage, "First", narrow))
    await trio.sleep(AT_ONCE_S)
    return narrow


def counts(machines: list[Machine]) -> list[int]:
    return [len(each.got()) for each in machines]


def test_an_enqueue_is_claimed_by_one_of_a_hundred_idle_machines_and_costs_one_claim(
    perform: Perform,
) -> None:
    """R3.10: whatever the size of the fleet; its event is no news to who committed it."""

    async def play(stage: Stage) -> None:
        machines = await fleet(stage, 100)
        async with carrying(stage):
            await trio.sleep(1)
            with claiming(stage, 1):
                await stage.queue("Now")
                await trio.sleep(AT_ONCE_S)
                assert sum(counts(machines)) == 1
                await trio.sleep(3)

    perform(play)


def test_an_enqueue_at_another_node_costs_this_one_a_single_claim(perform: Perform) -> None:
    """R3.10"""

    async def play(stage: Stage) -> None:
        machines = await fleet(stage, 30)
        async with carrying(stage):
            await trio.sleep(1)
            with claiming(stage, 1):
                await commit(stage, "There")
                await trio.sleep(3)
                assert sum(counts(machines)) == 1

    perform(play)


def test_the_end_of_a_run_costs_one_claim_and_starts_its_successor_at_once(
    perform: Perform,
) -> None:
    """R3.10, R3.3: also where the machine of the run has no room yet."""

    async def play(stage: Stage) -> None:
        machines = await fleet(stage, 30)
        narrow = await busy(stage)
        (first,) = [task for each in machines for task in each.got()]
        stage.cast.wake_for(await commit(stage, "Second", narrow))
        holder = Holder(stage.board.workspace_id, first.id, first.claim_token)
        await stage.cast.report(first.id, lambda: Start(holder))
        await trio.sleep(AT_ONCE_S)
        with claiming(stage, 1):
            await stage.cast.report(first.id, lambda: Told(holder, Complete(output="x")))
            await trio.sleep(AT_ONCE_S)
            assert sum(counts(machines)) == 1

    perform(play)


def test_work_of_an_agent_that_has_no_room_costs_one_claim_however_many_machines_idle(
    perform: Perform,
) -> None:
    """R3.3"""

    async def play(stage: Stage) -> None:
        machines = await fleet(stage, 30)
        narrow = await busy(stage)
        with claiming(stage, 1):
            stage.cast.wake_for(await commit(stage, "Second", narrow))
            await trio.sleep(AT_ONCE_S)
        assert sum(counts(machines)) == 1

    perform(play)


def test_idle_machines_ask_the_database_once_in_30_s_however_many_they_are(
    perform: Perform,
) -> None:
    """R3.9, R4.3"""

    async def play(stage: Stage) -> None:
        machines = await fleet(stage, 100)
        before = stage.outage.claims()
        await beat(stage, machines, 10 * POLL_S)
        assert 9 <= stage.outage.claims() - before <= 10

    perform(play)


def test_machines_that_poll_ask_the_database_once_for_a_change_however_many_they_are(
    perform: Perform,
) -> None:
    """R3.9: what one of them was told is true for all."""

    async def play(stage: Stage) -> None:
        rows = [await stage.board.runtime(f"daemon {number}") for number in range(30)]
        for row in rows:
            await stage.cast.attend(row)
        for _ in range(2):
            stage.cast.wake(stage.board.workspace_id, PROVIDER)
            with claiming(stage, 1):
                for row in rows:
                    assert await stage.cast.claim(row.id, slots=1, fence="full") == []

    perform(play)


def test_a_lost_wake_up_costs_a_poll_and_no_more(perform: Perform) -> None:
    """R3.10: whoever polls, also for one machine among many."""

    async def play(stage: Stage) -> None:
        machines = await fleet(stage, 20)
        bound = await stage.board.agent("Bound", runtime_id=machines[-1].id)
        await commit(stage, "For anybody")
        await commit(stage, "For one", bound)
        await beat(stage, machines, POLL_S)
        titles = {task.issue.title for each in machines for task in each.got() if task.issue}
        assert titles == {"For anybody", "For one"}

    perform(play)


def test_two_enqueues_at_once_find_two_machines_with_one_slot_each(perform: Perform) -> None:
    """R3.10: the second does not wait for the first one's machine."""

    async def play(stage: Stage) -> None:
        machines = await fleet(stage, 3)
        first, second = await commit(stage, "First"), await commit(stage, "Second")
        stage.cast.wake_for(first)
        stage.cast.wake_for(second)
        await trio.sleep(AT_ONCE_S)
        assert sorted(counts(machines)) == [0, 1, 1]

    perform(play)


def test_a_machine_that_is_full_passes_the_rest_on(perform: Perform) -> None:
    """R3.10: one wake-up for five tasks fills as many machines as it takes."""

    async def play(stage: Stage) -> None:
        machines = await fleet(stage, 4, slots=2)
        for number in range(4):
            await commit(stage, f"Issue {number}")
        with claiming(stage, 3):
            await stage.queue("The last")
            await trio.sleep(AT_ONCE_S)
            assert sorted(counts(machines)) == [0, 1, 2, 2]

    perform(play)


def test_a_machine_that_goes_away_between_its_hint_and_its_look_is_replaced_at_once(
    perform: Perform,
) -> None:
    """R3.10"""

    async def play(stage: Stage) -> None:
        machines = await fleet(stage, 3)
        row = await commit(stage, "Passed on")
        stage.cast.wake_for(row)
        (asked,) = [each for each in machines if is_hinted(stage, each)]
        stage.cast.detach(asked.id)
        await trio.sleep(AT_ONCE_S)
        assert sum(counts(machines)) == 1

    perform(play)


def is_hinted(stage: Stage, each: Machine) -> bool:
    presence = stage.cast.presence(each.id)
    return presence is not None and presence.is_hinted


def test_a_machine_that_is_removed_between_its_hint_and_its_look_is_replaced_at_once(
    perform: Perform,
) -> None:
    """R3.10, R4.9: its actor ends with the hint in its mailbox."""

    async def play(stage: Stage) -> None:
        machines = await fleet(stage, 3)
        stage.outage.slow["select * from understudy.runtimes where id"] = 1
        row = await commit(stage, "Passed on")
        asked = machines[0]
        stage.cast.forget(asked.id)  # It comes first in the mailbox.
        stage.outage.slow.clear()
        stage.cast.wake_for(row)
        await trio.sleep(AT_ONCE_S)
        assert sum(counts(machines[1:])) == 1

    perform(play)


def test_a_machine_whose_actor_ends_with_a_hint_is_replaced_at_once(perform: Perform) -> None:
    """R3.10: it was silent for too long."""

    async def play(stage: Stage) -> None:
        machines = await fleet(stage, 2)
        quiet, other = machines
        await beat(stage, machines, 1)
        await beat(stage, [other], 43)
        row = await commit(stage, "Passed on")
        pool = stage.database.pool
        taken = [await pool.acquire() for _ in range(8)]
        await beat(stage, [other], 2)  # The quiet one is being marked offline.
        stage.cast.wake(row.workspace_id, PROVIDER, quiet.id)
        assert is_hinted(stage, quiet)
        for connection in taken:
            pool.release(connection)
        await trio.sleep(AT_ONCE_S)
        assert stage.cast.runtimes.get(quiet.id) is None
        assert len(other.got()) == 1

    perform(play)


def test_a_task_reaches_the_one_machine_that_it_is_bound_to_at_once_and_for_one_claim(
    perform: Perform,
) -> None:
    """R3.1, R3.10"""

    async def play(stage: Stage) -> None:
        machines = await fleet(stage, 30)
        bound = await stage.board.agent("Bound", runtime_id=machines[17].id)
        with claiming(stage, 1):
            stage.cast.wake_for(await commit(stage, "Here", bound))
            await trio.sleep(AT_ONCE_S)
            assert len(machines[17].got()) == 1

    perform(play)


def test_whoever_looks_finds_out_for_which_machine_a_task_waits(perform: Perform) -> None:
    """R3.10: a comment wakes a workspace, and nobody knows what for."""

    async def play(stage: Stage) -> None:
        machines = await fleet(stage, 30)
        bound = await stage.board.agent("Bound", runtime_id=machines[17].id)
        await commit(stage, "Here", bound)
        with claiming(stage, 2):
            stage.cast.wake_workspace(stage.board.workspace_id)
            await trio.sleep(AT_ONCE_S)
            assert len(machines[17].got()) == 1

    perform(play)


def test_a_machine_without_quota_passes_the_work_on(perform: Perform) -> None:
    """R5.2: its turn is not the end of the round."""

    async def play(stage: Stage) -> None:
        spent = await machine(stage, "spent")
        await stage.database.pool.execute(SPENT)
        rich = await machine(stage, "rich")
        await stage.database.pool.execute(LIFTED + " where daemon_id = 'rich'")
        for number in range(2):
            await stage.queue(f"Issue {number}")
            await trio.sleep(AT_ONCE_S)
            assert (len(spent.got()), len(rich.got())) == (0, 1)
            rich.link.grant(number + 2)
            await stage.cast.attach(rich.id, rich.link)

    perform(play)


def test_machines_without_quota_are_not_all_asked_at_each_change(perform: Perform) -> None:
    """R5.2: their account is empty, and the queue is not."""

    async def play(stage: Stage) -> None:
        machines = await fleet(stage, 20)
        await stage.database.pool.execute(SPENT)
        for number in range(21):
            await stage.queue(f"Issue {number}")
            await trio.sleep(AT_ONCE_S)
        with claiming(stage, 1):
            await stage.queue("Another")
            await trio.sleep(AT_ONCE_S)
        assert sum(counts(machines)) == 0

    perform(play)


def test_machines_whose_quota_a_person_has_lifted_are_all_asked_again(perform: Perform) -> None:
    """R5.2: or a person runs something again."""

    async def play(stage: Stage) -> None:
        machines = await fleet(stage, 4)
        await stage.database.pool.execute(SPENT)
        for number in range(6):
            await stage.queue(f"Issue {number}")
            await trio.sleep(AT_ONCE_S)
        await stage.database.pool.execute(LIFTED)
        await stage.queue("Again")
        await trio.sleep(AT_ONCE_S)
        assert counts(machines) == [1, 1, 1, 1]

    perform(play)


def test_a_machine_takes_work_at_the_moment_its_quota_resets(perform: Perform) -> None:
    """R5.2: also what is bound to it."""

    async def play(stage: Stage) -> None:
        spent, other = await fleet(stage, 2)
        bound = await stage.board.agent("Bound", runtime_id=spent.id)
        await stage.database.pool.execute(SPENT)
        stage.cast.wake_for(await commit(stage, "Waits", bound))
        await beat(stage, [spent, other], 99)
        assert counts([spent, other]) == [0, 0]
        await trio.sleep(1 + AT_ONCE_S)
        assert counts([spent, other]) == [1, 0]

    perform(play)


def test_a_look_that_failed_is_repeated_soon(perform: Perform) -> None:
    """R3.10: by one machine, not by all of them."""

    async def play(stage: Stage) -> None:
        machines = await fleet(stage, 20)
        stage.outage.failing.add("claim_tasks")
        with claiming(stage, 3):
            await stage.queue("Delayed")
            await trio.sleep(3 * PATIENCE_S - AT_ONCE_S)
        stage.outage.failing.clear()
        await trio.sleep(2 * AT_ONCE_S)
        assert sum(counts(machines)) == 1

    perform(play)


def test_a_look_that_hangs_is_made_by_another_once_that_one_is_heard(perform: Perform) -> None:
    """R3.10: to wait for one answer is to let all of them idle."""

    async def play(stage: Stage) -> None:
        machines = await fleet(stage, 2)
        stage.outage.slow["claim_tasks"] = 300
        await stage.queue("Delayed")
        await trio.sleep(AT_ONCE_S)
        stage.outage.slow.clear()
        assert sum(counts(machines)) == 0
        await trio.sleep(PATIENCE_S)
        await beat(stage, machines, AT_ONCE_S)
        assert sum(counts(machines)) == 1

    perform(play)


def test_a_machine_that_grants_no_credit_is_told_and_so_is_the_next(perform: Perform) -> None:
    """R3.10: it may or may not ask, so that another looks, too."""

    async def play(stage: Stage) -> None:
        old = Link()
        row = await stage.board.runtime("old")
        await stage.cast.attend(row)
        await stage.cast.attach(row.id, old)
        await trio.sleep(AT_ONCE_S)
        new = await machine(stage, "new")
        while isinstance(frame_of(old), TaskAvailable):
            pass
        row_of_task = await commit(stage, "Now")
        stage.cast.wake(row_of_task.workspace_id, PROVIDER, row.id)
        await trio.sleep(AT_ONCE_S)
        assert isinstance(frame_of(old), TaskAvailable)
        assert len(new.got()) == 1

    perform(play)


def frame_of(link: Link) -> object:
    try:
        return link.frames.receive_nowait()
    except trio.WouldBlock:
        return None


def test_work_for_a_machine_whose_only_slot_is_set_aside_is_not_forgotten(
    perform: Perform,
) -> None:
    """R3.10: another runtime of its daemon looks, and will find nothing."""

    async def play(stage: Stage) -> None:
        (only,) = await fleet(stage, 1)
        slots = await only.link.reserve(1)
        await stage.queue("Now")
        await trio.sleep(AT_ONCE_S)
        only.link.settle(slots, used=0)
        await trio.sleep(AT_ONCE_S)
        assert len(only.got()) == 1

    perform(play)


def test_what_is_queued_again_is_news_though_this_node_has_queued_it_before(
    perform: Perform,
) -> None:
    """R3.8, R3.9: whoever gives it back; every other move is made once."""

    async def play(stage: Stage) -> None:
        machines = await fleet(stage, 2)
        async with carrying(stage):
            await trio.sleep(1)
            row = await commit(stage, "First")
            stage.cast.wake_for(row)
            stage.cast.wake_for(row)  # Assigned twice: the second one has no event.
            await trio.sleep(3)
            assert sum(counts(machines)) == 1
            await stage.database.pool.execute(
                "update understudy.tasks set status = 'queued', move = 'requeue',"
                " runtime_id = null, claim_token = null, fence = 'none', claim_expires_at = null,"
                " dispatched_at = null"
            )
            await trio.sleep(3)
            assert sum(counts(machines)) == 1

    perform(play)


async def test_an_older_look_does_not_overrule_a_newer_one() -> None:
    """R3.9"""
    place, who = Place(), UUID(int=1)
    place.changed()
    place.looked(1, frozenset({UUID(int=2)}))
    place.looked(0, FOR_ANYBODY)
    assert place.has_nothing_for(who)
    assert not place.has_nothing_for(UUID(int=2))
    place.changed()
    assert not place.has_nothing_for(who)


async def test_turns_are_taken_in_line_and_nobody_has_two_at_one_change() -> None:
    """R3.10: so tasks are spread over the machines, and a round ends."""
    place = Place()
    presences = [Presence(UUID(int=9), "d", PROVIDER, 0.0, link=Link()) for _ in range(3)]
    for number, presence in enumerate(presences):
        place.join(UUID(int=number), presence)
    place.changed()
    place.to_the_end(UUID(int=0))
    assert [each.int for each in place.in_line(spares_barred=False)] == [1, 2, 0]
    presences[1].changes_seen = place.changes
    assert [each.int for each in place.in_line(spares_barred=False)] == [2, 0]
    place.changed()
    assert [each.int for each in place.in_line(spares_barred=False)] == [1, 2, 0]
