"""What is known of a task that has not ended, and what `core/explain.py` says to it (R10.4)."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal, TypeAlias
from uuid import UUID

from understudy.core.records import Task
from understudy.core.struct import Struct

Deferral: TypeAlias = Literal["backoff", "provider", "quota", "storm", "schedule"]


class Place(Struct):
    """A runtime that may run the task; it is online unless it is offline since some time.

    `free_slots` and `is_attached` are None where this node cannot know: another one attends it.
    """

    name: str
    offline_since: datetime | None = None
    online_since: datetime | None = None
    last_seen_at: datetime | None = None
    """When it was last heard, if it is offline."""
    problem: str | None = None
    quota_resets_at: datetime | None = None
    is_pinned: bool = False
    is_mine: bool = False
    free_slots: int | None = None
    is_attached: bool | None = None

    @property
    def is_present(self) -> bool:
        return self.offline_since is None and self.problem is None

    @property
    def has_room(self) -> bool:
        return self.is_attached is not False and self.free_slots != 0

    def is_fit(self, now: datetime) -> bool:
        return self.is_present and (self.quota_resets_at is None or self.quota_resets_at <= now)


class Situation(Struct):
    """`agent_runs` counts the agent's tasks in flight, this one too. `running_on_issue` is another
    one of them on this issue; `has_pending_on_issue`: another one is queued or dispatched there.
    `places` is the runtime that the agent is pinned to, else all of the workspace and provider;
    while the task is in flight, exactly one is mine.
    """

    task: Task
    queued_at: datetime
    claim_expires_at: datetime | None = None
    fire_at: datetime | None = None
    deferred_for: Deferral | None = None
    agent_name: str
    agent_runs: int
    agent_limit: int
    is_archived: bool = False
    running_on_issue: UUID | None = None
    is_cancelling_on_issue: bool = False
    has_pending_on_issue: bool = False
    places: list[Place]

    @property
    def mine(self) -> Place:
        (place,) = (place for place in self.places if place.is_mine)
        return place


class Constraint(StrEnum):
    BACKOFF = "backoff"
    PROVIDER = "provider"
    QUOTA = "quota"
    STORM = "storm"
    SCHEDULE = "schedule"
    ISSUE_PENDING = "issue_pending"
    PROMOTING = "promoting"
    AGENT_ARCHIVED = "agent_archived"
    NO_RUNTIME = "no_runtime"
    RUNTIME_OFFLINE = "runtime_offline"
    RUNTIME_PROBLEM = "runtime_problem"
    ISSUE_BUSY = "issue_busy"
    AGENT_LIMIT = "agent_limit"
    NOT_CONNECTED = "not_connected"
    NO_SLOT = "no_slot"
    HANDING_OVER = "handing_over"
    TAKEOVER_GRACE = "takeover_grace"
    ALONE_GRACE = "alone_grace"
    CLAIM_EXPIRED = "claim_expired"
    PREPARING = "preparing"
    WORKING = "working"
    STOPPING = "stopping"
    STOP_UNCONFIRMED = "stop_unconfirmed"


class Explanation(Struct):
    """`sentence` begins with the status; `changes` goes on from "it changes".

    `changes_at` is when it will have changed by itself; None where nobody can say, or where that is
    due and the next sweep does it.
    """

    constraint: Constraint
    sentence: str
    changes: str
    changes_at: datetime | None
