"""The board: every issue in its column, with the run that is live on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from understudy.core.records import Agent, Issue, Runtime
from understudy.http.pages import runs
from understudy.http.pages.runs import RunView
from understudy.http.site import Site
from understudy.store import agents, board, issues, runtimes

COLUMNS: Final = {
    "backlog": ("Backlog", "Nothing starts here until it is moved on."),
    "todo": ("Todo", "Assign an issue to an agent and it starts."),
    "in_progress": ("In progress", "Agents at work."),
    "in_review": ("In review", "Finished runs wait here for you."),
    "done": ("Done", ""),
}
DONE_MAX: Final = 50
"""Cards in the column that grows for ever."""


@dataclass(frozen=True)
class Card:
    issue: Issue
    run: RunView | None

    @property
    def is_closed(self) -> bool:
        return self.issue.status in {"done", "cancelled"}

    @property
    def shown_run(self) -> RunView | None:
        """Where somebody has closed the issue only what is not over yet."""
        return self.run if self.run and (self.run.is_active or not self.is_closed) else None

    @property
    def column(self) -> str:
        """By the facts: what an agent has in hand is in progress before its first word."""
        if self.is_closed:
            return "done"
        if self.run and self.run.is_in_hand:
            return "in_progress"
        return self.issue.status


@dataclass(frozen=True)
class Column:
    status: str
    title: str
    hint: str
    cards: Sequence[Card]
    size: int

    @property
    def hidden(self) -> int:
        return self.size - len(self.cards)


@dataclass(frozen=True)
class Steps:
    """How far a new workspace has come; each is a fact, not a tick."""

    machine: bool
    agent: bool
    issue: bool
    run: bool

    @property
    def all_done(self) -> bool:
        return self.machine and self.agent and self.issue and self.run


@dataclass(frozen=True)
class BoardView:
    now: datetime
    columns: Sequence[Column]
    agents: Sequence[Agent]
    steps: Steps
    running: int
    waiting: int
    failed: int
    to_review: int
    offline: Sequence[str]
    """Devices that are away."""
    every_ms: int | None


async def view(site: Site, workspace_id: UUID) -> BoardView:
    database = site.database
    machines = await runtimes.of_workspace(database, workspace_id)
    everyone = await agents.of_workspace(database, workspace_id)
    found = await board.live_runs(database, workspace_id)
    shown = await runs.views(site, workspace_id, list(found.values()))
    live = dict(zip(found, shown, strict=True))
    cards = [
        Card(issue, live.get(issue.id))
        for issue in await issues.of_workspace(database, workspace_id)
    ]
    looks = [card.shown_run.look for card in cards if card.shown_run]
    return BoardView(
        now=await board.now(database),
        columns=columns(cards),
        agents=everyone,
        steps=Steps(bool(machines), bool(everyone), bool(cards), bool(live)),
        running=sum(look in runs.IN_HAND for look in looks),
        waiting=looks.count("waiting"),
        failed=looks.count("failed"),
        to_review=sum(card.issue.status == "in_review" for card in cards),
        offline=devices_away(machines),
        every_ms=runs.every_ms(shown),
    )


def columns(cards: Iterable[Card]) -> list[Column]:
    sorted_in: dict[str, list[Card]] = {status: [] for status in COLUMNS}
    for card in cards:
        sorted_in[card.column].append(card)
    return [
        Column(
            status,
            *COLUMNS[status],
            cards=found[:DONE_MAX] if status == "done" else found,
            size=len(found),
        )
        for status, found in sorted_in.items()
    ]


def devices_away(machines: Iterable[Runtime]) -> list[str]:
    """Devices none of whose runtimes is online."""
    there: dict[str, bool] = {}
    for each in machines:
        name = each.device_name or each.name
        there[name] = there.get(name, False) or each.status == "online"
    return sorted(name for name, is_there in there.items() if not is_there)
