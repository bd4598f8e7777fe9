"""The moves on a real server: what each does, and what it refuses."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from psycopg.errors import CheckViolation

from understudy.core.failures import FailureReason
from understudy.core.lifecycle import Status
from understudy.core.records import Message, Usage
from understudy.store import claims, issues, people, runtimes, tasks
from understudy.store.database import Database
from understudy.store.tasks import Failure, Holder, Outcome
from understudy.store.tokens import agent_key
from understudy.testing.board import Board, Claim
from understudy.wire.board import CreateIssue

REPORT = {"session_id": None, "work_dir": None}


@pytest.fixture
async def board(database: Database) -> Board:
    return await Board.set_up(database)


def held(claim: Claim) -> Holder:
    return Holder(claim.task.workspace_id, claim.task.id, claim.claim_token)


async def kinds(database: Database) -> list[str]:
    rows = await database.pool.fetch("select kind from understudy.events order by id")
    return [row["kind"] for row in rows]


async def test_a_run_from_assignment_to_completion_leaves_one_event_for_each_move(
    database: Database, board: Board
) -> None:
    """R2.3, R2.4, R10.3"""
    issue = await board.issue("Write it down")
    assert (await board.assign(issue)).outcome == "enqueued"
    (claim,) = await board.claim()
    assert claim.task.status is Status.DISPATCHED
    assert (await tasks.start(database, held(claim))).outcome is Outcome.MOVED
    done = await tasks.complete(database, held(claim), {"output": "Written."}, **REPORT)
    assert done.task is not None
    assert done.task.status is Status.COMPLETED
    found = await issues.find(database, board.workspace_id, issue.key)
    assert found is not None
    assert found.status == "in_review"
    assert [c.body for c in await issues.comments(database, issue.id)] == ["Written."]
    moves = [kind for kind in await kinds(database) if kind.startswith("task:")]
    assert moves == ["task:queued", "task:dispatch", "task:running", "task:completed"]


@pytest.mark.parametrize(
    "verb", ["start", "renew", "complete", "fail", "messages", "session", "usage"]
)
@pytest.mark.parametrize("token", ["another", "none"])
async def test_no_report_under_another_token_changes_anything(
    database: Database, board: Board, verb: str, token: str
) -> None:
    """R3.5, R3.6, R3.7, R3.13"""
    (claim,) = await board.dispatched("A thing")
    if verb not in {"start", "renew"}:
        await tasks.start(database, held(claim))
    before = await everything(database)
    stale = Holder(board.workspace_id, claim.task.id, uuid4() if token == "another" else None)
    moved = await report(database, verb, stale)
    assert moved is Outcome.FENCED
    assert await everything(database) == before


async def report(database: Database, verb: str, holder: Holder) -> Outcome:
    match verb:
        case "start":
            return (await tasks.start(database, holder)).outcome
        case "renew":
            return (await tasks.renew(database, holder, by_s=45)).outcome
        case "complete":
            return (await tasks.complete(database, holder, {"output": "x"}, **REPORT)).outcome
        case "fail":
            reason = FailureReason.AGENT_ERROR
            return (await tasks.fail(database, holder, Failure(reason, "x"), **REPORT)).outcome
        case "messages":
            rows = [Message(seq=0, type="text", content="x")]
            return (await tasks.append_messages(database, holder, rows)).outcome
        case "session":
            done = await tasks.pin_session(database, holder, session_id="x", work_dir="y")
            return done.outcome
        case _:
            bill = [Usage(provider="claude", model="m", input_tokens=1)]
            return (await tasks.report_usage(database, holder, bill)).outcome


async def everything(database: Database) -> list[object]:
    tables = ("tasks", "task_messages", "usage", "comments", "issues", "events")
    return [
        await database.pool.fetch(f"select to_jsonb(t) from understudy.{table} t order by 1")
        for table in tables
    ]


async def test_the_same_start_twice_returns_the_running_row(
    database: Database, board: Board
) -> None:
    """R3.5: a lost answer is safe to resend."""
    (claim,) = await board.dispatched("A thing")
    first = await tasks.start(database, held(claim))
    before = await everything(database)
    again = await tasks.start(database, held(claim))
    assert (first.outcome, again.outcome) == (Outcome.MOVED, Outcome.REPLAYED)
    assert again.task == first.task
    assert await everything(database) == before


async def test_an_expired_claim_does_not_start(database: Database, board: Board) -> None:
    """R3.5"""
    (claim,) = await board.dispatched("A thing", claim_s=-1)
    assert (await tasks.start(database, held(claim))).outcome is Outcome.FENCED


async def test_complete_and_fail_repeat_no_side_effect(database: Database, board: Board) -> None:
    """R6.6"""
    (claim,) = await board.dispatched("A thing")
    await tasks.start(database, held(claim))
    await tasks.complete(database, held(claim), {"output": "Done."}, **REPORT)
    before = await everything(database)
    again = await tasks.complete(database, held(claim), {"output": "Done."}, **REPORT)
    late = await tasks.fail(database, held(claim), Failure(FailureReason.UNKNOWN, "late"), **REPORT)
    assert again.outcome is late.outcome is Outcome.REPLAYED
    assert late.task is not None
    assert late.task.status is Status.COMPLETED
    assert await everything(database) == before


async def test_only_the_runtime_that_claims_gets_its_expired_claims_back(
    database: Database, board: Board
) -> None:
    """R3.8: a dead runtime's claims stay where they are."""
    await board.dispatched("Mine", claim_s=-1)
    other = await board.runtime("other-daemon")
    assert await board.claim(runtime_id=other.id) == []
    (again,) = await board.claim()
    assert again.task.status is Status.DISPATCHED
    assert "task:queued" in (await kinds(database))[-3:]


