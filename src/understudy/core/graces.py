"""When a task in flight is given up: its runtime lost (R4.2), its time over (R4.10).

`schema.sql` decides it, in `lose_tasks`, `time_out_tasks` and `plan_retry`; this foretells it.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from understudy.core.leases import Leases
from understudy.core.lifecycle import Status
from understudy.core.situation import Place, Situation


def heirs(situation: Situation) -> list[Place]:
    """Who can take over from the place that holds the task, and is offline: who was there when it
    was last heard. Only then has its daemon been told to stop in time (R4.11)."""
    mine = situation.mine
    if mine.is_pinned or mine.last_seen_at is None:
        return []
    return [
        place
        for place in situation.places
        if place.offline_since is None
        and place.online_since is not None
        and place.online_since <= mine.last_seen_at
    ]


def given_up_at(situation: Situation, leases: Leases) -> datetime:
    """Of a task whose place is offline: lost or timed out, whichever comes first."""
    offline_since = situation.mine.offline_since
    assert offline_since is not None
    grace_s = leases.alone_grace_s
    if heirs(situation):
        grace_s = min(grace_s, leases.takeover_grace_s)
    lost_at = offline_since + timedelta(seconds=grace_s)
    if situation.task.status is Status.DISPATCHED:
        return min(lost_at, unclaimed_at(situation, leases))
    assert situation.task.started_at is not None
    too_long_at = situation.task.started_at + timedelta(seconds=leases.running_max_s)
    silent_at = offline_since + timedelta(seconds=leases.takeover_grace_s)
    return min(lost_at, max(too_long_at, silent_at))


def unclaimed_at(situation: Situation, leases: Leases) -> datetime:
    """When a dispatched task times out. While its claim is renewed it does not: that proves life,
    however long the preparation takes."""
    dispatched_at, expires_at = situation.task.dispatched_at, situation.claim_expires_at
    assert dispatched_at is not None
    assert expires_at is not None
    return max(expires_at, dispatched_at + timedelta(seconds=leases.dispatched_max_s))


def has_next_attempt(situation: Situation) -> bool:
    """Whether another attempt follows one that was given up (R5.3, R5.4)."""
    return (
        situation.task.attempt < situation.task.max_attempts
        and situation.task.issue_id is not None
        and not situation.is_archived
        and not situation.has_pending_on_issue
    )
