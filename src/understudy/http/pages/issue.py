"""One issue: its runs, what they said, and the conversation about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from understudy.core.records import Agent, Comment, Issue, Usage
from understudy.http.pages import runs
from understudy.http.pages.runs import RunView
from understudy.store import agents, board, issues, runtimes, tasks
from understudy.store.board import Tokens
from understudy.store.database import Database
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
    agents: Sequence[Agent]

    @property
    def live(self) -> RunView | None:
        """The run that the head of the page speaks of."""
        return next((run for run in self.runs if run.look == "running"), _first(self.runs))


async def view(database: Database, workspace_id: UUID, name: str, chosen: UUID | None) -> IssueView:
    """Raises `Refused` (404). Shows the run in flight, or the newest, unless one is chosen."""
    issue = await issues.find(database, workspace_id, name)
    if issue is None:
        raise not_found(f"issue {name[:80]}")
    machines = await runtimes.of_workspace(database, workspace_id)
    found = [runs.view(run, machines) for run in await board.runs_of_issue(database, issue.id)]
    by_id = {run.id: run for run in found}
    selected = by_id.get(chosen) if chosen else None
    shown = selected or next((run for run in found if run.look == "running"), _first(found))
    return IssueView(
        now=await board.now(database),
        issue=issue,
        runs=found,
        selected=shown,
        chosen=selected is not None,
        usage=await tasks.usage(database, shown.id) if shown else [],
        tokens=await board.tokens_of_issue(database, issue.id),
        comments=await issues.comments(database, issue.id),
        agents=await agents.of_workspace(database, workspace_id),
    )


def _first(found: Sequence[RunView]) -> RunView | None:
    return found[0] if found else None
