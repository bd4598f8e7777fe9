"""A board whose time a test tells, moment by moment, and what people and machines do on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from typing import Any, Final
from uuid import UUID

from understudy.core.failures import FailureReason
from understudy.core.records import Agent, Issue, Message, Task
from understudy.store import claims, issues, runtimes, sweeps, tasks
from understudy.store.connection import open_connection
from understudy.store.database import Database
from understudy.store.issues import Author, Rerun
from understudy.store.pool import Pool
from understudy.store.tasks import Failure, Fence, Holder, Moved, Outcome
from understudy.testing.board import Board
from understudy.testing.virtual import SET_TIME
from understudy.wire.board import Commented, RerunIssue
from understudy.wire.daemon import ClaimedTask

BEGIN: Final = datetime(2026, 1, 1, tzinfo=UTC)
TABLES: Final = (
    "tasks", "calls", "comments", "issues", "events", "task_messages", "usage", "refused_sessions",
    "agents", "runtimes",
)  # fmt: skip


@dataclass
class Story:
    """One connection, so that the time holds for all that is asked."""

    board: Board
    at_s: float = 0.0

    @property
    def database(self) -> Database:
        return self.board.database

    @property
    def now(self) -> datetime:
        return BEGIN + timedelta(seconds=self.at_s)

    async def later(self, by_s: float) -> None:
        self.at_s += by_s
        await self.database.pool.fetchval(SET_TIME, self.now.isoformat())

    async def assigned(self, title: str = "A thing", agent: Agent | None = None) -> Issue:
        issue = await self.board.issue(title)
        await self.board.assign(issue, agent)
        return issue

    async def claim(
        self, *, runtime_id: UUID | None = None, slots: int = 1, fence: Fence = "full"
    ) -> list[ClaimedTask]:
        where = runtime_id or self.board.runtime_id
        done = await claims.claim(self.database, where, slots=slots, fence=fence, claim_s=60.0)
        return done.tasks

    async def claimed(self, **options: Any) -> ClaimedTask:  # noqa: ANN401  # claim's
        (claim,) = await self.claim(**options)
        return claim

    async def running(self, issue: Issue | None = None, **options: Any) -> ClaimedTask:  # noqa: ANN401
        """The next task of the queue, or one of a new issue; started."""
        if issue is None:
            await self.assigned()
        claim = await self.claimed(**options)
        assert (await tasks.start(self.database, held(claim))).outcome is Outcome.MOVED
        return claim

    async def says(self, issue: Issue, body: str, by: ClaimedTask | None = None) -> Commented:
        author = Author(user_id=self.board.user_id) if by is None else Author(task_id=by.id)
        made = await issues.add_comment(self.database, issue, body, author)
        assert made is not None
        return made

    async def complete(self, claim: ClaimedTask, output: str = "Done.") -> Moved:
        report = {"session_id": f"s{claim.attempt}", "work_dir": "/w"}
        return await tasks.complete(self.database, held(claim), {"output": output}, **report)

    async def fail(
        self,
        claim: ClaimedTask,
        reason: str,
        *,
        session_id: str | None = None,
        **told: Any,  # noqa: ANN401
    ) -> Task:
        failure = Failure(FailureReason(reason), f"it was {reason}", **told)
        done = await tasks.fail(
            self.database, held(claim), failure, session_id=session_id, work_dir=None
        )
        assert done.outcome is Outcome.MOVED
        assert done.task is not None
        return done.task

    async def give_up(self, *kept: UUID) -> list[Task]:
        """A new process of the machine registers, and knows of nothing but `kept`."""
        where = self.board.workspace_id, self.board.runtime_id
        return await sweeps.recover(self.database, *where, kept=list(kept), same_process=False)

    async def cancel(self, task_id: UUID) -> Moved:
        where = self.board.workspace_id, task_id
        return await tasks.cancel(self.database, *where, by=self.board.user_id)

    async def rerun(self, issue: Issue, **wanted: Any) -> Rerun:  # noqa: ANN401  # RerunIssue's
        asked = RerunIssue(**wanted)
        return await issues.rerun(self.database, issue, asked, user_id=self.board.user_id)

    async def stop(self, claim: ClaimedTask) -> Moved:
        return await tasks.confirm_stop(self.database, held(claim))

    async def tell(self, claim: ClaimedTask, text: str, *, seq: int = 0) -> Moved:
        told = [Message(seq=seq, type="text", content=text)]
        return await tasks.append_messages(self.database, held(claim), told)

    async def go_offline(self) -> None:
        await runtimes.go_offline(self.database, [self.board.runtime_id], action="stale_sweep")

    async def row(self, task_id: UUID) -> Task:
        found = await tasks.find(self.database, self.board.workspace_id, task_id)
        assert found is not None
        return found

    async def heir(self, task: Task) -> Task:
        """The retry that was born with its failure."""
        assert task.retry_task_id is not None
        return await self.row(task.retry_task_id)

    async def status(self, issue: Issue) -> str:
        found = await issues.get(self.database, self.board.workspace_id, issue.id)
        assert found is not None
        return found.status

    async def column(self, name: str, task_id: UUID) -> Any:  # noqa: ANN401
        return await self.database.pool.fetchval(
            f"select {name} from understudy.tasks where id = $1",  # noqa: S608
            task_id,
        )

    async def answers(self, comment: Commented) -> list[UUID | None]:
        """The tasks that answer it; None for one that is yet to be made."""
        rows = await self.database.pool.fetch(
            "select task_id from understudy.calls where comment_id = $1 order by agent_id",
            comment.id,
        )
        return [row["task_id"] for row in rows]

    async def everything(self) -> dict[str, list[Any]]:
        return await everything(self.database)


async def everything(database: Database) -> dict[str, list[Any]]:
    """All rows of all tables that a move may touch."""
    return {
        table: [
            row["it"]
            for row in await database.pool.fetch(
                f"select to_jsonb(t) as it from understudy.{table} t order by t::text"  # noqa: S608
            )
        ]
        for table in TABLES
    }


def held(claim: ClaimedTask) -> Holder:
    return Holder(claim.workspace_id, claim.id, claim.claim_token)


@asynccontextmanager
async def open_story(dsn: str) -> AsyncIterator[Story]:
    pool = Pool(partial(open_connection, dsn), size=1)
    database = Database(pool, Random(7))  # noqa: S311  # Of a test.
    try:
        await pool.fetchval(SET_TIME, BEGIN.isoformat())
        yield Story(await Board.set_up(database))
    finally:
        await pool.aclose()
