"""One issue: its runs, what they said, and the conversation about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from understudy.core.failures import FailureReason
from understudy.core.records import Agent, Comment, Issue, Usage
from understudy.http.pages import runs
from understudy.http.pages.runs import RunView
from understudy.http.site import Site
from understudy.store import agents, board, issues, tasks
from understudy.store.board import Call, Tokens
from understudy.wire.errors import not_found


@dataclass(frozen=True)
class IssueView:
    """`selected` is the run whose transcript is shown; `chosen`: the reader asked for it."""

    now: datetime
    issue: Issue
    runs: Sequence[RunView]
    selected: RunView | None
    chosen: bool
    usage: Sequence[Usage]
    tokens: Mapping[UUID, Tokens]
    comments: Sequence[Comment]
    calls: Mapping[UUID, Sequence[Call]]
    agents: Sequence[Agent]

    @property
    def every_ms(self) -> int | None:
        return runs.every_ms(self.runs)

    @property
    def active(self) -> int:
        return sum(run.is_active for run in self.runs)

    @property
    def is_at_work(self) -> bool:
        """The agent of the selected run has something in hand here, this run or another one."""
        assert self.selected is not None
        mine = self.selected.task.agent_id
        return any(run.is_in_hand and run.task.agent_id == mine for run in self.runs)

    @property
    def listener(self) -> str | None:
        """Whom a comment calls that names nobody (R10.2)."""
        is_open = self.issue.status not in {"backlog", "done", "cancelled"}
        return self.issue.assignee_name if is_open and self.issue.assignee_agent_id else None

    @property
    def live(self) -> RunView | None:
        """The run that the head of the page speaks of."""
        return _live(self.runs)

    def run(self, run_id: UUID) -> RunView | None:
        return next((run for run in self.runs if run.id == run_id), None)


async def view(site: Site, workspace_id: UUID, name: str, chosen: UUID | None) -> IssueView:
    """Raises `Refused` (404). Shows the run in flight, or the newest, unless one is chosen."""
    database = site.database
    issue = await issues.find(database, workspace_id, name)
    if issue is None:
        raise not_found(f"issue {name[:80]}")
    found = await runs.views(site, workspace_id, await board.runs_of_issue(database, issue.id))
    selected = next((run for run in found if run.id == chosen), None)
    shown = selected or _live(found)
    return IssueView(
        now=await board.now(database),
        issue=issue,
        runs=found,
        selected=shown,
        chosen=selected is not None,
        usage=await tasks.usage(database, shown.id) if shown else [],
        tokens=await board.tokens_of_issue(database, issue.id),
        comments=await issues.comments(database, issue.id),
        calls=await board.calls_of_issue(database, issue.id),
        agents=await agents.of_workspace(database, workspace_id),
    )


def _live(found: Sequence[RunView]) -> RunView | None:
    """What works, else the newest, unless a late result has made that one needless."""
    working = [run for run in found if run.look in {"running", "cancelling"}]
    meant = [run for run in found if run.task.failure_reason is not FailureReason.SUPERSEDED]
    return next(iter([*working, *meant, *found]), None)
