"""The runtime's actor in virtual time: liveness to the second, and no task it does not hear of."""

from __future__ import annotations

import pytest
import trio

from understudy.actors.link import Link
from understudy.core.lifecycle import Move
from understudy.store.errors import DatabaseUnavailable
from understudy.testing.stage import Perform, Stage
from understudy.wire.frames import TasksPushed


def pushed(link: Link) -> list[str]:
    """The titles of what was pushed since this was asked last."""
    titles: list[str] = []
    while True:
        try:
            frame = link.frames.receive_nowait()
        except (trio.WouldBlock, trio.EndOfChannel):
            return titles
        assert isinstance(frame, TasksPushed)
        titles += [task.issue.title for task in frame.payload if task.issue]


def test_a_runtime_is_offline_after_exactly_45_s_of_silence(perform: Perform) -> None:
    """R4.1, R4.4: also the first 45 s after a start."""

    async def play(stage: Stage) -> None:
        await trio.sleep(44.9)
        assert await stage.status() == "online"
        await trio.sleep(0.2)
        assert await stage.status() == "offline"
        assert await events(stage, "stale_sweep") == 1

    perform(play)


async def events(stage: Stage, action: str) -> int:
    found: int = await stage.database.pool.fetchval(
        "select count(*) from understudy.events where payload ->> 'action' = $1", action
    )
    return found


def test_each_sign_of_life_gives_another_45_s(perform: Perform) -> None:
    """R4.1"""

    async def play(stage: Stage) -> None:
        for _ in range(5):
            await trio.sleep(40)
            assert stage.cast.heard(stage.board.runtime_id)
        await trio.sleep(44.9)
        assert await stage.status() == "online"
        await trio.sleep(0.2)
        assert await stage.status() == "offline"

    perform(play)


def test_a_runtime_that_is_heard_again_comes_online(perform: Perform) -> None:
    """R4.1: and its actor takes up where the last one ended."""

    async def play(stage: Stage) -> None:
        await trio.sleep(50)
        assert not stage.cast.heard(stage.board.runtime_id)
        await stage.cast.attend(await stage.row())
        assert stage.cast.heard(stage.board.runtime_id)
        await trio.sleep(0.1)
        assert await stage.status() == "online"
        assert await events(stage, "heard_again") == 1

    perform(play)


def test_a_slow_database_does_not_make_a_runtime_silent(perform: Perform) -> None:
    """R4.8: its heartbeats came in, whatever its actor was waiting for meanwhile."""

    async def play(stage: Stage) -> None:
        await stage.attach(slots=1)
        stage.outage.slow["claim_tasks"] = 60
        await stage.queue("Slow")
        for _ in range(6):
            await trio.sleep(10)
            assert stage.cast.heard(stage.board.runtime_id)
        await trio.sleep(30)
        assert await stage.status() == "online"

    perform(play)


def test_a_runtime_heard_while_it_is_taken_off_stays(perform: Perform) -> None:
    """R4.1: the sweep and the heartbeat meet; the heartbeat wins, and the link is kept."""

    async def play(stage: Stage) -> None:
        link = await stage.attach(slots=5)
        await trio.sleep(44.5)
        pool = stage.database.pool
        taken = [await pool.acquire() for _ in range(8)]
        await trio.sleep(1)  # It is being marked offline, and waits for a connection.
        stage.cast.heard(stage.board.runtime_id)
        for connection in taken:
            pool.release(connection)
        await trio.sleep(5)
        assert await stage.status() == "online"
        await stage.queue("After all")
        await trio.sleep(0.1)
        assert pushed(link) == ["After all"]

    perform(play)


def test_a_runtime_that_another_node_has_registered_since_is_not_taken_off(
    perform: Perform,
) -> None:
    """R4.3: nodes share one database; each judges only what was registered with it last."""

    async def play(stage: Stage) -> None:
        await trio.sleep(30)
        await stage.board.runtime("first-daemon")  # Through the store, as another node would.
        await trio.sleep(30)
        assert await stage.status() == "online"

    perform(play)


def test_a_runtime_whose_registration_here_was_not_answered_is_not_taken_off(
    perform: Perform,
) -> None:
    """R4.1: the database knows of it before this node does (seed 920000598)."""

    async def play(stage: Stage) -> None:
        await trio.sleep(30)
        await stage.board.runtime("first-daemon")
        await stage.database.pool.execute(
            "update understudy.runtimes set node_id = $1", stage.cast.node_id
        )
        await trio.sleep(44)
        assert await stage.status() == "online"
        await trio.sleep(17)
        assert await stage.status() == "offline"

    perform(play)


