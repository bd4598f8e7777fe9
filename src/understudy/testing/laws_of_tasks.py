"""What the history of tasks must look like, whatever failed: limits, orders, retries, graces.

The event table is read as the log of commits. The numbers are the rules' own, written down once
more: the program is not asked what it would have done.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Final
from uuid import UUID

from understudy.store.connection import Record
from understudy.testing.evidence import Evidence, Happened, last_of, seconds

ENDS: Final = {"task:completed", "task:failed", "task:cancelled"}
FOLLOWS: Final = {
    "task:deferred": {"task:queued", "task:cancelled"},
    "task:queued": {"task:dispatch", "task:failed", "task:cancelled"},
    "task:dispatch": {"task:queued", "task:running", "task:failed", "task:cancelled"},
    "task:running": ENDS,
    "task:failed": {"task:completed"},  # R6.5
    "task:completed": set[str](),
    "task:cancelled": set[str](),
}
ATTEMPTS: Final = {
    "timeout": 2, "runtime_offline": 2, "runtime_recovery": 2, "runtime_shutdown": 2,
    "keeper_lost": 2, "agent_killed": 2, "prepare_failed": 2, "agent_stalled": 2,
    "provider_network": 4, "provider_overloaded": 2, "quota_exhausted": 5,
}  # fmt: skip
"""R5.2: who is tried again, and how often in all."""
SILENCE_S: Final = 45.0
TAKEOVER_S: Final = 45.0
DISPATCHED_S: Final = 300.0
CLOSE_S: Final = 0.001
INSTANT_S: Final = 0.5
"""Who is heard while he is judged comes too late."""


def broken(evidence: Evidence) -> Iterator[str]:
    yield from limits_broken(evidence.events, evidence.limits)
    yield from illegal_orders(evidence.events)
    yield from (f"issue {number} is in progress by nobody" for number in evidence.stuck)
    yield from _retries(evidence)
    yield from _given_up_too_soon(evidence)
    yield from _quotas_ignored(evidence)
    yield from _misplaced(evidence)


def limits_broken(events: Iterable[Happened], limits: dict[UUID, int]) -> Iterator[str]:
    """At each commit: what each agent runs, and on which issue."""
    in_flight: dict[str, tuple[str, str]] = {}
    for event in events:
        body = event.body
        if event.kind == "task:dispatch":
            agent, issue = body["agent_id"], body["issue_id"]
            if (agent, issue) in in_flight.values():
                yield f"{agent} is twice on issue {issue}"
            in_flight[body["task_id"]] = agent, issue
            runs = sum(each[0] == agent for each in in_flight.values())
            if runs > limits[UUID(agent)]:
                yield f"{agent} runs {runs} of {limits[UUID(agent)]}"
        elif event.kind in ENDS or event.kind == "task:queued":
            in_flight.pop(body["task_id"], None)


def illegal_orders(events: Iterable[Happened]) -> Iterator[str]:
    stories: dict[UUID | None, list[str]] = {}
    for event in events:
        if event.kind in FOLLOWS:
            stories.setdefault(event.task_id, []).append(event.kind)
    for task_id, story in stories.items():
        if story[0] not in {"task:queued", "task:deferred"} or story[-1] not in ENDS:
            yield f"{task_id}: {story}"
        for before, after in pairwise(story):
            if after not in FOLLOWS[before]:
                yield f"{task_id}: {after} after {before}"


def _retries(evidence: Evidence) -> Iterator[str]:
    """R5.3, R5.4: a further attempt where the reason allows it, unless something waits already."""
    waiting = defaultdict[tuple[str, str], set[str]](set)
    for event in evidence.events:
        if event.kind not in FOLLOWS:
            continue
        body = event.body
        place = waiting[body["issue_id"], body["agent_id"]]
        place.discard(body["task_id"])
        if event.kind in {"task:queued", "task:dispatch"}:
            place.add(body["task_id"])
        if event.kind == "task:failed":
            row = evidence.tasks[UUID(body["task_id"])]
            yield from _heir_missing(evidence, row, event, is_taken=bool(place))


def _heir_missing(
    evidence: Evidence, row: Record, event: Happened, *, is_taken: bool
) -> Iterator[str]:
    reason, attempt = event.body["failure_reason"], row["attempt"]
    is_due = attempt < ATTEMPTS.get(reason, 0) and not is_taken
    children = [
        each
        for each in evidence.tasks.values()
        if each["parent_task_id"] == row["id"] and each["attempt"] > 1
    ]
    if len(children) != is_due:
        yield f"{row['id']} failed ({reason}, attempt {attempt}) and has {len(children)} heirs"
    for child in children:
        fire_at = event.at + _wait_s(evidence, row, reason)
        began = [
            each.at
            for each in evidence.events
            if each.kind == "task:dispatch" and each.task_id == child["id"]
        ]
        if child["attempt"] != attempt + 1:
            yield f"{child['id']} is attempt {child['attempt']} after {attempt}"
        if began and began[0] < fire_at - CLOSE_S:
            yield f"{child['id']} is claimed {fire_at - began[0]:.1f} s too soon after {reason}"


def _wait_s(evidence: Evidence, row: Record, reason: str) -> float:
    """R5.2."""
    run = evidence.machines.runs.get(row["id"])
    asked_s = run.retry_after_s if run is not None and run.reason == reason else None
    match reason:
        case "provider_network":
            return (0.0, 0.0, 5.0, 30.0)[row["attempt"]]
        case "provider_overloaded":
            return asked_s if asked_s is not None else 30.0 * 2 ** (row["attempt"] - 1)
        case "quota_exhausted":
            return asked_s if asked_s is not None else 3600.0
        case _:
            return 0.0


def _given_up_too_soon(evidence: Evidence) -> Iterator[str]:
    """R4.2, R4.4, R4.10, R6.2: judged from what the nodes heard of the machines."""
    queued_at: dict[UUID | None, float] = {}
    for event in evidence.events:
        if event.kind == "task:queued":
            queued_at[event.task_id] = event.at
        elif event.kind == "task:failed":
            row = evidence.tasks[UUID(event.body["task_id"])]
            waited_s = event.at - queued_at[event.task_id]
            if event.body["move"] == "expire" and waited_s < evidence.leases.queued_max_s:
                yield f"{row['id']} expires after {waited_s:.1f} s"
            elif event.body["runtime_id"] is not None:
                yield from _judged_too_soon(evidence, row, event)


def _judged_too_soon(evidence: Evidence, row: Record, event: Happened) -> Iterator[str]:
    machine = evidence.machine_of[UUID(event.body["runtime_id"])]
    silent_s = evidence.silent_s(machine, event.at - INSTANT_S) + INSTANT_S
    move = event.body["move"]
    if move == "lose":
        grace_s = TAKEOVER_S
        if evidence.agents[row["agent_id"]]["runtime_id"] is not None:
            grace_s = evidence.leases.alone_grace_s
        if silent_s < SILENCE_S + grace_s - CLOSE_S:
            yield f"{row['id']} is lost after {silent_s:.1f} s of silence of {machine}"
    elif move == "time_out":
        since_s = event.at - seconds(row["started_at"] or row["dispatched_at"])
        least_s = evidence.leases.running_max_s if row["started_at"] else DISPATCHED_S
        if since_s < least_s - CLOSE_S or (row["started_at"] and silent_s < SILENCE_S):
            yield f"{row['id']} times out after {since_s:.1f} s, heard {silent_s:.1f} s ago"
    elif move == "orphan":
        yield from _orphaned(evidence, row, event.at, machine)
    if move in {"lose", "time_out"} and row["started_at"]:
        promises = [each for each in evidence.machines.promises[machine] if each[0] <= event.at]
        if event.at < (until := max(promises)[1]) - CLOSE_S:
            yield f"{row['id']} is given up; {machine} was promised it until {until:.1f}"


def _orphaned(evidence: Evidence, row: Record, at: float, machine: str) -> Iterator[str]:
    run = evidence.machines.runs.get(row["id"])
    sent_at = last_of(evidence.machines.registered[machine], at)
    kept_until = evidence.machines.let_go.get((machine, row["id"]), float("inf"))
    if run is not None and run.began_at < sent_at and kept_until > at:
        yield f"{row['id']} is orphaned, and {machine} had named it"


def _quotas_ignored(evidence: Evidence) -> Iterator[str]:
    """R5.2: until the quota is back the machine is given nothing, unless a person knows better."""
    spent = defaultdict[str, list[tuple[float, float]]](list)
    for event in evidence.events:
        place = str(event.body.get("runtime_id"))
        if event.kind == "task:failed" and event.body["failure_reason"] == "quota_exhausted":
            row = evidence.tasks[UUID(event.body["task_id"])]
            until = event.at + _wait_s(evidence, row, "quota_exhausted")
            spent[place].append((event.at, until))
        elif event.kind == "task:dispatch":
            for since, until in spent[place]:
                reruns = evidence.machines.reruns
                asked = any(a - CLOSE_S <= event.at and since <= b for a, b in reruns)
                if event.at < until - CLOSE_S and not asked:
                    yield f"{event.body['task_id']} is claimed: no quota until {until:.1f}"


def _misplaced(evidence: Evidence) -> Iterator[str]:
    """R3.1: who is bound to a machine works nowhere else."""
    for event in evidence.events:
        if event.kind == "task:dispatch":
            bound_to = evidence.agents[UUID(event.body["agent_id"])]["runtime_id"]
            if bound_to is not None and str(bound_to) != event.body["runtime_id"]:
                yield f"{event.body['task_id']} is claimed by another machine than its agent's"
