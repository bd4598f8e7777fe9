"""This node among those that share the database: its lease, and whether there are others (R4.3).

Others judge the runtimes that it attends once its lease is over. It judges, theirs and whatever was
given up, once it has held its own without a gap for as long as everybody has to come back (R4.4).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Final, final
from uuid import UUID

import trio

from understudy.config import ServerConfig
from understudy.store import nodes
from understudy.store.database import Database
from understudy.store.errors import DatabaseUnavailable

logger = logging.getLogger(__name__)

LEAVE_S: Final = 3.0


@final
class NodeLease:
    """`tell` hears after each renewal whether there are other nodes."""

    def __init__(
        self, database: Database, config: ServerConfig, node_id: UUID, tell: Callable[[bool], None]
    ) -> None:
        self._database = database
        self._id = node_id
        self._address = config.address
        self._leases = config.leases
        self._tell = tell
        self._is_away = False
        self._has_peers = False
        self._met = trio.Event()
        self._held_since = math.inf
        self._expires_at = -math.inf

    def meet(self) -> None:
        """Another node has spoken: if it is the first one, look now."""
        if not self._has_peers:
            self._met.set()

    def ends_at(self) -> float:
        """On trio's clock; no later than the database says."""
        return self._expires_at

    def may_judge(self) -> bool:
        """Whether everybody has had the time to come back to this node, or to another (R4.4)."""
        now = trio.current_time()
        return now < self._expires_at and now - self._held_since >= self._leases.offline_after_s

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Only who stops gives the lease up: who crashes is started again, and until its end this
        node has promised what it heard (R4.11)."""
        try:
            await self._renew()
            task_status.started()
            while True:
                with trio.move_on_after(self._leases.node_renew_s):
                    await self._met.wait()
                self._met = trio.Event()
                await self._renew()
        except trio.Cancelled:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + LEAVE_S):
                await self._leave()
            raise

    async def _renew(self) -> None:
        asked_at = trio.current_time()
        lease_s = self._leases.node_lease_s
        try:
            self._has_peers = await nodes.renew(
                self._database, self._id, self._address, lease_s=lease_s
            )
        except DatabaseUnavailable:
            if not self._is_away:
                logger.warning("node %s does not renew its lease: the database is away", self._id)
            self._is_away = True
            return
        self._is_away = False
        if asked_at >= self._expires_at:
            self._held_since = trio.current_time()
        self._expires_at = asked_at + lease_s
        self._tell(self._has_peers)

    async def _leave(self) -> None:
        self._expires_at = min(self._expires_at, trio.current_time())
        try:
            await nodes.leave(self._database, self._id)
        except DatabaseUnavailable:
            pass  # It ends by itself.
