"""What every run of this daemon shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from understudy.config import ORPHAN_S
from understudy.core.leases import Leases
from understudy.core.limits import Limits
from understudy.core.secrets import Secrets
from understudy.daemon.disk import DiskUse
from understudy.daemon.kept import Kept
from understudy.daemon.link import Link
from understudy.daemon.outbox import Outbox, Report
from understudy.daemon.probe import Found
from understudy.daemon.record import UnreadableOrder, read_order
from understudy.daemon.repositories import Repositories
from understudy.daemon.slots import Slots
from understudy.daemon.trust import Trust
from understudy.wire.daemon import ClaimedTask


@dataclass
class Workshop:
    """`found` and `runtimes` (id to provider) are what the last probe and registration said."""

    server: str
    workspace_id: str
    runs: Path
    link: Link
    outbox: Outbox
    repositories: Repositories
    slots: Slots
    leases: Leases
    trust: Trust
    environment: Mapping[str, str]
    orphan_s: float = ORPHAN_S
    limits: Limits = field(default_factory=Limits)
    secrets: Secrets = field(default_factory=Secrets)
    """What the log hides (R9.5)."""
    found: dict[str, Found] = field(default_factory=dict)
    runtimes: dict[UUID, str] = field(default_factory=dict)
    disk: DiskUse | None = None
    """As the last collection found it."""
    changed: Callable[[], None] = lambda: None
    """Hears when there is something new to say of the runs."""

    def run_dir(self, task_id: UUID) -> Path:
        return self.runs / str(task_id)

    def may_be_elsewhere(self, task: ClaimedTask) -> bool:
        return self.trust.may_be_elsewhere(task, has_minder=self._has_minder(task.id))

    def _has_minder(self, task_id: UUID) -> bool:
        try:
            order = read_order(self.run_dir(task_id))
        except UnreadableOrder:
            return False
        return order is not None and Kept(Path(order.spec.run_dir)).minds_promises()

    def put(self, report: Report) -> None:
        self.outbox.put(report)
        self.changed()

    def is_reported(self, task: ClaimedTask) -> bool:
        return self.outbox.holds(str(task.id), str(task.claim_token))
