"""What holds at every instant: how much of what may be under way, and where."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations, product
from typing import Any, Final
from uuid import UUID

from understudy.testing.evidence import CLOSE_S, Evidence, Happened, Run
from understudy.testing.laws import always
from understudy.testing.replay import PENDING, STATUS, Board, replay

AWAKE_S: Final = 7.0
"""A look of a keeper, 2 s, and the steps by which it ends a stubborn agent."""


@always
def agents_keep_their_limits(evidence: Evidence) -> Iterator[str]:
    """R3.3: at no commit has an agent more tasks in flight than it may."""
    for event, board in replay(evidence.events):
        if event.kind == "task:dispatch":
            agent = event.body["agent_id"]
            runs, limit = board.runs_of(agent), evidence.limits[UUID(agent)]
            if runs > limit:
                yield f"{agent} runs {runs} of {limit}"


@always
def an_agent_is_on_an_issue_once(evidence: Evidence) -> Iterator[str]:
    """R3.3: an agent's tasks on an issue are in flight one after the other."""
    for event, board in replay(evidence.events):
        if event.kind == "task:dispatch":
            agent, issue = event.body["agent_id"], event.body["issue_id"]
            if issue is not None and len(board.on(issue, agent)) > 1:
                yield f"{agent} is twice on issue {issue}"


@always
def one_task_waits_for_an_agent_on_an_issue(evidence: Evidence) -> Iterator[str]:
    """R2.5: at most one task of an agent on an issue is queued or dispatched."""
    pending = defaultdict[tuple[str, str], set[UUID | None]](set)
    for event in evidence.events:
        if event.kind in STATUS and event.body["issue_id"] is not None:
            place = pending[event.body["issue_id"], event.body["agent_id"]]
            place.discard(event.task_id)
            if STATUS[event.kind] in PENDING:
                place.add(event.task_id)
                if len(place) > 1:
                    yield f"{event.body['agent_id']} has {len(place)} tasks pending on one issue"


@always
def agents_stay_where_they_are_bound(evidence: Evidence) -> Iterator[str]:
    """R3.1: who is bound to a machine works nowhere else."""
    for event in _claims(evidence):
        bound_to = evidence.agents[UUID(event.body["agent_id"])]["runtime_id"]
        if bound_to is not None and str(bound_to) != event.body["runtime_id"]:
            yield f"{event.body['task_id']} is claimed by another machine than its agent's"


@always
def what_waits_is_bound_as_its_agent_is(evidence: Evidence) -> Iterator[str]:
    """R3.1, R3.8: what is queued may go wherever its agent may, whoever has given it back."""
    for event in evidence.events:
        if event.kind == "task:queued":
            bound_to = evidence.agents[UUID(event.body["agent_id"])]["runtime_id"]
            if event.body["runtime_id"] != (bound_to and str(bound_to)):
                yield f"{event.task_id} waits for {event.body['runtime_id']}, not for {bound_to}"


def _claims(evidence: Evidence) -> Iterator[Happened]:
    return (event for event in evidence.events if event.kind == "task:dispatch")


@always
def tokens_are_new(evidence: Evidence) -> Iterator[str]:
    """R3.4: no two claims have the same token, and no claim is handed to two machines."""
    owners: dict[UUID, tuple[UUID, str]] = {}
    for token, task_id, machine in evidence.machines.tokens:
        if owners.setdefault(token, (task_id, machine)) != (task_id, machine):
            task, where = owners[token]
            yield f"{task_id} on {machine} has the token of {task} on {where}"


