"""Nodes nudge one another: soon, seldom, and again after the database was gone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from uuid import uuid4

import pytest
import trio
import trio.testing

from understudy.store import notices
from understudy.store.connection import Connection, open_connection
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


async def test_however_much_is_committed_a_node_speaks_once_within_its_pace(
    dsn: str, mine: Notifier, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NOTIFY makes all who commit wait in one line."""
    monkeypatch.setattr(notices, "PACE_S", 3600.0)
    ear, others = await listens(dsn, nursery), Ear()
    nursery.start_soon(Listener(partial(open_connection, dsn), mine.node_id, others.nudge).run)
    await others.wait(1)
    for _ in range(1000):
        mine.note()
    await ear.wait(2)
    mine.note()
    other = Notifier(partial(open_connection, dsn), uuid4())
    other.has_peers = True
    nursery.start_soon(other.run)
    other.note()
    await others.wait(2)
    await ear.wait(3)
    await trio.testing.wait_all_tasks_blocked(0.05)  # What was said before has arrived by now.
    assert ear.nudges == 3


async def test_a_node_does_not_nudge_itself(dsn: str, nursery: trio.Nursery) -> None:
    node_id, ear = uuid4(), Ear()
    dial = partial(open_connection, dsn)
    notifier = Notifier(dial, node_id)
    notifier.has_peers = True
    nursery.start_soon(notifier.run)
    nursery.start_soon(Listener(dial, node_id, ear.nudge).run)
    await ear.wait(1)
    other = await listens(dsn, nursery)
    notifier.note()
    await other.wait(2)
    assert ear.nudges == 1
    nursery.cancel_scope.cancel()


async def test_a_node_that_is_alone_says_nothing(dsn: str, nursery: trio.Nursery) -> None:
    dialled = 0

    async def dial() -> Connection:
        nonlocal dialled
        dialled += 1
        return await open_connection(dsn)

    notifier = Notifier(dial, uuid4())
    nursery.start_soon(notifier.run)
    notifier.note()
    await trio.testing.wait_all_tasks_blocked()
    assert dialled == 0
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
