"""What each hot statement looks at: as much with a long past as without one (R3.9, R11.6)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import TypeVar
from uuid import UUID

import psycopg.errors
import pytest

from understudy.core.failures import FailureReason
from understudy.core.leases import Leases
from understudy.core.records import Issue, Message, Usage
from understudy.server import PLANS
from understudy.store import board as pages
from understudy.store import events, issues, nodes, runtimes, situations, sweeps, tasks, tokens
from understudy.store.connection import Connection, open_connection
from understudy.store.database import Database
from understudy.store.issues import Author
from understudy.store.pool import Pool
from understudy.store.tasks import Failure, Holder, Outcome
from understudy.store.tokens import Owner
from understudy.testing.board import Board, Claim
from understudy.testing.history import write_past, write_queue
from understudy.testing.plans import Plan, Plans, Scan
from understudy.wire.board import RerunIssue

T = TypeVar("T")
GROWING = {"tasks", "task_messages", "usage", "comments", "calls", "events", "issues"}
AT_ONCE = replace(
    Leases(),
    heartbeat_s=0.0,
    offline_after_s=1e-6,
    takeover_grace_s=0.0,
    alone_grace_s=0.0,
    queued_max_s=0.0,
    cancel_unconfirmed_s=0.0,
)
REPORT = {"session_id": None, "work_dir": None}
SHORT = 2000
"""Tasks of a past as long as any list that is shown."""
QUEUED = 1000
LISTS = frozenset({"board", "issues"})
"""For a workspace with few issues all of them are sorted. The next `analyze` corrects that."""
MORE, SOME = 1.4, 20
"""Indexes grow deeper, and dead rows lie about."""
UNQUEUE = "delete from understudy.issues where workspace_id = $1 and title = 'Wait'"
INDEXES = """
    select c.relname from pg_index i join pg_class c on c.oid = i.indexrelid
    join pg_class t on t.oid = i.indrelid
    where t.relnamespace = 'understudy'::regnamespace and t.relname = any ($1)
      and not i.indisunique
"""


@dataclass
class Watch:
    """What PostgreSQL did for each call, by the call's name."""

    plans: Plans
    seen: dict[str, list[Plan]] = field(default_factory=dict)

    async def __call__(self, name: str, call: Awaitable[T]) -> T:
        self.plans.take()
        done = await call
        self.seen[name] = self.plans.take()
        return done

    def pages(self) -> dict[str, int]:
        """A statement's count includes what the functions in it do."""
        return {name: max(each.pages for each in plans) for name, plans in self.seen.items()}

    def rows(self) -> dict[str, int]:
        """Looked at, whether they were what was wanted or not."""
        return {name: sum(each.rows for each in self.scans(name)) for name in self.seen}

    def scans(self, name: str) -> list[Scan]:
        return [scan for plan in self.seen[name] for scan in plan.scans if scan.table in GROWING]


@dataclass(frozen=True)
class Day:
    """A board on one connection, and what PostgreSQL tells about it.

    `elsewhere` a single agent has a long queue.
    """

    board: Board
    elsewhere: Board
    plans: Plans

    async def live(self) -> Watch:
        """Twice: the first time the session plans, and reads the catalogue."""
        watch = Watch(self.plans)
        for _ in range(2):
            await run_one(self.board, watch)
            await end_otherwise(self.board, watch)
            await sweep(self.board, watch)
            await look(self.board, watch)
            await ask(self.board, watch)
        return watch