@always
def an_agent_works_once_at_an_issue(evidence: Evidence) -> Iterator[str]:
    """R2.3, R4.11: at no instant do two processes of one agent work at one issue, anywhere.

    A machine that wakes finds its agents at work; until its keepers have seen what time it is, and
    ended them, nobody is to blame. Nor is anybody for what a machine works at that does not know
    yet that its copy has disowned it.
    """
    places = defaultdict[tuple[UUID | None, UUID], list[Run]](list)
    for newest in evidence.machines.runs.values():
        for run in newest.line():
            places[run.task.issue_id, run.task.agent_id].append(run)
    for runs in places.values():
        for one, other in combinations(runs, 2):
            if _overlap(one, other) and not any(map(evidence.is_disowned, (one, other))):
                yield (
                    f"{one.task.id} on {one.machine} {one.spans} and"
                    f" {other.task.id} on {other.machine} {other.spans} at the same time"
                )


def _overlap(one: Run, other: Run) -> bool:
    pairs = product(_awake(one), _awake(other))
    return any(max(a, c) < min(b, d) - CLOSE_S for (a, b), (c, d) in pairs)


def _awake(run: Run) -> list[tuple[float, float]]:
    first, *woken = run.spans
    return [first, *((began + AWAKE_S, ended) for began, ended in woken)]


@always
def a_task_is_begun_once(evidence: Evidence) -> Iterator[str]:
    """R3.5, R8.1: one agent's process for one task, or a second where it could not resume."""
    for task_id, newest in evidence.machines.runs.items():
        for run in newest.line():
            if run.earlier is not None and not _may_begin_again(run, run.earlier):
                yield f"{task_id} is executed by {run.machine}, and was by {run.earlier.machine}"


def _may_begin_again(run: Run, earlier: Run) -> bool:
    return run.is_afresh and run.machine == earlier.machine and not earlier.is_afresh


@always
def machines_keep_their_slots(evidence: Evidence) -> Iterator[str]:
    """R9.6: at no instant has a machine more living agents than slots."""
    changes = defaultdict[str, list[tuple[float, int]]](list)
    for newest in evidence.machines.runs.values():
        for run in newest.line():
            changes[run.machine] += [(run.began_at, 1), (run.ended_at, -1)]
    for machine, slots in evidence.machines.slots.items():
        alive = most = 0
        for _, change in sorted(changes[machine]):
            alive += change
            most = max(most, alive)
        if most > slots:
            yield f"{machine} has {most} agents in {slots} slots"


@always
def the_first_in_line_is_claimed(evidence: Evidence) -> Iterator[str]:
    """R3.2: of an agent's tasks that a machine could take, it takes those that rank first."""
    board = Board()
    for claims, before in _groups(evidence.events, board):
        taken = {event.task_id for event in claims}
        for event in claims:
            agent = event.body["agent_id"]
            rank = _rank(evidence, event.task_id)
            for task_id in before[agent] - taken:
                if _rank(evidence, task_id) < rank and _could(board, task_id, event):
                    yield f"{event.task_id} is claimed before {task_id}, which ranks higher"


def _groups(
    events: Iterable[Happened], board: Board
) -> Iterator[tuple[list[Happened], dict[str, set[UUID | None]]]]:
    """The claims of one instant, with what was queued by agent when they came."""
    claims, at = list[Happened](), -1.0
    for event in events:
        if claims and (event.at != at or event.kind != "task:dispatch"):
            yield claims, _queued(board)
            claims = []
        if event.kind == "task:dispatch":
            claims.append(event)
            at = event.at
        board.apply(event)
    if claims:
        yield claims, _queued(board)


def _queued(board: Board) -> dict[str, set[UUID | None]]:
    queued = defaultdict[str, set[UUID | None]](set)
    for task_id, it in board.tasks.items():
        if it.status == "queued":
            queued[it.agent].add(task_id)
    return queued


def _rank(evidence: Evidence, task_id: UUID | None) -> tuple[Any, UUID]:
    assert task_id is not None
    return evidence.tasks[task_id]["rank"], task_id


def _could(board: Board, task_id: UUID | None, claim: Happened) -> bool:
    assert task_id is not None
    it = board.tasks[task_id]
    is_free = not board.on(it.issue, it.agent)
    return is_free and it.since < claim.at and it.runtime in {None, claim.body["runtime_id"]}
