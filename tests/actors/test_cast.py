"""Who finds whom, and who is woken by what."""

from __future__ import annotations

import trio

from understudy.actors.link import Link
from understudy.actors.task import Start, Told
from understudy.store.tasks import Holder
from understudy.testing.stage import Perform, Stage
from understudy.wire.daemon import Complete
from understudy.wire.frames import TasksPushed


async def next_task(link: Link, within_s: float) -> TasksPushed:
    with trio.fail_after(within_s):
        frame = await link.frames.receive()
    assert isinstance(frame, TasksPushed)
    return frame


def test_the_end_of_a_run_starts_its_successor_at_once(perform: Perform) -> None:
    """R3.10, R3.3: the agent has room again."""

    async def play(stage: Stage) -> None:
        narrow = await stage.board.agent("Narrow", max_concurrent_tasks=1)
        for title in ("First", "Second"):
            await stage.board.assign(await stage.board.issue(title), narrow)
            await trio.sleep(0.1)
        link = await stage.attach(slots=5)
        (first,) = (await next_task(link, 0.1)).payload
        holder = Holder(stage.board.workspace_id, first.id, first.claim_token)
        await stage.cast.report(first.id, lambda: Start(holder))
        await stage.cast.report(first.id, lambda: Told(holder, Complete(output="x")))
        (second,) = (await next_task(link, 0.1)).payload
        assert second.issue is not None
        assert second.issue.title == "Second"

    perform(play)


def test_two_calls_that_need_an_actor_at_once_find_the_same_one(perform: Perform) -> None:
    async def play(stage: Stage) -> None:
        other = await stage.board.runtime("other-daemon")
        found = []

        async def find() -> None:
            found.append(await stage.cast.attend(other))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(find)
        assert len(set(map(id, found))) == 1

    perform(play)


def test_a_runtime_of_another_provider_is_left_alone(perform: Perform) -> None:
    """R3.1"""

    async def play(stage: Stage) -> None:
        link = await stage.attach(slots=5)
        await next_or_none(link)
        elsewhere = await stage.board.agent("Elsewhere", provider="claude")
        done = await stage.board.assign(await stage.board.issue("Not here"), elsewhere)
        assert done.task is not None
        stage.cast.wake(done.task.workspace_id, done.task.provider)
        assert await next_or_none(link) is None

    perform(play)


async def next_or_none(link: Link) -> TasksPushed | None:
    with trio.move_on_after(40):
        return await next_task(link, 100)
    return None


def test_the_end_of_the_old_connection_leaves_the_new_one(perform: Perform) -> None:
    async def play(stage: Stage) -> None:
        old = await stage.attach(slots=1)
        new = await stage.attach(slots=1)
        stage.cast.detach(stage.board.runtime_id, old)
        await stage.queue("Here")
        assert len((await next_task(new, 0.1)).payload) == 1

    perform(play)


def test_work_that_comes_while_an_actor_starts_does_not_lose_its_runtime(perform: Perform) -> None:
    """Seed 5021 of the simulation."""

    async def play(stage: Stage) -> None:
        other = await stage.board.runtime("other-daemon")
        stage.outage.slow["select * from understudy.runtimes where id"] = 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.cast.attend, other)
            await trio.sleep(0.5)
            await stage.queue("Meanwhile")
        assert stage.cast.heard(other.id)

    perform(play)