@pytest.mark.parametrize("past", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
async def test_nothing_takes_longer_for_what_has_been(day: Day, dsn: str, past: int) -> None:
    """No hot statement reads a table whole, or looks at more of it because more has happened.

    Neither by a plan that was made for a small table, nor by one that was made for this one.
    """
    pool = Pool(partial(open_connection, dsn), size=1)
    database, agents = Database(pool, Random(4)), [day.board.nia.id]
    await write_past(database, agents, day.board.runtime_id, tasks=SHORT)
    elsewhere = day.elsewhere
    await write_past(database, [elsewhere.nia.id], elsewhere.runtime_id, tasks=50, behind=10**9)
    await pool.execute("vacuum analyze")
    before = await day.live()
    await live_elsewhere(8, day, before, database)
    await write_past(database, agents, day.board.runtime_id, tasks=past, behind=SHORT)
    outdated = await day.live()
    await live_elsewhere(QUEUED, day, outdated, database)
    await pool.execute("vacuum analyze")
    after = await day.live()
    await live_elsewhere(QUEUED, day, after, database)
    used = {
        scan.index
        for watch in (before, outdated, after)
        for n in watch.seen
        for scan in watch.scans(n)
    }
    idle = {row["relname"] for row in await pool.fetch(INDEXES, list(GROWING))} - used
    await pool.aclose()
    print(table(before, outdated, after))  # noqa: T201  `pytest -s` shows it.
    for watch in (outdated, after):
        assert list(whole(watch)) == []
    assert list(longer(before, outdated, apart_from=LISTS)) == []
    assert list(longer(before, after)) == []
    assert idle == set(), "an index that no statement here needs"


async def live_elsewhere(waiting: int, day: Day, watch: Watch, database: Database) -> None:
    """A claim from the head of a queue, however long; the stream of a workspace that is quiet."""
    board, workspace_id = day.elsewhere, day.elsewhere.workspace_id
    for tasks_count in (8, waiting):
        await write_queue(database, [board.nia.id], tasks=tasks_count)
        assert await watch("claim of many", board.claim())
        await database.pool.execute(UNQUEUE, workspace_id)
        last = await events.last_id(database)
        await watch(
            "quiet stream",
            events.of_workspace(board.database, workspace_id, after=0, up_to=last, rows_max=100),
        )


def whole(watch: Watch) -> Iterator[str]:
    for name in watch.seen:
        for scan in watch.scans(name):
            if scan.kind == "Seq Scan":
                yield f"{name} reads {scan.table} whole"


def longer(before: Watch, after: Watch, apart_from: frozenset[str] = frozenset()) -> Iterator[str]:
    pages, rows, rows_before = after.pages(), after.rows(), before.rows()
    for name, pages_before in before.pages().items():
        if name in apart_from:
            continue
        if rows[name] > MORE * rows_before[name] + SOME:
            yield f"{name} looks at {rows[name]} rows, it was at {rows_before[name]}"
        # What lay side by side may now lie on a page each.
        if pages[name] > MORE * max(pages_before, rows_before[name]) + SOME:
            yield f"{name} reads {pages[name]} pages, it was {pages_before}"


def table(before: Watch, outdated: Watch, after: Watch) -> str:
    """Pages and rows of each call: with a short past, with a long one by old plans and by new."""
    columns = [
        each for watch in (before, outdated, after) for each in (watch.pages(), watch.rows())
    ]
    return "\n".join(
        f"{name:20}" + "".join(f"{column[name]:8}" for column in columns) for name in after.seen
    )


@pytest.fixture
async def day(dsn: str, database: Database) -> AsyncIterator[Day]:
    plans = Plans()

    async def dial() -> Connection:
        return await plans.open_connection(dsn, PLANS)

    pool = Pool(dial, size=1)
    try:
        board = await Board.set_up(Database(pool, Random(3)))
    except psycopg.errors.UndefinedFile:
        pytest.skip("this PostgreSQL comes without auto_explain")
    yield Day(board, await open_elsewhere(board), plans)
    await pool.aclose()


async def open_elsewhere(board: Board) -> Board:
    database, workspace_id = board.database, board.database.new_id()
    await database.pool.execute(
        "insert into understudy.workspaces (id, slug, name) values ($1, 'elsewhere', 'Elsewhere')",
        workspace_id,
    )
    elsewhere = replace(board, workspace_id=workspace_id)
    place = await elsewhere.runtime("elsewhere")
    busy = await elsewhere.agent("Busy", max_concurrent_tasks=1000)
    return replace(elsewhere, runtime_id=place.id, nia=busy)


def held(claim: Claim) -> Holder:
    return Holder(claim.task.workspace_id, claim.task.id, claim.claim_token)


async def queue(board: Board, title: str) -> Issue:
    issue = await board.issue(title)
    await board.assign(issue)
    return issue


async def claim(board: Board, title: str) -> Claim:
    await queue(board, title)
    (found,) = await board.claim()
    return found


async def begin(board: Board, title: str) -> Claim:
    found = await claim(board, title)
    assert (await tasks.start(board.database, held(found))).outcome is Outcome.MOVED
    return found


async def run_one(board: Board, watch: Watch) -> None:
    """From an issue to its agent's comment."""
    database, message = board.database, Message(seq=0, type="text", content="It is done.")
    issue = await watch("create an issue", board.issue("Do it"))
    await watch("assign", board.assign(issue))
    (mine,) = await watch("claim", board.claim(slots=20))
    await watch("claim nothing", board.claim(slots=20))
    await watch("renew", tasks.renew(database, held(mine), by_s=45.0))
    await watch("start", tasks.start(database, held(mine)))
    await watch("session", tasks.pin_session(database, held(mine), session_id="s", work_dir="/w"))
    await watch("progress", tasks.set_progress(database, held(mine), {"step": 1, "total": 2}))
    await watch("messages", tasks.append_messages(database, held(mine), [message]))
    await watch("usage", tasks.report_usage(database, held(mine), [Usage(provider="p", model="m")]))
    user = Author(user_id=board.user_id)
    await watch("comment", issues.add_comment(database, issue, "And @Nia this", user))
    await watch("complete", tasks.complete(database, held(mine), {"output": "x"}, **REPORT))
    await watch("answer", board.claim())
    await watch("rerun", issues.rerun(database, issue, RerunIssue(), user_id=board.user_id))
    await watch(
        "cancel an issue",
        tasks.cancel_issue(database, issue.workspace_id, issue.id, by=board.user_id),
    )


async def end_otherwise(board: Board, watch: Watch) -> None:
    database, by = board.database, board.user_id
    offline, overloaded = FailureReason.RUNTIME_OFFLINE, FailureReason.PROVIDER_OVERLOADED
    for name, reason in {"retry at once": offline, "retry later": overloaded}.items():
        failing = await begin(board, "Fail")
        done = await watch(
            name, tasks.fail(database, held(failing), Failure(reason, "x"), **REPORT)
        )
        assert done.task is not None
        assert done.task.retry_task_id is not None
        await watch(
            "cancel", tasks.cancel(database, board.workspace_id, done.task.retry_task_id, by=by)
        )
    running = await begin(board, "Stop")
    await watch(
        "request a stop", tasks.cancel(database, board.workspace_id, running.task.id, by=by)
    )
    await watch("stops due", nodes.stops_due(database, database.new_id()))
    await watch("stopped", tasks.confirm_stop(database, held(running)))


async def sweep(board: Board, watch: Watch) -> None:
    database, node_id, place = board.database, board.database.new_id(), board.runtime_id
    lost = await begin(board, "Recover")
    kept = await watch(
        "recover", sweeps.recover(database, board.workspace_id, place, kept=[], same_process=False)
    )
    assert [each.id for each in kept] == [lost.task.id]
    await watch("complete late", tasks.complete(database, held(lost), {"output": "x"}, **REPORT))
    stopping = await begin(board, "Never stops")
    await tasks.cancel(database, board.workspace_id, stopping.task.id, by=board.user_id)
    assert len(await watch("time out", sweeps.time_out(database, AT_ONCE))) == 1
    await begin(board, "Lose")
    await runtimes.go_offline(database, [place], action="deregister")
    assert len(await watch("lose", sweeps.lose(database, AT_ONCE))) == 1
    await queue(board, "Expire")
    assert await watch("expire", sweeps.expire(database, AT_ONCE))
    await watch("promote", sweeps.promote(database))
    await watch("next due", sweeps.next_due_in(database))
    await nodes.renew(database, node_id, "here", lease_s=30.0)
    await watch("retire", sweeps.retire(database, AT_ONCE))
    await watch("judge", sweeps.judge(database, node_id, AT_ONCE))
    await runtimes.take_over(database, place, node_id)
    await watch("prune", sweeps.prune(database, AT_ONCE))


async def ask(board: Board, watch: Watch) -> None:
    key = await tokens.create(board.database, "personal", Owner(user_id=board.user_id))
    await watch("person's key", tokens.find_keyholder(board.database, key))


async def look(board: Board, watch: Watch) -> None:
    database, workspace_id = board.database, board.workspace_id
    mine = await begin(board, "Look at me")
    await queue(board, "Wait")
    found = await watch("find", tasks.find(database, workspace_id, mine.task.id))
    assert found is not None
    assert found.issue_id is not None
    issue = await watch("issue", issues.find(database, workspace_id, str(found.issue_id)))
    assert issue is not None
    await watch("issue by key", issues.find(database, workspace_id, issue.key))
    await watch("tasks of issue", tasks.of_issue(database, issue.id))
    await watch("tasks of workspace", tasks.of_workspace(database, workspace_id))
    await watch("pending", tasks.pending_of_runtime(database, workspace_id, board.runtime_id))
    await watch("tokens", tasks.in_flight(database, workspace_id, [mine.task.id]))
    await watch("messages of task", tasks.messages(database, mine.task.id))
    await watch("usage of task", tasks.usage(database, mine.task.id))
    await watch("comments", issues.comments(database, issue.id))
    await watch("issues", issues.of_workspace(database, workspace_id))
    await watch("board", pages.live_runs(database, workspace_id))
    await watch("runs of issue", pages.runs_of_issue(database, issue.id))
    await watch("active runs", pages.active_runs(database, workspace_id))
    await watch("tokens of issue", pages.tokens_of_issue(database, issue.id))
    last = await watch("last event", events.last_id(database))
    await watch("events", events.page_after(database, last - 10, rows_max=500))
    await watch(
        "stream",
        events.of_workspace(database, workspace_id, after=last - 10, up_to=last, rows_max=500),
    )
    await watch(
        "why", situations.of_tasks(database, workspace_id, [found.id], lambda _: (None, None))
    )
    key = tokens.agent_key(mine.task.id, mine.claim_token or UUID(int=0))
    await watch("agent's key", tokens.find(database, key))
    for each in await pages.active_runs(database, workspace_id):
        await tasks.cancel(database, workspace_id, each.task.id, by=board.user_id)
    await tasks.confirm_stop(database, held(mine))
