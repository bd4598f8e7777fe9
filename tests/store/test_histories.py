"""Random histories of all that people, machines and sweeps do: the laws hold after each step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Final
from uuid import UUID

import pytest
import trio

from understudy.core.failures import POLICIES, FailureReason
from understudy.core.leases import Leases
from understudy.core.lifecycle import ACTIVE, TERMINAL, Move, Status, move
from understudy.core.records import Agent, Issue
from understudy.store import issues, runtimes, sweeps, tasks
from understudy.store.connection import Record, open_connection
from understudy.store.database import Database
from understudy.store.pool import Pool
from understudy.store.tasks import Failure, Fence
from understudy.testing.story import Story, held
from understudy.wire.daemon import ClaimedTask

LEASES: Final = Leases()
PENDING: Final = {"queued", "dispatched"}
IN_FLIGHT: Final = {"dispatched", "running"}
PAUSES_S: Final = (0.001, 1.0, 10.0, 61.0, 400.0, 4000.0, 11_000.0)


@dataclass
class World:
    """What a history can speak of, and what it has seen."""

    story: Story
    dice: Random
    agents: list[Agent]
    issues: list[Issue]
    places: list[UUID]
    claims: list[ClaimedTask] = field(default_factory=list)
    ended: dict[UUID, str] = field(default_factory=dict)
    """What has come to an end, and how."""
    log: list[str] = field(default_factory=list)

    @property
    def issue(self) -> Issue:
        return self.dice.choice(self.issues)

    @property
    def place(self) -> UUID:
        return self.dice.choice(self.places)

    def claim(self) -> ClaimedTask | None:
        """One of the latest, mostly; and one long over, now and then."""
        late = self.claims[-6:] if self.dice.random() < 0.85 else self.claims
        return self.dice.choice(late) if late else None


Step = Callable[[World], Awaitable[object]]


async def assign(world: World) -> object:
    return await world.story.board.assign(world.issue, world.dice.choice(world.agents))


async def comment(world: World) -> object:
    names = [f"@{agent.name}" for agent in world.agents if world.dice.random() < 0.5]
    return await world.story.says(world.issue, " and ".join(["Look", *names]))


async def speak(world: World) -> object:
    """An agent calls others while it runs."""
    claim = world.claim()
    if claim is None or claim.issue_id is None:
        return None
    if (await world.story.row(claim.id)).status is not Status.RUNNING:
        return None
    (issue,) = [each for each in world.issues if each.id == claim.issue_id]
    name = world.dice.choice(world.agents).name
    return await world.story.says(issue, f"@{name} your turn", by=claim)


async def take(world: World) -> object:
    slots = world.dice.randint(0, 4)
    fence: Fence = world.dice.choice(("full", "full", "lease", "none"))
    taken = await world.story.claim(runtime_id=world.place, slots=slots, fence=fence)
    world.claims += taken
    return taken


async def start(world: World) -> object:
    claim = world.claim()
    return claim and await tasks.start(world.story.database, held(claim))


async def renew(world: World) -> object:
    claim = world.claim()
    return claim and await tasks.renew(world.story.database, held(claim), by_s=45)


async def complete(world: World) -> object:
    """Also late, and again, and under a token that is no longer the task's."""
    claim = world.claim()
    name = world.dice.choice(world.agents).name
    return claim and await world.story.complete(claim, world.dice.choice(("x", "", f"@{name} see")))


async def report_late(world: World) -> object:
    """A result of what the server gave up."""
    given_up = [
        row["id"]
        for row in await world.story.database.pool.fetch(
            "select id from understudy.tasks where move in ('orphan', 'lose', 'time_out')"
        )
    ]
    late = [claim for claim in world.claims if claim.id in given_up]
    return late and await world.story.complete(world.dice.choice(late))


async def fail(world: World) -> object:
    claim = world.claim()
    if claim is None:
        return None
    failure = Failure(
        world.dice.choice(list(FailureReason)),
        "x",
        retry_after_s=world.dice.choice((None, 5.0, 5000.0)),
        refused_session=world.dice.choice((None, "s1", "s2")),
    )
    report = {"session_id": world.dice.choice((None, "s1", "s2")), "work_dir": "/w"}
    return await tasks.fail(world.story.database, held(claim), failure, **report)


async def stop(world: World) -> object:
    claim = world.claim()
    return claim and await world.story.stop(claim)


async def cancel(world: World) -> object:
    rows = await tasks.of_issue(world.story.database, world.issue.id)
    return rows and await world.story.cancel(world.dice.choice(rows).id)


async def cancel_issue(world: World) -> object:
    issue, by = world.issue, world.story.board.user_id
    return await tasks.cancel_issue(world.story.database, issue.workspace_id, issue.id, by=by)


async def set_status(world: World) -> object:
    status = world.dice.choice(("backlog", "todo", "in_review", "done"))
    issue = world.issue
    return await issues.set_status(world.story.database, issue.workspace_id, issue.id, status)


