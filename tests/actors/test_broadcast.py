"""The tail of the event table: nothing missed, nothing twice, whatever order commits come in."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID, uuid4

import psycopg
import pytest
import trio

from understudy.actors import broadcast
from understudy.actors.broadcast import POLL_S
from understudy.testing.stage import Perform, Stage

INSERT = "insert into understudy.events (workspace_id, kind, payload) values (%s, %s, '{}')"
End = Callable[[psycopg.Connection], None]


def told(stage: Stage) -> list[str]:
    return [event.kind for event in stage.tail.recent if event.kind != "daemon:register"]


def write(dsn: str, kind: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute(INSERT, (uuid4(), kind))


@pytest.mark.parametrize(
    ("end", "expected"),
    [(psycopg.Connection.commit, ["held", "free"]), (psycopg.Connection.rollback, ["free"])],
    ids=["commit", "rollback"],
)
def test_an_open_transaction_holds_back_what_was_drawn_after_it(
    perform: Perform, dsn: str, end: End, expected: list[str]
) -> None:
    """R11.4: in commit order, and a rolled back id leaves no hole that is waited for."""

    async def play(stage: Stage) -> None:
        await trio.sleep(1)
        stage.tail.recent.clear()
        with psycopg.connect(dsn) as holder:
            holder.execute(INSERT, (uuid4(), "held"))
            write(dsn, "free")
            await trio.sleep(30)
            assert told(stage) == []
            end(holder)
            await trio.sleep(1)
            assert told(stage) == expected

    perform(play)


def test_an_event_that_nobody_announced_is_found_within_the_poll(
    perform: Perform, dsn: str
) -> None:
    async def play(stage: Stage) -> None:
        await trio.sleep(1)
        write(dsn, "by another node")
        await trio.sleep(POLL_S + 0.1)
        assert told(stage)[-1] == "by another node"

    perform(play)


def test_a_crash_misses_nothing_and_tells_nothing_twice(perform: Perform, dsn: str) -> None:
    async def play(stage: Stage) -> None:
        await trio.sleep(3)
        stage.tail.recent.clear()
        for number in range(3):
            write(dsn, str(number))
            stage.outage.crashing["pg_current_snapshot"] = 1
            broadcast.written(stage.cast.news)
            await trio.sleep(30)
        assert told(stage) == ["0", "1", "2"]

    perform(play)


def test_while_the_database_is_away_the_tail_waits(perform: Perform, dsn: str) -> None:
    async def play(stage: Stage) -> None:
        await trio.sleep(1)
        stage.outage.failing.add("pg_current_snapshot")
        write(dsn, "late")
        await trio.sleep(600)
        stage.outage.failing.clear()
        await trio.sleep(POLL_S + 0.1)
        assert told(stage)[-1] == "late"

    perform(play)


def test_a_reader_far_behind_gets_history_from_the_database_and_only_its_own(
    perform: Perform, dsn: str
) -> None:
    """R11.4"""

    async def play(stage: Stage) -> None:
        await trio.sleep(3)
        mine = stage.board.workspace_id
        with psycopg.connect(dsn) as connection:
            for number in range(2500):
                connection.execute(INSERT, (mine if number % 2 else UUID(int=5), str(number)))
        await trio.sleep(3)
        start = stage.tail.mark.value - 2500
        stage.tail.recent.clear()
        after, found = start, list[str]()
        while after < stage.tail.mark.value:
            events, after = await broadcast.follow(stage.tail, stage.database, mine, after)
            found += [event.kind for event in events]
        assert found == [str(number) for number in range(2500) if number % 2]

    perform(play)
