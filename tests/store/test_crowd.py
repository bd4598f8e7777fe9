"""A crowd at one queue on real PostgreSQL: every limit holds at every commit (R3.1-R3.4)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from random import Random
from uuid import UUID

import pytest
import trio

from understudy.server import PLANS
from understudy.store import schema, tasks
from understudy.store.connection import open_connection
from understudy.store.database import Database
from understudy.store.pool import Pool
from understudy.store.tasks import Holder, Outcome
from understudy.testing import crowd
from understudy.testing.board import Board, Claim
from understudy.testing.postgres import throwaway_database, throwaway_server

POOL = 16
REPORT = {"session_id": None, "work_dir": None}


@pytest.fixture(scope="module")
def commit_ordered() -> Iterator[str]:
    with (
        throwaway_server(settings=crowd.COMMIT_ORDERED) as server,
        throwaway_database(server) as dsn,
    ):
        yield dsn


@pytest.fixture
async def board(commit_ordered: str) -> AsyncIterator[Board]:
    pool = Pool(partial(open_connection, commit_ordered, options=PLANS), size=POOL)
    async with pool.connection() as connection:
        await schema.bring_up(connection)
    yield await Board.set_up(Database(pool, Random(1)))
    await pool.aclose()


class Crowd:
    """Claimers who wait for one another: what one ends, another may begin."""

    def __init__(self, board: Board, count: int, dice: Random) -> None:
        self.claims: list[Claim] = []
        self.ended = 0
        self._board = board
        self._count = count
        self._dice = dice
        self._somebody_ended = trio.Event()

    async def work(self, runtime_id: UUID) -> None:
        while self.ended < self._count:
            ended = self._somebody_ended
            slots = self._dice.randint(1, 5)
            claims = await self._board.claim(runtime_id=runtime_id, slots=slots)
            self.claims += claims
            assert len(claims) <= slots
            for claim in claims:
                await self._run(claim)
            if not claims and self.ended < self._count:
                await ended.wait()

    async def _run(self, claim: Claim) -> None:
        database = self._board.database
        held = Holder(claim.task.workspace_id, claim.task.id, claim.claim_token)
        started = await tasks.start(database, held)
        done = await tasks.complete(database, held, {"output": "x"}, **REPORT)
        assert (started.outcome, done.outcome) == (Outcome.MOVED, Outcome.MOVED)
        self.ended += 1
        self._somebody_ended.set()
        self._somebody_ended = trio.Event()


async def watch(database: Database, seen: list[list[str]]) -> None:
    while True:
        seen.append(await crowd.over_their_limit(database))
        await trio.sleep(0.05)


@pytest.mark.parametrize(
    ("claimers", "count"), [(8, 500), pytest.param(32, 5000, marks=pytest.mark.slow)]
)
async def test_a_crowd_takes_each_task_once_within_every_limit(
    board: Board, claimers: int, count: int
) -> None:
    """R3.1 to R3.4, R3.11: 20 agents with limits from 1 to 8, two of them on each issue."""
    agents = await crowd.hire(board)
    await crowd.fill(board, agents, tasks=count)
    places = [await board.runtime(f"daemon {number}") for number in range(claimers)]
    everybody, seen = Crowd(board, count, Random(2)), list[list[str]]()
    began = time.perf_counter()
    with trio.fail_after(300):
        async with trio.open_nursery() as watching:
            watching.start_soon(watch, board.database, seen)
            async with trio.open_nursery() as nursery:
                for place in places:
                    nursery.start_soon(everybody.work, place.id)
            watching.cancel_scope.cancel()
    took_s = time.perf_counter() - began
    assert len({claim.claim_token for claim in everybody.claims}) == count
    assert len({claim.task.id for claim in everybody.claims}) == count
    assert any(seen) is False, seen
    assert await crowd.wrongs(board.database, agents, tasks=count) == []
    print(  # noqa: T201  `pytest -s` shows it.
        f"{claimers} claimers, {count} tasks: {took_s:.1f} s, {count / took_s:.0f} lifecycles/s,"
        f" looked at {len(seen)} times meanwhile"
    )
