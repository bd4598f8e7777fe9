"""Finds the actor of an id, or spawns it; forgets those that have ended."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, final
from uuid import UUID
from weakref import WeakValueDictionary

import trio

from understudy.actors import broadcast, runtime, task
from understudy.actors.actor import Actor
from understudy.actors.link import Link
from understudy.actors.mailbox import ActorGone, Ref
from understudy.actors.place import POLL_S, Left, Place
from understudy.actors.presence import Presence
from understudy.actors.troupe import Troupe
from understudy.actors.watermark import Watermark
from understudy.core.leases import Leases
from understudy.core.lifecycle import TERMINAL, Move, Status
from understudy.core.records import Runtime, Task
from understudy.core.tree import Branch
from understudy.store import runtimes
from understudy.store.database import Database
from understudy.store.errors import DatabaseUnavailable
from understudy.store.tasks import Fence, Moved
from understudy.wire.daemon import ClaimedTask, HeldTask, Ping
from understudy.wire.frames import Cancel, Pinged, RuntimesGone

WOKEN_MAX: Final = 1000
LATE_S: Final = 15.0
"""News of other nodes that are older may have missed who attends a machine."""


@final
class Cast:
    """All actors of this node that stand for a row, and who must hear of what.

    Usable once `run` has started; then it is the one place where such actors are found.
    """

    runtimes: Troupe[runtime.Message]
    tasks: Troupe[task.Message]

    def __init__(
        self,
        database: Database,
        *,
        node_id: UUID,
        leases: Leases,
        tail: broadcast.Tail,
        news: Ref[broadcast.Message],
    ) -> None:
        self.database = database
        self.node_id = node_id
        self.leases = leases
        self.tail = tail
        self.news = news
        self.has_peers = False
        """Other nodes share the database: what they attend is not known here."""
        self.leased_until: Callable[[], float] = lambda: math.inf
        """When others may begin to judge what is attended here: this node's lease is over."""
        self._presences: dict[
            UUID, Presence
        ] = {}  # As many as there are machines: none is dropped.
        self._places: dict[tuple[UUID, str], Place] = {}
        self._woken: dict[tuple[UUID, Move], None] = {}
        self._newest: WeakValueDictionary[UUID, Watermark] = WeakValueDictionary()

    async def run(
        self, branch: Branch, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with trio.open_nursery() as nursery:
            self.runtimes = Troupe(nursery, branch.child("runtimes"), self._runtime_actor)
            self.tasks = Troupe(nursery, branch.child("tasks"), self._task_actor)
            task_status.started()
            await trio.sleep_forever()

    def _runtime_actor(self, identity: UUID) -> Actor[runtime.Message]:
        presence = self._presences[identity]
        place = self._places[presence.place]
        around = runtime.Surroundings(
            self.database,
            self.leases,
            self.node_id,
            presence,
            place,
            changed=partial(self.wake, *presence.place),
            left=partial(self._pass_on, place, presence),
            poll=partial(self._poll, place),
            committed=partial(self.committed, None),
        )
        return runtime.RuntimeActor(identity, around)

    def _task_actor(self, identity: UUID) -> Actor[task.Message]:
        return task.TaskActor(self.database, self.leases, self.newest(identity), self.committed)

    def newest(self, task_id: UUID) -> Watermark:
        """The highest message seq of a task, shared by its actor and those who watch it."""
        return self._newest.setdefault(task_id, Watermark())

    # Runtimes

    async def attend(self, row: Runtime) -> Ref[runtime.Message]:
        """See to it that a runtime has its actor, and is found when there is work for it."""
        if row.id not in self._presences:
            self._presences[row.id] = presence = Presence(
                row.workspace_id, row.daemon_id, row.provider, trio.current_time()
            )
            self._places.setdefault(presence.place, Place()).join(row.id, presence)
        self._presences[row.id].registered_by(row.incarnation)
        if row.node_id == self.node_id:
            self._presences[row.id].is_ours = True
        return await self.runtimes.find(row.id)

    async def attach(self, runtime_id: UUID, link: Link) -> None:
        """The runtime takes tasks over this link from now on, or has more room there."""
        if runtime_id not in self._presences:
            row = await runtimes.find(self.database, runtime_id)
            if row is None:
                return
            await self.attend(row)
        presence = self._presences[runtime_id]
        presence.link, presence.heard_at = link, trio.current_time()
        presence.polls = False
        await (await self.runtimes.find(runtime_id)).tell(runtime.Attached())

    def detach(self, runtime_id: UUID, link: Link | None = None) -> None:
        """It takes no more tasks over this link, or over any."""
        presence = self._presences.get(runtime_id)
        if presence is not None and (link is None or presence.link is link):
            presence.link = None

    def forget(self, runtime_id: UUID) -> None:
        """It was removed; its daemon is told to register again (R4.7)."""
        presence = self._presences.pop(runtime_id, None)
        if presence is not None:
            self._places[presence.place].leave(runtime_id)
        self._hint(runtime_id, runtime.Forget())
        if presence is not None and presence.link is not None:
            presence.link.push(RuntimesGone(payload=[runtime_id]))

    def disown(self, runtime_id: UUID) -> None:
        """The row says otherwise by now: its next sign of life here takes it over again."""
        if (presence := self._presences.get(runtime_id)) is not None:
            presence.is_ours = False

    def workspace_of(self, runtime_id: UUID) -> UUID | None:
        """Whose runtime it is, if this node looks after it."""
        presence = self._presences.get(runtime_id)
        return presence.workspace_id if presence and self.runtimes.get(runtime_id) else None

    def presence(self, runtime_id: UUID) -> Presence | None:
        """What this node knows of a runtime that it attends."""
        return self._presences.get(runtime_id)

    def heard(self, runtime_id: UUID) -> bool:
        """A sign of life; false if no actor stands for this runtime here."""
        presence = self._presences.get(runtime_id)
        if presence is None or self.runtimes.get(runtime_id) is None:
            return False
        presence.heard_at = trio.current_time()
        self._hint(runtime_id, runtime.Heard())
        return True

    async def own(self, runtime_id: UUID) -> bool:
        """Have it on record that this node attends it: else another may judge it meanwhile.

        False if it was removed, or heard elsewhere since. Raises `DatabaseUnavailable`. Where news
        are late, another node may have taken it in, by a registration of long ago, say.
        """
        presence = self._presences.get(runtime_id)
        if presence is None:
            return False
        if not presence.is_ours:
            await self._take_over(runtime_id, presence)
        elif trio.current_time() > self.tail.read_at + LATE_S:
            with suppress(DatabaseUnavailable):  # Then the lease bounds what is promised.
                await self._take_over(runtime_id, presence)
        return presence.is_ours

    async def _take_over(self, runtime_id: UUID, presence: Presence) -> None:
        row = await runtimes.take_over(
            self.database, runtime_id, self.node_id, heard_at=presence.heard_at
        )
        presence.is_ours = row is not None and row.node_id == self.node_id
        if row is not None:
            presence.registered_by(row.incarnation)

    async def is_of(self, runtime_id: UUID, incarnation: str | None) -> bool:
        """Whether this process of its daemon has registered it; None is an older daemon's.

        To be asked before it is heard: a copy's sign of life is none of its own.
        """
        presence = self._presences.get(runtime_id)
        known = presence.incarnation if presence is not None else None
        if incarnation is not None and (presence is None or not presence.is_ours):
            row = await runtimes.find(self.database, runtime_id)
            known = row.incarnation if row is not None else None
        return incarnation is None or known in {None, incarnation}

    def incarnation(self, runtime_id: UUID) -> str | None:
        """That which has registered it, as far as is known here."""
        presence = self._presences.get(runtime_id)
        return presence.incarnation if presence is not None else None

    def trust_s(self, runtime_id: UUID) -> float:
        """For how long, from now, nobody else is given what this runtime works on (R4.11).

        A node that has lost the database hears it in vain: the others count from its lease's end.
        Another machine of which it cannot tell that it is gone may be with them.
        """
        mine = self._presences[runtime_id]
        now = trio.current_time()
        others = (
            other.place == mine.place
            and other.daemon_id != mine.daemon_id
            and (now < other.heard_at + self.leases.offline_after_s or self.runtimes.get(each))
            for each, other in self._presences.items()
        )
        trust_s = self.leases.trust_s(
            may_be_replaced=self.has_peers or any(others),
            oldest_s=now - min(mine.runs.values(), default=now),
        )
        return max(0.0, trust_s - max(0.0, now - self.leased_until()))

    def ping(self, ping: Ping) -> bool:
        """At once over the link; else with the answer to the next heartbeat (R4.12).

        False if too many wait for theirs.
        """
        presence = self._presences[ping.runtime_id]
        if not presence.ping(ping.id, trio.current_time()):
            return False
        if presence.link is not None:
            presence.link.push(Pinged(payload=ping))
        return True

    async def claim(self, runtime_id: UUID, *, slots: int, fence: Fence) -> list[ClaimedTask]:
        """For a runtime that polls. Raises `DatabaseUnavailable`."""
        self._presences[runtime_id].polls = True
        self.heard(runtime_id)
        answer = await self.runtimes.ask(runtime_id, lambda: runtime.Claim(slots, fence))
        if isinstance(answer, DatabaseUnavailable):
            raise answer
        if answer:
            self.committed(None)
        return answer

    # Tasks

    async def report(self, task_id: UUID, question: Callable[[], task.Message]) -> Moved:
        """One move by a daemon or a person. Raises `DatabaseUnavailable`."""
        answer = await self.tasks.ask(task_id, question)
        if isinstance(answer, DatabaseUnavailable):
            raise answer
        return answer

    def committed(self, moved: Moved | None) -> None:
        """After a commit: the streams, the machines that must know, and the runtimes for which
        something became claimable.

        A terminal move is a wake-up too: the successor may start, the agent has room (R3.10).
        """
        broadcast.written(self.news)
        if moved is None or (row := moved.task) is None:
            return
        self._note_claim(row)
        if row.runtime_id is not None and (row.cancel_requested_at or row.status == "cancelled"):
            self.stop_run(row)
        if row.status is Status.QUEUED or row.status in TERMINAL:
            self.wake_for(row)

    def _note_claim(self, row: Task) -> None:
        presence = self._presences.get(row.runtime_id) if row.runtime_id else None
        if presence is None:
            return
        now = trio.current_time()
        if row.status is Status.DISPATCHED:
            presence.claims[row.id] = now + self.leases.renew_by_s
            return
        presence.claims.pop(row.id, None)
        if row.status is Status.RUNNING:
            presence.runs.setdefault(row.id, now)
        else:
            presence.runs.pop(row.id, None)

    def stop_run(self, row: Task) -> None:
        assert row.runtime_id is not None
        if row.status is Status.RUNNING:
            self.cancel_requested(row.id, row.runtime_id)
        elif row.status in TERMINAL:
            self.cancel_confirmed(row.id, row.runtime_id)

    def cancel_requested(self, task_id: UUID, runtime_id: UUID) -> None:
        """Its machine is told at once, and with every heartbeat until it confirms (R7.1)."""
        presence = self._presences.get(runtime_id)
        if presence is not None and task_id not in presence.stops:
            presence.stops.add(task_id)
            self._push_cancel(presence, task_id)

    def cancel_confirmed(self, task_id: UUID, runtime_id: UUID) -> None:
        """What was only being prepared may still be: its machine is told, too."""
        presence = self._presences.get(runtime_id)
        if presence is not None:
            if task_id not in presence.stops:
                self._push_cancel(presence, task_id)
            presence.stops.discard(task_id)

    def ended(self, task_id: UUID, runtime_id: UUID) -> None:
        """Whoever ended it: a sweep, or another node."""
        presence = self._presences.get(runtime_id)
        if presence is not None:
            presence.claims.pop(task_id, None)
            presence.runs.pop(task_id, None)
            presence.stops.discard(task_id)

    def _push_cancel(self, presence: Presence, task_id: UUID) -> None:
        if presence.link is not None:
            presence.link.push(Cancel(payload=[HeldTask(task_id=task_id)]))

    def wake_for(self, row: Task) -> None:
        """It was queued, or has left room to others; its event need not tell that again."""
        if row.move is not Move.REQUEUE:  # No other move is made twice.
            self._woken[row.id, row.move] = None
            if len(self._woken) > WOKEN_MAX:
                del self._woken[next(iter(self._woken))]
        self.wake(row.workspace_id, row.provider, row.runtime_id)

    def has_woken_for(self, task_id: UUID, move: Move) -> bool:
        """Whether this node has acted on this move already; it is asked once."""
        return self._woken.pop((task_id, move), self) is None

    def wake(self, workspace_id: UUID, provider: str, runtime_id: UUID | None = None) -> None:
        """Something became claimable there: the shortcut first, then who is to look (R3.9): the
        runtime that is likely to get it, or whose turn it is."""
        if (place := self._places.get((workspace_id, provider))) is not None:
            place.changed()
            if runtime_id is None or not self._ask(place, runtime_id):
                self._ask_next(place)

    def wake_workspace(self, workspace_id: UUID | None = None) -> None:
        """Nobody knows what for; None: nor where."""
        for place in {each.place for each in self._presences.values()}:
            if workspace_id in {None, place[0]}:
                self.wake(*place)

    def _ask_next(self, place: Place, *, spares_barred: bool = False) -> None:
        for runtime_id in place.in_line(spares_barred=spares_barred):
            if self._ask(place, runtime_id):
                return

    def _ask(self, place: Place, runtime_id: UUID) -> bool:
        """Whether it will look."""
        presence = self._presences.get(runtime_id)
        if presence is None or not presence.may_look(place.changes):
            return False
        place.to_the_end(runtime_id)
        presence.is_hinted = self._hint(runtime_id, runtime.MayHaveWork())
        return presence.is_hinted

    def _pass_on(self, place: Place, looker: Presence, left: Left) -> None:
        """A look left something. Nobody looks twice at one change, so this ends."""
        now = trio.current_time()
        for runtime_id in sorted(each for each in left if each is not None):
            if (it := self._presences.get(runtime_id)) is not None and it.barred_until <= now:
                self._ask(place, runtime_id)
        if None in left:
            self._ask_next(place, spares_barred=looker.barred_until > now)

    def _poll(self, place: Place) -> None:
        """Nobody has looked there for `POLL_S`: if a wake-up was lost, this finds it (R3.9)."""
        place.changed()
        place.look_at = trio.current_time() + POLL_S
        self._ask_next(place)

    def _hint(
        self, runtime_id: UUID, message: runtime.Heard | runtime.MayHaveWork | runtime.Forget
    ) -> bool:
        """Whether it was heard."""
        actor = self.runtimes.get(runtime_id)
        try:
            return actor is not None and runtime.hint(actor, message)
        except ActorGone:
            return False  # It ended just now; the next registration makes another.
