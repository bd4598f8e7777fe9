"""What is known of a runtime that is there; it outlives the incarnations of the runtime's actor."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from understudy.actors.link import Link

PINGS_MAX: Final = 16


@dataclass
class Presence:
    """`heard_at` is on trio's clock, stamped when the sign comes in: no mailbox delays it (R4.8).

    `link` is what its daemon takes tasks over. `claims` are the tasks it prepares, by when their
    leases end; `runs` those it works on, by when they started; `stops` those whose end has been
    asked for and not confirmed; `pings` who waits.
    """

    workspace_id: UUID
    daemon_id: str
    provider: str
    heard_at: float
    incarnation: str | None = None
    """The process of its daemon that has registered it."""
    is_ours: bool = False
    """The row says that this node attends it. Who is heard and is not ours is taken over."""
    link: Link | None = None
    claims: dict[UUID, float] = field(default_factory=dict)
    runs: dict[UUID, float] = field(default_factory=dict)
    stops: set[UUID] = field(default_factory=set)
    pings: dict[UUID, float] = field(default_factory=dict)
    round_trips_s: dict[UUID, float] = field(default_factory=dict)
    """Of the newest pings that were answered."""
    polls: bool = False
    """It asks for its tasks, and needs no link."""
    is_hinted: bool = False
    """It has been told that there may be work, and has not looked yet."""
    changes_seen: int = -1
    """How many changes its place had seen when it looked last."""
    barred_until: float = -math.inf
    """When it looked last, it could take nothing: no quota (R5.2); infinity: a problem (R9.4)."""

    @property
    def place(self) -> tuple[UUID, str]:
        return self.workspace_id, self.provider

    def may_look(self, changes: int) -> bool:
        """Whether it has a use for what it finds, and has not looked since the newest change."""
        link = self.link
        has_room = link is not None and (link.may_have_room or not link.is_credited)
        return has_room and not self.is_hinted and self.changes_seen < changes

    def registered_by(self, incarnation: str | None) -> None:
        """Another process's link is that of one that is over, or of a copy."""
        if self.incarnation not in {None, incarnation}:
            self.link = None
        self.incarnation = incarnation

    def next_expiry(self) -> float:
        return min(self.claims.values(), default=math.inf)

    def ping(self, ping_id: UUID, now: float) -> bool:
        """False while too many wait for their answers."""
        if len(self.pings) == PINGS_MAX:
            return False
        self.pings[ping_id] = now
        return True

    def ponged(self, ping_id: UUID, now: float) -> None:
        """An answer to a ping that nobody sent is no answer."""
        if (asked_at := self.pings.pop(ping_id, None)) is not None:
            self.round_trips_s[ping_id] = now - asked_at
            if len(self.round_trips_s) > PINGS_MAX:
                del self.round_trips_s[next(iter(self.round_trips_s))]
