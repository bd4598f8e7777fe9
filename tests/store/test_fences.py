"""What a token that is not, or no longer, the task's can do: nothing, and it is told so (R3.13)."""

from __future__ import annotations

from uuid import uuid4

import pytest

from understudy.core.failures import FailureReason
from understudy.store import tasks
from understudy.store.database import Database
from understudy.store.tasks import Failure, Holder, Outcome
from understudy.testing.board import Board

REPORT = {"session_id": None, "work_dir": None}


@pytest.fixture
async def board(database: Database) -> Board:
    return await Board.set_up(database)


async def test_the_end_is_replayed_to_its_own_holder_only(database: Database, board: Board) -> None:
    """R6.6: another one's report is refused, not thanked for."""
    (claim,) = await board.dispatched("A thing")
    mine = Holder(board.workspace_id, claim.task.id, claim.claim_token)
    await tasks.start(database, mine)
    await tasks.complete(database, mine, {"output": "x"}, **REPORT)
    for token in (uuid4(), None):
        other = Holder(board.workspace_id, claim.task.id, token)
        done = await tasks.complete(database, other, {"output": "y"}, **REPORT)
        failed = await tasks.fail(database, other, Failure(FailureReason.UNKNOWN, "y"), **REPORT)
        assert done.outcome is failed.outcome is Outcome.FENCED
    assert (await tasks.start(database, mine)).outcome is Outcome.FENCED


async def test_a_requeued_task_goes_to_any_runtime_its_agent_may_use(
    database: Database, board: Board
) -> None:
    """R3.8: the runtime that gave it back may have no room, or die."""
    await board.dispatched("A thing", claim_s=-1)
    other = await board.runtime("other-daemon")
    assert await board.claim(slots=0) == []
    assert len(await board.claim(runtime_id=other.id)) == 1


async def test_a_requeued_task_of_a_bound_agent_stays_bound(
    database: Database, board: Board
) -> None:
    """R3.1"""
    bound = await board.agent("Bound", runtime_id=board.runtime_id)
    await board.assign(await board.issue("For one machine"), bound)
    await board.claim(claim_s=-1)
    other = await board.runtime("other-daemon")
    await board.claim(slots=0)
    assert await board.claim(runtime_id=other.id) == []
    assert len(await board.claim()) == 1
