"""What is known of a runtime that is there; it outlives the incarnations of the runtime's actor."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from understudy.actors.link import Link


@dataclass
class Presence:
    """`seen_at` is the row's, as this node read it last: another node that has registered the
    runtime since has changed it. `heard_at` is on trio's clock, stamped when the sign comes in: no
    mailbox delays it (R4.8). `link` is what its daemon takes tasks over.
    """

    workspace_id: UUID
    provider: str
    seen_at: datetime
    heard_at: float
    link: Link | None = None
