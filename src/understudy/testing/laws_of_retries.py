"""What may follow a failure, and when (R5)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Final
from uuid import UUID

from understudy.testing.evidence import CLOSE_S, Evidence, Happened, Row, seconds
from understudy.testing.laws import always, at_rest
from understudy.testing.replay import PENDING, STATUS

ATTEMPTS: Final = {
    "timeout": 2, "runtime_offline": 2, "runtime_recovery": 2, "runtime_shutdown": 2,
    "keeper_lost": 2, "agent_killed": 2, "prepare_failed": 2, "agent_stalled": 2,
    "provider_network": 4, "provider_overloaded": 2, "quota_exhausted": 5,
}  # fmt: skip
"""R5.2: who is tried again, and how often in all."""


def failures(evidence: Evidence) -> Iterator[tuple[Row, Happened, bool]]:
    """Each with its row, and whether another task of that agent waited on the issue already."""
    waiting = defaultdict[tuple[str, str], set[UUID]](set)
    for event in evidence.events:
        if event.kind not in STATUS or event.task_id is None:
            continue
        place = waiting[event.body["issue_id"], event.body["agent_id"]]
        place.discard(event.task_id)
        if STATUS[event.kind] in PENDING:
            place.add(event.task_id)
        if event.kind == "task:failed" and event.task_id in evidence.tasks:
            yield evidence.tasks[event.task_id], event, bool(place)


@always
def a_failure_has_one_heir_or_none(evidence: Evidence) -> Iterator[str]:
    """R5.2 to R5.4: one next attempt where the reason allows it and none waits, else none."""
    for row, event, is_taken in failures(evidence):
        reason, attempt = event.body["failure_reason"], row["attempt"]
        is_due = attempt < ATTEMPTS.get(reason, 0) and not is_taken
        heirs = sum(1 for _ in evidence.children(row["id"]))
        if heirs != is_due:
            yield f"{row['id']} failed ({reason}, attempt {attempt}) and has {heirs} heirs"


@always
def attempts_count_up(evidence: Evidence) -> Iterator[str]:
    """R5.3: an attempt is one more than that before it, for the same agent, issue and trigger."""
    for row in evidence.tasks.values():
        if row["attempt"] == 1:
            continue
        parent = evidence.tasks.get(row["parent_task_id"])
        if parent is None or row["attempt"] != parent["attempt"] + 1:
            yield f"{row['id']} is attempt {row['attempt']}, and not the next of any"
        elif [row[name] for name in SAME] != [parent[name] for name in SAME]:
            yield f"{row['id']} is another matter than the attempt before it"


SAME: Final = ("agent_id", "issue_id", "trigger", "trigger_comment_id", "priority", "rank")


@always
def attempts_come_to_an_end(evidence: Evidence) -> Iterator[str]:
    """R5.2, R5.3: no line of attempts is longer than its reasons allow."""
    for row in evidence.tasks.values():
        parent = evidence.tasks.get(row["parent_task_id"]) if row["attempt"] > 1 else None
        if parent is not None and row["attempt"] > ATTEMPTS.get(parent["failure_reason"] or "", 5):
            yield f"{row['id']} is attempt {row['attempt']} after {parent['failure_reason']}"


@always
def retries_wait_their_time(evidence: Evidence) -> Iterator[str]:
    """R5.2: no attempt is claimed before what its reason asks to wait is over."""
    claimed_at: dict[UUID | None, float] = {}
    for event in evidence.events:
        if event.kind == "task:dispatch":
            claimed_at.setdefault(event.task_id, event.at)
    for row, event, _ in failures(evidence):
        due = event.at + wait_s(evidence, row, event.body["failure_reason"])
        for child in evidence.children(row["id"]):
            if (at := claimed_at.get(child["id"], due)) < due - CLOSE_S:
                reason = event.body["failure_reason"]
                yield f"{child['id']} is claimed {due - at:.1f} s too soon after {reason}"


@always
def deferred_tasks_wait_their_time(evidence: Evidence) -> Iterator[str]:
    """R5.2, R5.7: what is deferred is not queued before the time that its row names."""
    for event in evidence.events:
        if event.kind != "task:queued" or event.body["move"] != "promote":
            continue
        row = evidence.tasks[UUID(event.body["task_id"])]
        if row["fire_at"] is not None and event.at < seconds(row["fire_at"]) - CLOSE_S:
            yield f"{row['id']} is queued {seconds(row['fire_at']) - event.at:.1f} s too soon"


def wait_s(evidence: Evidence, row: Row, reason: str) -> float:
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


@always
def quotas_are_respected(evidence: Evidence) -> Iterator[str]:
    """R5.2: until its quota is back a machine is given nothing, unless a person knows better."""
    spent = defaultdict[str, list[tuple[float, float]]](list)
    for event in evidence.events:
        place = str(event.body.get("runtime_id"))
        if event.kind == "task:failed" and event.body["failure_reason"] == "quota_exhausted":
            row = evidence.tasks[UUID(event.body["task_id"])]
            until = event.at + wait_s(evidence, row, "quota_exhausted")
            spent[place].append((event.at, until))
        elif event.kind == "task:dispatch":
            for since, until in spent[place]:
                if event.at < until - CLOSE_S and not _was_overruled(evidence, since, event.at):
                    yield f"{event.body['task_id']} is claimed: no quota until {until:.1f}"


def _was_overruled(evidence: Evidence, since: float, at: float) -> bool:
    """Its request may have been carried out after somebody gave up waiting for the answer."""
    begun = [seconds(r["created_at"]) for r in evidence.tasks.values() if r["trigger"] == "rerun"]
    asked = [*evidence.machines.reruns, *zip(begun, begun, strict=True)]
    return any(a - CLOSE_S <= at and since <= b for a, b in asked)


@at_rest
def what_brings_hosts_down_is_given_up(evidence: Evidence) -> Iterator[str]:
    """R6.10: a task whose machine went down under it twice is not tried a third time."""
    for row in evidence.tasks.values():
        if row["failure_reason"] == "poison":
            if row["host_crashes"] < 1:
                yield f"{row['id']} is called poison after {row['host_crashes']} crashes"
        elif row["host_crashes"] > 1:
            yield f"{row['id']} brought down {row['host_crashes']} hosts and was tried again"
        elif row["host_crashes"] == 1 and row["move"] == "orphan" and row["started_at"]:
            yield f"{row['id']} brought down a second host, and failed of {row['failure_reason']}"
