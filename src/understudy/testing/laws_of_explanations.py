"""Whoever asked why was told the truth (R10.4): what was said is held against the event log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Final, TypeAlias
from uuid import UUID

from understudy.testing.evidence import CLOSE_S, TERMINAL, Evidence, Explained, seconds
from understudy.testing.laws import always
from understudy.testing.replay import IN_FLIGHT, PENDING, Board, Standing

SLACK_S: Final = 0.5
"""What was read a moment before it was asked is no lie."""


class Case:
    """A task as it stood at some moment of the answer."""

    def __init__(self, evidence: Evidence, board: Board, told: Explained) -> None:
        self.evidence, self.board, self.told = evidence, board, told
        self.it: Standing = board.tasks[told.task_id]

    @property
    def places(self) -> list[str]:
        """The runtimes that may take it."""
        agent, are_apart = UUID(self.it.agent), self.evidence.are_apart
        if (bound_to := self.evidence.agents[agent]["runtime_id"]) is not None:
            return [str(bound_to)]
        return [each for each in self.board.online if not are_apart(UUID(each), agent)]

    @property
    def there(self) -> list[str]:
        return [each for each in self.places if self.board.online.get(each)]

    def others(self, statuses: set[str]) -> list[UUID]:
        """Of its agent on its issue."""
        return [
            task_id
            for task_id, each in self.board.tasks.items()
            if (each.agent, each.issue) == (self.it.agent, self.it.issue)
            and each.status in statuses
            and task_id != self.told.task_id
        ]

    def has_limit(self) -> bool:
        return self.board.runs_of(self.it.agent) >= self.evidence.limits[UUID(self.it.agent)]

    def is_away(self) -> bool:
        return self.it.status in IN_FLIGHT and not self.board.online.get(str(self.it.runtime))

    def is_stopping(self) -> bool:
        return self.it.status in IN_FLIGHT and self.it.is_stopping

    def is_spent(self) -> bool:
        return self.it.status == "deferred" or any(
            event.kind == "task:failed"
            and event.at <= self.told.answered_at
            and event.body["failure_reason"] == "quota_exhausted"
            for event in self.evidence.events
        )

    def is_full(self) -> bool:
        """Before all is calm a machine may hold slots of runs whose reports are under way."""
        if not self.there or self.told.asked_at < self.evidence.machines.calm_at:
            return bool(self.there)
        return all(map(self._is_full, self.there))

    def _is_full(self, runtime: str) -> bool:
        machine = self.evidence.machine_of[UUID(runtime)]
        has_room = self.board.at_work_on(runtime) < self.evidence.machines.slots[machine]
        return not has_room or not self.evidence.takes_work(machine, self.told.asked_at)


Truth: TypeAlias = Callable[[Case], bool]


def _is(status: str) -> Truth:
    return lambda case: case.it.status == status


TRUTHS: Final[dict[str, Truth]] = {
    "backoff": _is("deferred"),
    "provider": _is("deferred"),
    "storm": _is("deferred"),
    "schedule": _is("deferred"),
    "promoting": _is("deferred"),
    "quota": Case.is_spent,
    "issue_pending": lambda case: bool(case.others(PENDING)),
    "agent_archived": lambda _: False,
    "no_runtime": lambda case: not case.places,
    "runtime_offline": lambda case: not case.there,
    "runtime_problem": lambda case: not case.there,
    "issue_busy": lambda case: bool(case.others(IN_FLIGHT)),
    "agent_limit": Case.has_limit,
    "not_connected": lambda case: bool(case.there),
    "no_slot": Case.is_full,
    "handing_over": lambda case: bool(case.there) and not case.has_limit(),
    "takeover_grace": Case.is_away,
    "alone_grace": Case.is_away,
    "claim_expired": _is("dispatched"),
    "preparing": _is("dispatched"),
    "working": _is("running"),
    "stopping": Case.is_stopping,
    "stop_unconfirmed": lambda case: case.is_stopping() and case.is_away(),
}
"""By the constraint that is named. No agent of these worlds is ever archived."""


@always
def everything_is_explained(evidence: Evidence) -> Iterator[str]:
    """R10.4: whoever asks why gets a sentence; of what has not ended, what would change it, too."""
    for told in evidence.machines.explained:
        said = told.said or {}
        is_over = said.get("status") in TERMINAL
        if not said.get("sentence") or not (is_over or (said["constraint"] and said["changes"])):
            yield f"{told.task_id} is not explained at {told.asked_at:.3f}: {told.said}"


@always
def explanations_are_true(evidence: Evidence) -> Iterator[str]:
    """R10.4: what is named as in the way was in the way while that was said."""
    for told in evidence.machines.explained:
        if told.said and told.said.get("sentence") and not _was_so(evidence, told):
            yield f"{told.task_id} at {told.asked_at:.3f}: {told.said['sentence']!r}"


def _was_so(evidence: Evidence, told: Explained) -> bool:
    board = Board()
    for event in evidence.events:
        if event.at > told.answered_at + CLOSE_S:
            break
        if event.at >= told.asked_at - SLACK_S and _is_so(evidence, board, told):
            return True
        board.apply(event)
    return _is_so(evidence, board, told)


def _is_so(evidence: Evidence, board: Board, told: Explained) -> bool:
    if told.said is None or told.task_id not in board.tasks:
        return False
    case, constraint = Case(evidence, board, told), told.said.get("constraint")
    if told.said["status"] != case.it.status:
        return False
    return constraint is None or TRUTHS[constraint](case)


@always
def told_times_are_kept(evidence: Evidence) -> Iterator[str]:
    """R10.4: what is deferred until a time that was told is not queued before it."""
    for told in evidence.machines.explained:
        said = told.said or {}
        if said.get("status") != "deferred" or not said.get("changes_at"):
            continue
        due = seconds(datetime.fromisoformat(said["changes_at"]))
        for event in evidence.events:
            is_early = told.answered_at < event.at < due - CLOSE_S
            if event.kind == "task:queued" and event.task_id == told.task_id and is_early:
                yield f"{told.task_id} was to wait until {due:.1f} and is queued at {event.at:.1f}"
