"""What a token that is not, or no longer, the task's can do: nothing, and it is told so (R3.13)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from uuid import uuid4

import pytest

from understudy.core.failures import FailureReason
from understudy.core.records import Message, Usage
from understudy.store import tasks
from understudy.store.database import Database
from understudy.store.tasks import Failure, Fence, Holder, Outcome
from understudy.testing.board import Board
from understudy.testing.story import Story, held
from understudy.wire.daemon import ClaimedTask

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


async def renew(story: Story, holder: Holder) -> Outcome:
    return (await tasks.renew(story.database, holder, by_s=45)).outcome


async def start(story: Story, holder: Holder) -> Outcome:
    return (await tasks.start(story.database, holder)).outcome


async def progress(story: Story, holder: Holder) -> Outcome:
    return (await tasks.set_progress(story.database, holder, {"step": 1})).outcome


async def messages(story: Story, holder: Holder) -> Outcome:
    rows = [Message(seq=0, type="text", content="x")]
    return (await tasks.append_messages(story.database, holder, rows)).outcome


async def session(story: Story, holder: Holder) -> Outcome:
    told = {"session_id": "s", "work_dir": "w", "refused_session": "r"}
    return (await tasks.pin_session(story.database, holder, **told)).outcome


async def usage(story: Story, holder: Holder) -> Outcome:
    bill = [Usage(provider="p", model="m", input_tokens=1)]
    return (await tasks.report_usage(story.database, holder, bill)).outcome


async def complete(story: Story, holder: Holder) -> Outcome:
    return (await tasks.complete(story.database, holder, {"output": "x"}, **REPORT)).outcome


async def fail(story: Story, holder: Holder) -> Outcome:
    failure = Failure(FailureReason.QUOTA_EXHAUSTED, "x", refused_session="r")
    return (await tasks.fail(story.database, holder, failure, **REPORT)).outcome


async def stopped(story: Story, holder: Holder) -> Outcome:
    return (await tasks.confirm_stop(story.database, holder)).outcome


Call = Callable[[Story, Holder], Awaitable[Outcome]]
REPORTS: tuple[Call, ...] = (progress, messages, session, usage)
MOVES: tuple[Call, ...] = (renew, start, complete, fail, stopped)
CALLS = pytest.mark.parametrize("call", [*MOVES, *REPORTS], ids=lambda call: call.__name__)


async def ready(story: Story, call: Call, fence: Fence = "full") -> ClaimedTask:
    """A claim in the state in which the call would do something."""
    await story.assigned()
    claim = await story.claimed(fence=fence)
    if call not in {renew, start}:
        await tasks.start(story.database, held(claim))
    if call is stopped:
        await story.cancel(claim.id)
    return claim


@CALLS
async def test_each_call_does_something_for_the_holder(story: Story, call: Call) -> None:
    """R3.13: so that the refusals below refuse something."""
    claim = await ready(story, call)
    await story.later(1)
    before = await story.everything()
    assert await call(story, held(claim)) is Outcome.MOVED
    assert await story.everything() != before


@CALLS
@pytest.mark.parametrize("token", ["another", "missing"])
async def test_no_call_under_another_token_changes_anything_anywhere(
    story: Story, call: Call, token: str
) -> None:
    """R3.5, R3.6, R3.7, R3.13"""
    claim = await ready(story, call)
    await story.later(1)
    before = await story.everything()
    stranger = replace(held(claim), claim_token=uuid4() if token == "another" else None)
    assert await call(story, stranger) is Outcome.FENCED
    assert await story.everything() == before


@CALLS
async def test_no_call_of_an_earlier_claim_changes_anything_anywhere(
    story: Story, call: Call
) -> None:
    """R3.13: a zombie finishes nobody's newer attempt."""
    await story.assigned()
    stale = await story.claimed()
    await story.later(61)
    newer = await story.claimed()
    assert newer.id == stale.id
    if call not in {renew, start}:
        await tasks.start(story.database, held(newer))
    if call is stopped:
        await story.cancel(newer.id)
    before = await story.everything()
    assert await call(story, held(stale)) is Outcome.FENCED
    assert await story.everything() == before


@pytest.mark.parametrize("call", [renew, start], ids=lambda call: call.__name__)
async def test_no_call_under_an_expired_claim_changes_anything_anywhere(
    story: Story, call: Call
) -> None:
    """R3.5, R3.13: to the microsecond."""
    claim = await ready(story, call)
    await story.later(60)
    before = await story.everything()
    assert await call(story, held(claim)) is Outcome.FENCED
    assert await story.everything() == before


async def test_a_renewed_claim_starts_later(story: Story) -> None:
    """R3.4: 45 s from the renewal, once and again."""
    claim = await ready(story, start)
    for _ in range(5):
        await story.later(44)
        assert await renew(story, held(claim)) is Outcome.MOVED
    await story.later(44)
    assert await start(story, held(claim)) is Outcome.MOVED


@pytest.mark.parametrize("call", REPORTS, ids=lambda call: call.__name__)
async def test_a_daemon_whose_reports_have_no_token_may_report(story: Story, call: Call) -> None:
    """R3.6, R3.13: spec section 12 gives them no field; a wrong one is refused all the same."""
    claim = await ready(story, call, "lease")
    assert await call(story, replace(held(claim), claim_token=uuid4())) is Outcome.FENCED
    assert await call(story, replace(held(claim), claim_token=None)) is Outcome.MOVED


@pytest.mark.parametrize("call", MOVES, ids=lambda call: call.__name__)
async def test_its_moves_need_the_token_nevertheless(story: Story, call: Call) -> None:
    """R3.6, R3.7"""
    claim = await ready(story, call, "lease")
    assert await call(story, replace(held(claim), claim_token=None)) is Outcome.FENCED
    assert await call(story, held(claim)) is Outcome.MOVED


@CALLS
async def test_a_daemon_that_knows_no_tokens_works_without(story: Story, call: Call) -> None:
    """R3.6: on rows without a token, and a token opens none of those."""
    claim = await ready(story, call, "none")
    assert claim.claim_token is None
    assert await call(story, replace(held(claim), claim_token=uuid4())) is Outcome.FENCED
    assert await call(story, held(claim)) is Outcome.MOVED


async def test_a_claim_that_expired_is_fenced_anew_for_whoever_claims_next(story: Story) -> None:
    """R3.4, R3.6: the fence is the claimant's, not the task's."""
    await story.assigned()
    first = await story.claimed(fence="full")
    await story.later(61)
    second = await story.claimed(fence="none")
    assert (second.id, second.claim_token) == (first.id, None)
    await story.later(61)
    third = await story.claimed(fence="full")
    assert third.claim_token not in {None, first.claim_token}
