"""The board as the event log tells it, commit by commit: the auditor's own model of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from understudy.testing.evidence import Happened

STATUS: Final = {
    "task:deferred": "deferred", "task:queued": "queued", "task:dispatch": "dispatched",
    "task:running": "running", "task:completed": "completed", "task:failed": "failed",
    "task:cancelled": "cancelled",
}  # fmt: skip
IN_FLIGHT: Final = {"dispatched", "running"}
PENDING: Final = {"queued", "dispatched"}


@dataclass
class Standing:
    """Of a task."""

    status: str
    agent: str
    issue: str | None
    runtime: str | None
    since: float
    is_stopping: bool = False


@dataclass
class Board:
    tasks: dict[UUID, Standing] = field(default_factory=dict)
    """Those that are active, and those that have ended."""
    in_flight: dict[UUID, Standing] = field(default_factory=dict)
    online: dict[str, bool] = field(default_factory=dict)
    """By runtime."""

    def apply(self, event: Happened) -> None:
        body, task_id = event.body, event.task_id
        if event.kind in STATUS and task_id is not None:
            self._move(event, task_id)
        elif event.kind == "task:cancelling" and task_id is not None:
            self.tasks[task_id].is_stopping = True
        elif event.kind == "daemon:register":
            self._machines(body)

    def _move(self, event: Happened, task_id: UUID) -> None:
        body = event.body
        it = self.tasks[task_id] = Standing(
            STATUS[event.kind], body["agent_id"], body["issue_id"], body["runtime_id"], event.at
        )
        self.in_flight.pop(task_id, None)
        if it.status in IN_FLIGHT:
            self.in_flight[task_id] = it

    def _machines(self, body: dict[str, Any]) -> None:
        match body["action"]:
            case "register":
                ids = {each["id"]: each["status"] == "online" for each in body["runtimes"]}
                self.online.update(ids)
            case "heard_again":
                self.online.update(dict.fromkeys(body["runtime_ids"], True))
            case "heard_elsewhere":
                pass
            case _:
                self.online.update(dict.fromkeys(body["runtime_ids"], False))

    # Questions

    def runs_of(self, agent: str) -> int:
        return sum(each.agent == agent for each in self.in_flight.values())

    def on(self, issue: str | None, agent: str) -> list[UUID]:
        return [
            task_id
            for task_id, each in self.in_flight.items()
            if each.agent == agent and each.issue == issue
        ]

    def at_work_on(self, runtime: str) -> int:
        return sum(each.runtime == runtime for each in self.in_flight.values())


def replay(events: Iterable[Happened]) -> Iterator[tuple[Happened, Board]]:
    """Each event with the board as it leaves it; there is one board, which changes."""
    board = Board()
    for event in events:
        board.apply(event)
        yield event, board


def commits(events: Iterable[Happened]) -> Iterator[tuple[list[Happened], Board]]:
    """The same by instants: what happened at one was one statement, or several side by side."""
    board, together = Board(), list[Happened]()
    for event in events:
        if together and event.at != together[0].at:
            yield together, board
            together = []
        board.apply(event)
        together.append(event)
    if together:
        yield together, board
