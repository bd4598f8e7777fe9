"""What was committed anywhere, brought to those on this node who must act on it.

The event table is the bus between nodes: whoever commits writes events, every node tails them
(actors/broadcast.py), and this service acts on what concerns the runtimes attached here. All of it
is hints: who misses one finds out by a poll, a heartbeat or a sweep.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final, final
from uuid import UUID

import msgspec
import trio

from understudy.actors.cast import Cast
from understudy.actors.mailbox import ActorGone
from understudy.actors.sweepers import Sweepers
from understudy.core.lifecycle import Move
from understudy.core.records import Event, Runtime
from understudy.store import nodes, runtimes
from understudy.store.errors import DatabaseUnavailable

logger = logging.getLogger(__name__)

CLAIMABLE: Final = {"task:queued", "task:completed", "task:failed", "task:cancelled"}
"""After these something can be claimed: a task, or a slot of its agent (R3.10)."""
ENDS: Final = CLAIMABLE - {"task:queued"}
STOPPING: Final = {"task:cancelling", "task:cancelled"}
DATABASE_RETRY_S: Final = 2.0


@final
class Courier:
    def __init__(self, cast: Cast, sweepers: Sweepers) -> None:
        self._cast = cast
        self._sweepers = sweepers

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        tail = self._cast.tail
        after = tail.mark.value
        await self._catch_up()
        task_status.started()
        while True:
            up_to = await tail.mark.wait_above(after)
            events = tail.since(after)
            after = up_to
            try:
                if events is not None:
                    await self._deliver(events)
                    continue
            except (DatabaseUnavailable, ActorGone):
                logger.warning("some news did not get through: the database is away")
            await self._catch_up()

    async def _catch_up(self) -> None:
        """What came while nobody carried it, or too much to be carried."""
        self._cast.wake_workspace()
        while True:
            try:
                stops = await nodes.stops_due(self._cast.database, self._cast.node_id)
                await self._attend(await runtimes.of_node(self._cast.database, self._cast.node_id))
            except (DatabaseUnavailable, ActorGone):
                await trio.sleep(DATABASE_RETRY_S)
                continue
            for task_id, runtime_id in stops:
                self._cast.cancel_requested(task_id, runtime_id)
            return

    async def _attend(self, rows: Iterable[Runtime]) -> None:
        """What is registered here is judged here, though its registration was not answered."""
        for row in rows:
            if self._cast.workspace_of(row.id) is None:
                await self._cast.attend(row)

    async def _deliver(self, events: Iterable[Event]) -> None:
        places = dict[tuple[UUID, str], UUID | None]()
        for event in events:
            if event.kind in CLAIMABLE and not self._is_known(event):
                runtime_id = event.payload["runtime_id"]
                place = event.workspace_id, event.payload["provider"]
                places[place] = None if runtime_id is None else UUID(runtime_id)
            if event.kind in STOPPING:
                self._stop(event)
            if event.kind in ENDS:
                self._end(event)
            elif event.kind == "comment:created":
                # A claim that met it passed over the task that it joined (`lock_waiting`).
                self._cast.wake_workspace(event.workspace_id)
            elif event.kind == "task:deferred":
                self._sweepers.soon("promote")
            elif event.kind == "daemon:register":
                await self._note_machines(event)
        for (workspace_id, provider), runtime_id in places.items():
            self._cast.wake(workspace_id, provider, runtime_id)

    def _is_known(self, event: Event) -> bool:
        """This node made the move, and has woken whoever must know."""
        assert event.task_id is not None
        return self._cast.has_woken_for(event.task_id, Move(event.payload["move"]))

    def _stop(self, event: Event) -> None:
        """R7.1, wherever it was asked for."""
        if event.task_id is None or event.payload["runtime_id"] is None:
            return
        tell = self._cast.cancel_requested
        if event.kind == "task:cancelled":
            tell = self._cast.cancel_confirmed
        tell(event.task_id, UUID(event.payload["runtime_id"]))

    def _end(self, event: Event) -> None:
        if event.task_id is not None and event.payload["runtime_id"] is not None:
            self._cast.ended(event.task_id, UUID(event.payload["runtime_id"]))

    async def _note_machines(self, event: Event) -> None:
        """One that another node has taken off, registered or heard is ours no longer: once heard
        here it is taken over again."""
        action = event.payload["action"]
        runtime_ids = [UUID(each) for each in event.payload.get("runtime_ids", ())]
        if action in {"deleted", "retired"}:
            for runtime_id in runtime_ids:
                self._cast.forget(runtime_id)
        elif action in {"stale_sweep", "heard_elsewhere"}:
            for runtime_id in runtime_ids:
                self._cast.disown(runtime_id)
        elif action == "register":
            rows = msgspec.convert(event.payload["runtimes"], list[Runtime])
            for row in rows:
                if row.node_id != self._cast.node_id:
                    self._cast.disown(row.id)
            await self._attend(row for row in rows if row.node_id == self._cast.node_id)
        if action in {"stale_sweep", "deregister"}:
            self._sweepers.soon("lose")  # With a grace of 0 it is lost at once (R4.2).
