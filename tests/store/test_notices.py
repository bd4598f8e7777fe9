"""Nodes nudge one another: soon, seldom, and again after the database was gone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from uuid import uuid4

import pytest
import trio

from understudy.store import notices
from understudy.store.connection import open_connection
from understudy.store.database import Database
from understudy.store.notices import Listener, Notifier


class Ear:
    """Counts the nudges."""

    def __init__(self) -> None:
        self.nudges = 0
        self._nudged = trio.Event()

    def nudge(self) -> None:
        self.nudges += 1
        self._nudged.set()
        self._nudged = trio.Event()

    async def wait(self, nudges: int) -> None:
        with trio.fail_after(30):
            while self.nudges < nudges:
                await self._nudged.wait()


@pytest.fixture
async def mine(dsn: str, nursery: trio.Nursery) -> AsyncIterator[Notifier]:
    notifier = Notifier(partial(open_connection, dsn), uuid4())
    notifier.has_peers = True
    nursery.start_soon(notifier.run)
    yield notifier
    nursery.cancel_scope.cancel()


async def listens(dsn: str, nursery: trio.Nursery) -> Ear:
    ear = Ear()
    nursery.start_soon(Listener(partial(open_connection, dsn), uuid4(), ear.nudge).run)
    await ear.wait(1)  # What came before it listened may have been missed.
    return ear


async def test_a_node_that_has_committed_nudges_the_others(
    dsn: str, mine: Notifier, nursery: trio.Nursery
) -> None:
    first, second = await listens(dsn, nursery), await listens(dsn, nursery)
    mine.note()
    await first.wait(2)
    await second.wait(2)


async def test_a_thousand_commits_at_once_are_two_nudges_at_most(
    dsn: str, mine: Notifier, nursery: trio.Nursery
) -> None:
    """NOTIFY makes all who commit wait in one line."""
    ear = await listens(dsn, nursery)
    for _ in range(1000):
        mine.note()
    await ear.wait(2)
    last = Ear()
    other = Notifier(partial(open_connection, dsn), uuid4())
    other.has_peers = True
    nursery.start_soon(other.run)
    nursery.start_soon(Listener(partial(open_connection, dsn), uuid4(), last.nudge).run)
    await last.wait(1)
    other.note()
    await last.wait(2)  # Whatever was told before has arrived by now.
    assert ear.nudges <= 4


async def test_a_node_does_not_nudge_itself_and_says_nothing_while_it_is_alone(
    dsn: str, nursery: trio.Nursery
) -> None:
    node_id, ear = uuid4(), Ear()
    dial = partial(open_connection, dsn)
    notifier = Notifier(dial, node_id)
    nursery.start_soon(notifier.run)
    nursery.start_soon(Listener(dial, node_id, ear.nudge).run)
    await ear.wait(1)
    notifier.note()  # It is alone: forgotten.
    notifier.has_peers = True
    notifier.note()
    other = await listens(dsn, nursery)
    notifier.note()
    await other.wait(2)
    assert ear.nudges == 1
    nursery.cancel_scope.cancel()


async def test_after_the_database_was_gone_nodes_hear_one_another_again(
    dsn: str,
    database: Database,
    mine: Notifier,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notices, "RETRY_S", 0.05)
    ear = await listens(dsn, nursery)
    mine.note()
    await ear.wait(2)
    await database.pool.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )
    await ear.wait(3)  # It listens again, and may have missed something.
    mine.note()
    await ear.wait(4)
