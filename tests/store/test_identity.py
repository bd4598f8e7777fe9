"""Who may register under a name that is in use (R6.2): a machine's disk can be copied."""

from __future__ import annotations

from uuid import uuid4

import pytest

from understudy.store import runtimes
from understudy.store.database import Database
from understudy.store.runtimes import Machine, Offer, Registered
from understudy.testing.board import PROVIDER, Board

NODE = uuid4()


async def register(
    board: Board, incarnation: str | None, after: set[str] | None = None, device: str = "laptop"
) -> Registered:
    known = None if after is None else frozenset(after)
    machine = Machine(board.workspace_id, "vm", device, incarnation, NODE, known)
    offer = Offer(PROVIDER, "scripted", device, "1", "online", None)
    return await runtimes.register(board.database, machine, [offer])


@pytest.mark.parametrize(
    ("incarnation", "after", "is_refused"),
    [
        ("first", set[str](), False),
        ("second", {"first"}, False),
        ("second", set[str](), True),
        ("second", {"older"}, True),
        ("of a daemon that keeps no count", None, False),
        (None, None, False),
    ],
)
async def test_a_name_that_is_heard_goes_only_to_who_comes_after_its_holder(
    database: Database, incarnation: str | None, after: set[str] | None, *, is_refused: bool
) -> None:
    board = await Board.set_up(database)
    first = await register(board, "first", device="mac")
    again = await register(board, incarnation, after)
    assert again.taken_by == ("mac" if is_refused else None)
    assert (again.runtimes == []) == is_refused
    row = await runtimes.find(database, first.runtimes[0].id)
    assert row is not None
    assert row.incarnation == ("first" if is_refused else incarnation)


async def test_a_name_whose_holder_is_silent_is_free(database: Database) -> None:
    board = await Board.set_up(database)
    first = await register(board, "first")
    await runtimes.go_offline(database, [first.runtimes[0].id], action="stale_sweep")
    assert (await register(board, "another", after=set())).taken_by is None


async def test_what_one_process_had_recovered_says_nothing_of_the_next(database: Database) -> None:
    """R6.2: a recovery that comes late is on record for the process that asked for it."""
    board = await Board.set_up(database)
    first = await register(board, "first")
    assert not (await register(board, "second", after={"first"})).same_process
    await runtimes.note_recovered(database, first)
    second = await register(board, "second", after={"first"})
    assert not second.same_process
    await runtimes.note_recovered(database, second)
    assert (await register(board, "second", after={"first"})).same_process