async def rerun(world: World) -> object:
    issue, dice = world.issue, world.dice
    rows = await tasks.of_issue(world.story.database, issue.id)
    again = dice.choice(rows).id if rows and dice.random() < 0.3 else None
    wanted = {"task_id": again, "fresh": dice.random() < 0.3, "after": dice.random() < 0.5}
    return await world.story.rerun(issue, **wanted)


async def go_offline(world: World) -> object:
    return await runtimes.go_offline(world.story.database, [world.place], action="stale_sweep")


async def come_back(world: World) -> object:
    node = UUID(int=1)
    return await runtimes.take_over(world.story.database, world.place, node)


async def recover(world: World) -> object:
    rows = await world.story.database.pool.fetch(
        "select id from understudy.tasks where status in ('dispatched', 'running')"
    )
    kept = [row["id"] for row in rows if world.dice.random() < 0.7]
    where = world.story.board.workspace_id, world.place
    same = world.dice.random() < 0.5
    return await sweeps.recover(world.story.database, *where, kept=kept, same_process=same)


async def lose(world: World) -> object:
    return await sweeps.lose(world.story.database, LEASES)


async def time_out(world: World) -> object:
    return await sweeps.time_out(world.story.database, LEASES)


async def expire(world: World) -> object:
    return await sweeps.expire(world.story.database, LEASES)


async def promote(world: World) -> object:
    return await sweeps.promote(world.story.database)


async def wait(world: World) -> object:
    await world.story.later(world.dice.choice(PAUSES_S))
    return None


STEPS: Final[dict[Step, int]] = {
    assign: 4, comment: 5, speak: 2, take: 14, start: 14, renew: 1, complete: 9, fail: 9, stop: 5,
    cancel: 2, cancel_issue: 1, set_status: 2, rerun: 3, go_offline: 1, come_back: 2, recover: 5,
    lose: 3, time_out: 3, expire: 3, promote: 9, report_late: 3, wait: 15,
}  # fmt: skip


async def new_world(story: Story, dice: Random) -> World:
    agents = [story.board.nia, await story.board.agent("Zed", max_concurrent_tasks=1)]
    agents.append(await story.board.agent("Zed Two", runtime_id=story.board.runtime_id))
    other = await story.board.runtime("other-daemon")
    made = [await story.board.issue(f"Issue {n}", priority=n) for n in range(4)]
    await story.database.pool.execute("truncate understudy.events restart identity")
    return World(story, dice, agents, made, [story.board.runtime_id, other.id])


async def live(story: Story, seed: int, steps: int) -> set[str]:
    """One history; which moves were made in it."""
    world = await new_world(story, Random(seed))
    moves: set[str] = set()
    try:
        for _ in range(steps):
            (step,) = world.dice.choices([*STEPS], [*STEPS.values()])
            world.log.append(f"{story.at_s:10.3f} {step.__name__}")
            await step(world)
            moves = await check(world)
            await story.later(0.001)
    except AssertionError as error:
        error.add_note("\n".join(["", *world.log[-40:], f"seed {seed}"]))
        raise
    return moves


async def check(world: World) -> set[str]:
    pool = world.story.database.pool
    rows = {row["id"]: row for row in await pool.fetch("select * from understudy.tasks")}
    events = await pool.fetch("select * from understudy.events where payload ? 'move' order by id")
    paths_are_legal(rows, events)
    limits_hold(world, rows.values())
    retries_are_born(rows)
    ends_are_ends(world, rows.values())
    calls_are_heard(rows, await pool.fetch("select * from understudy.calls"))
    issues_are_worked_on(rows.values(), await pool.fetch("select * from understudy.issues"))
    agents_are_as_told(
        rows.values(),
        await pool.fetch(
            "select payload from understudy.events where kind = 'agent:status' order by id"
        ),
    )
    return {event["payload"]["move"] for event in events}


def paths_are_legal(rows: dict[UUID, Record], events: Iterable[Record]) -> None:
    """R2.2, R2.4: the events of a row are a path of the table, and end where the row is."""
    status: dict[UUID, Status] = {}
    for event in events:
        made = event["payload"]
        status[event["task_id"]] = move(status.get(event["task_id"]), Move(made["move"]))
        assert status[event["task_id"]] == made["status"]
    assert status == {task_id: row["status"] for task_id, row in rows.items()}


def limits_hold(world: World, rows: Iterable[Record]) -> None:
    """R2.5, R3.3"""
    rows = list(rows)
    pending = Counter((r["issue_id"], r["agent_id"]) for r in rows if r["status"] in PENDING)
    assert set(pending.values()) <= {1}
    at_work = Counter((r["issue_id"], r["agent_id"]) for r in rows if r["status"] in IN_FLIGHT)
    assert set(at_work.values()) <= {1}
    for agent in world.agents:
        runs = sum(n for (_, agent_id), n in at_work.items() if agent_id == agent.id)
        assert runs <= agent.max_concurrent_tasks