async def test_a_runtime_never_gets_what_is_queued_for_another(
    database: Database, board: Board
) -> None:
    """R3.1"""
    other = await board.runtime("other-daemon")
    bound = await board.agent("Bound", runtime_id=board.runtime_id)
    await board.assign(await board.issue("For one machine"), bound)
    assert await board.claim(runtime_id=other.id) == []
    assert len(await board.claim()) == 1


async def test_an_agent_never_runs_more_than_its_limit(database: Database, board: Board) -> None:
    """R3.3"""
    agent = await board.agent("Narrow", max_concurrent_tasks=2)
    for number in range(4):
        await board.assign(await board.issue(f"Issue {number}"), agent)
    assert len(await board.claim(slots=10)) == 2
    assert await board.claim(slots=10) == []


async def test_urgent_goes_before_old(database: Database, board: Board) -> None:
    """R3.2"""
    first = await board.issue("Old")
    urgent = await board.issue("Urgent", priority=4)
    await board.assign(first)
    await board.assign(urgent)
    (claim,) = await board.claim(slots=1)
    assert claim.task.issue_id == urgent.id


async def test_assigning_again_to_the_agent_that_is_on_it_starts_nothing(
    database: Database, board: Board
) -> None:
    """R10.1"""
    issue = await board.issue("Once")
    await board.assign(issue)
    assert (await board.assign(issue)).outcome == "unchanged"
    assert len(await tasks.of_issue(database, issue.id)) == 1


async def test_the_backlog_starts_nobody_until_it_is_left(database: Database, board: Board) -> None:
    """R10.1"""
    issue = await board.issue("Later", status="backlog")
    assert (await board.assign(issue)).outcome == "assigned"
    assert await board.claim() == []
    done = await issues.set_status(database, board.workspace_id, issue.id, "todo")
    assert done.outcome == "enqueued"
    assert len(await board.claim()) == 1


async def test_a_failed_run_gives_the_issue_back(database: Database, board: Board) -> None:
    """R5.6"""
    (claim,) = await board.dispatched("A thing")
    await tasks.start(database, held(claim))
    await tasks.fail(database, held(claim), Failure(FailureReason.AUTH, "no key"), **REPORT)
    (issue,) = await issues.of_workspace(database, board.workspace_id)
    assert issue.status == "todo"


async def test_resent_messages_change_nothing(database: Database, board: Board) -> None:
    """R6.9"""
    (claim,) = await board.dispatched("A thing")
    rows = [Message(seq=n, type="text", content=str(n)) for n in range(3)]
    await tasks.append_messages(database, held(claim), rows[:2])
    await tasks.append_messages(database, held(claim), rows)
    found = await tasks.messages(database, claim.task.id)
    assert [each.content for each in found] == ["0", "1", "2"]


async def test_a_move_that_is_not_in_the_table_is_refused_by_the_database(
    database: Database, board: Board
) -> None:
    """R2.1, R2.2"""
    (claim,) = await board.dispatched("A thing")
    with pytest.raises(CheckViolation, match="illegal move: start from dispatched to completed"):
        await database.pool.execute(
            "update understudy.tasks set status = 'completed', move = 'start',"
            " completed_at = understudy.now(), claim_expires_at = null where id = $1",
            claim.task.id,
        )


async def test_another_workspace_finds_no_task(database: Database, board: Board) -> None:
    (claim,) = await board.dispatched("A thing")
    foreign = Holder(UUID(int=5), claim.task.id, claim.claim_token)
    assert (await tasks.start(database, foreign)).outcome is Outcome.NOT_FOUND


async def test_a_claim_carries_what_the_run_needs(database: Database, board: Board) -> None:
    await people.set_repository(database, board.workspace_id, "/srv/project")
    await board.assign(await board.issue("A thing"))
    (brief,) = (
        await claims.claim(database, board.runtime_id, slots=1, fence="full", claim_s=60)
    ).tasks
    assert brief.agent.name == "Nia"
    assert brief.issue is not None
    assert brief.issue.title == "A thing"
    assert [each.url for each in brief.repos] == ["/srv/project"]
    assert brief.claim_token is not None
    assert brief.auth_token == agent_key(brief.id, brief.claim_token)


async def test_registering_again_updates_the_runtime_and_doubles_nothing(
    database: Database, board: Board
) -> None:
    """Spec section 12: the same (workspace, daemon, provider) is updated."""
    again = await board.runtime("first-daemon")
    assert again.id == board.runtime_id
    await runtimes.go_offline(database, [again.id, uuid4()], action="deregister")
    (row,) = await runtimes.of_workspace(database, board.workspace_id)
    assert row.status == "offline"
    assert (await kinds(database)).count("daemon:register") == 3


async def test_issue_numbers_have_no_gaps(database: Database, board: Board) -> None:
    made = [await board.issue(f"Issue {n}") for n in range(3)]
    assert [issue.key for issue in made] == ["UND-1", "UND-2", "UND-3"]
    wanted = CreateIssue(title="x", priority=9)  # type: ignore[arg-type]
    with pytest.raises(CheckViolation):
        await issues.create(database, board.workspace_id, None, wanted)
    assert (await board.issue("Next")).key == "UND-4"