def test_while_the_database_is_away_nobody_is_taken_off_and_then_who_is_silent(
    perform: Perform,
) -> None:
    async def play(stage: Stage) -> None:
        stage.outage.failing.add("update understudy.runtimes")
        await trio.sleep(100)
        assert await stage.status() == "online"
        stage.outage.failing.clear()
        await trio.sleep(3)
        assert await stage.status() == "offline"

    perform(play)


def test_a_task_reaches_an_idle_runtime_at_once(perform: Perform) -> None:
    """R3.10"""

    async def play(stage: Stage) -> None:
        link = await stage.attach(slots=2)
        await stage.queue("Now")
        await trio.lowlevel.checkpoint()
        with trio.fail_after(0.001):
            frame = await link.frames.receive()
        assert isinstance(frame, TasksPushed)

    perform(play)


def test_a_lost_wake_up_delays_a_task_by_30_s_at_most(perform: Perform) -> None:
    """R3.10"""

    async def play(stage: Stage) -> None:
        link = await stage.attach(slots=2)
        await trio.sleep(0.1)
        await stage.board.assign(await stage.board.issue("Unheard of"))
        stage.cast.heard(stage.board.runtime_id)
        await trio.sleep(30)
        assert pushed(link) == ["Unheard of"]

    perform(play)


def test_no_more_is_pushed_than_the_daemon_has_room_for(perform: Perform) -> None:
    """R3.10, R9.6"""

    async def play(stage: Stage) -> None:
        link = await stage.attach(slots=2)
        for number in range(4):
            await stage.queue(f"Issue {number}")
            await trio.sleep(0.1)
        await trio.sleep(1)
        assert pushed(link) == ["Issue 0", "Issue 1"]
        link.grant(3)
        await stage.cast.attach(stage.board.runtime_id, link)
        await trio.sleep(1)
        assert pushed(link) == ["Issue 2"]

    perform(play)


def test_a_claim_that_never_arrived_is_pushed_again_once_its_lease_has_run_out(
    perform: Perform,
) -> None:
    """R3.4, R3.8"""

    async def play(stage: Stage) -> None:
        lost = await stage.attach(slots=1)
        await stage.queue("Lost on the way")
        await trio.sleep(1)
        stage.cast.detach(stage.board.runtime_id, lost)
        lost.close()
        link = await stage.attach(slots=1)
        for _ in range(12):
            await trio.sleep(10)
            stage.cast.heard(stage.board.runtime_id)
        assert pushed(link) == ["Lost on the way"]

    perform(play)


def test_a_crashed_actor_comes_back_with_its_link(perform: Perform) -> None:
    """Start is recovery: an idle daemon sends no credit again."""

    async def play(stage: Stage) -> None:
        link = await stage.attach(slots=1)
        stage.outage.crashing["claim_tasks"] = 1
        await stage.queue("In spite of the crash")
        await trio.sleep(1.1)
        assert pushed(link) == ["In spite of the crash"]

    perform(play)


def test_an_actor_that_gives_up_ends_alone_and_the_next_sign_of_life_makes_another(
    perform: Perform,
) -> None:
    async def play(stage: Stage) -> None:
        other = await stage.board.runtime("other-daemon")
        await stage.cast.attend(other)
        link = await stage.attach(slots=1)
        stage.outage.crashing["claim_tasks"] = 4
        await stage.queue("At last")
        await trio.sleep(10)
        assert not stage.cast.heard(stage.board.runtime_id)
        assert stage.cast.heard(other.id)
        await stage.cast.attend(await stage.row())
        await trio.sleep(0.1)
        assert pushed(link) == ["At last"]

    perform(play)


def test_a_runtime_that_polls_gets_its_task_or_hears_that_the_database_is_away(
    perform: Perform,
) -> None:
    """R3.6"""

    async def play(stage: Stage) -> None:
        await stage.queue("Polled")
        stage.outage.failing.add("claim_tasks")
        with pytest.raises(DatabaseUnavailable):
            await stage.cast.claim(stage.board.runtime_id, slots=1, fence="full")
        stage.outage.failing.clear()
        (task,) = await stage.cast.claim(stage.board.runtime_id, slots=1, fence="full")
        assert task.move is Move.CLAIM
        assert await stage.cast.claim(stage.board.runtime_id, slots=1, fence="full") == []

    perform(play)


def test_a_deregistered_runtime_gets_nothing_more(perform: Perform) -> None:
    """R4.5: a task pushed to a daemon that leaves would wait for nobody."""

    async def play(stage: Stage) -> None:
        link = await stage.attach(slots=5)
        stage.cast.detach(stage.board.runtime_id)
        await stage.queue("Too late")
        await trio.sleep(1)
        assert pushed(link) == []

    perform(play)