def retries_are_born(rows: dict[UUID, Record]) -> None:
    """R5.3, R5.4, R5.7: none that may not be, each with the next number; no line splits."""
    for row in rows.values():
        child = rows.get(row["retry_task_id"]) if row["retry_task_id"] else None
        assert (child is None) == (row["retry_task_id"] is None)
        if child is not None:
            assert child["parent_task_id"] == row["id"]
            assert child["attempt"] == row["attempt"] + 1
            assert child["hops"] == row["hops"]
            assert child["rank"] == row["rank"]
        if row["status"] == "failed":
            policy = POLICIES[row["failure_reason"]]
            attempts_max = policy.attempts_max or row["max_attempts"]
            may_be = policy.is_retryable and row["attempt"] < attempts_max
            assert child is None or may_be
            assert child is not None or not may_be or was_replaced(row, rows.values())


def was_replaced(failed: Record, rows: Iterable[Record]) -> bool:
    """A person's rerun waited already."""
    return any(
        row["issue_id"] == failed["issue_id"]
        and row["agent_id"] == failed["agent_id"]
        and row["id"] != failed["id"]
        and row["created_at"] <= failed["completed_at"]
        and (row["dispatched_at"] is None or row["dispatched_at"] >= failed["completed_at"])
        for row in rows
    )


def ends_are_ends(world: World, rows: Iterable[Record]) -> None:
    """R6.5: nothing leaves a terminal status but by `complete_late`."""
    for row in rows:
        before = world.ended.get(row["id"])
        if before is not None and before != row["status"]:
            assert (before, row["status"], row["move"]) == ("failed", "completed", "complete_late")
        if Status(row["status"]) in TERMINAL:
            world.ended[row["id"]] = row["status"]
            assert row["completed_at"] is not None
            assert (row["failure_reason"] is None) == (row["status"] == "completed")


def calls_are_heard(rows: dict[UUID, Record], calls: Iterable[Record]) -> None:
    """R10.2: answered by a task that was told it, waiting for one that goes on, or cancelled."""
    for call in calls:
        if call["task_id"] is None:
            assert any(
                row["issue_id"] == call["issue_id"]
                and row["agent_id"] == call["agent_id"]
                and Status(row["status"]) in ACTIVE  # It may have been given back since.
                for row in rows.values()
            )
            continue
        row = rows[call["task_id"]]
        assert (row["issue_id"], row["agent_id"]) == (call["issue_id"], call["agent_id"])
        is_dropped = row["cancel_requested_at"] and call["created_at"] < row["cancel_requested_at"]
        if row["status"] in {"running", "completed", "dispatched"} and not is_dropped:
            assert call["created_at"] <= row["dispatched_at"]


def issues_are_worked_on(rows: Iterable[Record], board: Iterable[Record]) -> None:
    """R5.6"""
    active = {row["issue_id"] for row in rows if Status(row["status"]) in ACTIVE}
    assert {row["id"] for row in board if row["status"] == "in_progress"} <= active


def agents_are_as_told(rows: Iterable[Record], told: Iterable[Record]) -> None:
    """R2.3: the last event of an agent says what is true."""
    said: dict[str, str] = {}
    for event in told:
        said[event["payload"]["agent_id"]] = event["payload"]["status"]
    working = {str(row["agent_id"]) for row in rows if row["status"] in IN_FLIGHT}
    assert {agent_id for agent_id, status in said.items() if status == "working"} == working


async def test_no_history_breaks_a_law(story: Story, request: pytest.FixtureRequest) -> None:
    """R2.1 to R2.5, R3.3, R5.3 to R5.7, R6.5, R10.2"""
    moves = await live(story, request.config.getoption("--seed"), 250)
    assert {"enqueue", "claim"} <= moves


@pytest.mark.slow
@pytest.mark.parametrize("number", range(12))
async def test_no_long_history_breaks_a_law(
    story: Story, request: pytest.FixtureRequest, number: int
) -> None:
    """The same, for long enough that most moves have been made in each."""
    moves = await live(story, request.config.getoption("--seed") + number, 1000)
    assert len(moves) >= 10


AT_ONCE: Final = {step: n for step, n in STEPS.items() if step is not wait}
WORKERS: Final = 8


async def lapse(world: World) -> None:
    """Whatever is claimed was claimed too long ago."""
    await world.story.database.pool.execute(
        "update understudy.tasks set claim_expires_at = '2020-1-1' where id in (select id"
        " from understudy.tasks where status = 'dispatched' for update skip locked)"
    )


async def work(world: World, steps: int) -> None:
    for _ in range(steps):
        (step,) = world.dice.choices([*AT_ONCE, lapse], [*AT_ONCE.values(), 2])
        await step(world)


async def test_whatever_is_done_at_once_nobody_waits_in_a_circle(
    story: Story, dsn: str, request: pytest.FixtureRequest
) -> None:
    """R2.1, R2.3: issues by id, their tasks, and agents last; the laws hold in the end."""
    seed = request.config.getoption("--seed")
    pool = Pool(partial(open_connection, dsn), size=WORKERS)
    crowd = Story(story.board.on(Database(pool, Random(seed))))
    world = await new_world(crowd, Random(seed))
    with trio.fail_after(90):
        async with trio.open_nursery() as nursery:
            for _ in range(WORKERS):
                nursery.start_soon(work, world, 60)
    await check(world)
    circles = await pool.fetchval(
        "select deadlocks from pg_stat_database where datname = current_database()"
    )
    await pool.aclose()
    assert circles == 0
