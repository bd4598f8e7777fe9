"""The daemon's calls, carried out: the same for HTTP and for the websocket (R11.1, R11.2)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeAlias
from uuid import UUID

import trio
from msgspec import UNSET

from understudy.actors import task as task_actor
from understudy.actors.cast import Cast
from understudy.actors.mailbox import ActorGone
from understudy.core.records import Runtime, Task
from understudy.http.auth import Machine, parse_id
from understudy.store import issues, people, runtimes, sweeps, tasks
from understudy.store.errors import DatabaseUnavailable
from understudy.store.tasks import Holder, Moved, Outcome
from understudy.wire import daemon as wire
from understudy.wire.errors import fenced, invalid, not_found
from understudy.wire.text import decode_cleaned

Handler: TypeAlias = Callable[[Machine, UUID, Any], Awaitable[object]]
TOLD: Final = ("progress", "messages", "session", "usage", "complete", "fail")
OFFLINE: Final = "its daemon says that it is offline"
"""Without a problem the next heartbeat would bring it online."""
NOBODY: Final = UUID(int=0)


class Desk:
    def __init__(self, cast: Cast) -> None:
        self._cast = cast
        self._database = cast.database
        self._handlers: dict[str, Handler] = {
            "register": self._register,
            "deregister": self._deregister,
            "heartbeat": self._heartbeat,
            "heartbeats": self._heartbeats,
            "pong": self._pong,
            "recover": self._recover,
            "claims": self._claim_many,
            "claim": self._claim,
            "pending": self._pending,
            "status": self._status,
            "lease": self._renew,
            "start": self._start,
            "stopped": self._stopped,
            "gc_check": self._gc_check,
            "repos": self._repos,
            **dict.fromkeys(TOLD, self._told),
        }
        assert set(self._handlers) == set(wire.CALLS)

    async def answer(self, machine: Machine, call: str, subject: UUID | None, raw: bytes) -> object:
        """Raises `Refused`, `DatabaseUnavailable` or `ActorGone`, and then nothing has changed."""
        shape = wire.CALLS.get(call)
        if shape is None:
            raise invalid(f"no such call: {call[:80]!r}")
        if shape.subject and subject is None:
            raise invalid(f"{shape.subject}_id is required")
        request = decode_cleaned(raw, shape.request)
        done = await self._handlers[call](machine, subject or NOBODY, request)
        return wire.Acknowledged() if shape.answer is wire.Acknowledged else done

    # Machines

    async def _register(self, machine: Machine, _: UUID, request: wire.Register) -> wire.Registered:
        workspace_id = await self._check(machine, request)
        done = await runtimes.register(
            self._database,
            runtimes.Machine(
                workspace_id,
                request.daemon_id.strip(),
                request.device_name.strip(),
                request.incarnation,
                self._cast.node_id,
                None if request.after is None else frozenset(request.after),
            ),
            _offers(request),
        )
        rows = done.runtimes
        for row in rows:
            await self._cast.attend(row)
            self._cast.heard(row.id)
        verdicts: dict[str, wire.Verdict] = {}
        if request.inventory is not None:
            verdicts = await self._take_stock(workspace_id, done, request.inventory)
        self._cast.committed(None)
        return wire.Registered(
            runtimes=[
                wire.RegisteredRuntime(id=r.id, name=r.name, provider=r.provider, status=r.status)
                for r in rows
            ],
            repos=await self._repositories(workspace_id),
            verdicts=verdicts,
            trust_s={row.id: self._cast.trust_s(row.id) for row in rows},
            taken_by=UNSET if done.taken_by is None else done.taken_by,
        )

    async def _check(self, machine: Machine, request: wire.Register) -> UUID:
        if not request.daemon_id.strip():
            raise invalid("daemon_id is required")
        if not request.workspace_id.strip():
            raise invalid("workspace_id is required")
        if not request.runtimes:
            raise invalid("at least one runtime is required")
        if parse_id(request.workspace_id.strip(), "workspace_id") != machine.workspace_id:
            raise not_found("workspace")
        return machine.workspace_id

    async def _take_stock(
        self, workspace_id: UUID, done: runtimes.Registered, inventory: wire.Inventory
    ) -> dict[str, wire.Verdict]:
        """R6.2. What is finished is always sent: a replay repeats nothing, a stale one hears so.

        What is to be stopped is still there until the machine says otherwise (R7.1).
        """
        asked = [each.task_id for each in inventory.running]
        found = await tasks.in_flight(self._database, workspace_id, asked)
        held = [
            each
            for each in inventory.running
            if each.task_id in found and found[each.task_id].claim_token == each.claim_token
        ]
        kept = [each.task_id for each in (*held, *inventory.finished)]
        for row in done.runtimes:
            self._told_of(await sweeps.recover(
                self._database, workspace_id, row.id,
                kept=kept, same_process=done.same_process, at=row.last_seen_at,
            ))  # fmt: skip
        if done.runtimes:
            await runtimes.note_recovered(self._database, done)
        verdicts: dict[str, wire.Verdict] = {str(each): "stop" for each in asked}
        for each in held:
            if not found[each.task_id].is_stopping:
                verdicts[str(each.task_id)] = "keep"
        return verdicts | {str(each.task_id): "send" for each in inventory.finished}

    def _told_of(self, given_up: list[Task]) -> None:
        for row in given_up:
            self._cast.committed(Moved(Outcome.MOVED, row))

    async def _recover(self, machine: Machine, runtime_id: UUID, _: wire.Nothing) -> wire.Recovered:
        """R6.1: for a daemon that keeps no inventory."""
        await self._runtime(machine, runtime_id)
        given_up = await sweeps.recover(
            self._database, machine.workspace_id, runtime_id, kept=[], same_process=False
        )
        self._told_of(given_up)
        retried = [row for row in given_up if row.retry_task_id is not None]
        return wire.Recovered(orphaned=len(given_up), retried=len(retried))

    async def _deregister(self, machine: Machine, _: UUID, request: wire.Deregister) -> None:
        if not request.runtime_ids:
            raise invalid("runtime_ids is required")
        ids = [parse_id(each, "runtime_ids") for each in request.runtime_ids]
        known = await runtimes.go_offline(
            self._database, ids, action="deregister", workspace_id=machine.workspace_id
        )
        for runtime_id in known:
            self._cast.detach(runtime_id)  # What is pushed now would wait for a dead daemon.
        self._cast.committed(None)

    async def _heartbeat(
        self, machine: Machine, _: UUID, request: wire.Heartbeat
    ) -> wire.HeartbeatHeard:
        if not request.runtime_id.strip():
            raise invalid("runtime_id is required")
        runtime_id = parse_id(request.runtime_id.strip(), "runtime_id")
        if not await self._hear(machine, runtime_id):
            raise not_found("runtime")
        return wire.HeartbeatHeard(pending_ping=next(iter(self._pings([runtime_id])), UNSET))

    async def _heartbeats(
        self, machine: Machine, _: UUID, request: wire.Heartbeats
    ) -> wire.HeartbeatsHeard:
        gone = [
            each
            for each in request.runtime_ids
            if not await self._hear_of(machine, each, request.incarnation)
        ]
        here = [each for each in request.runtime_ids if each not in gone]
        return wire.HeartbeatsHeard(
            gone=gone,
            trust_s={each: self._cast.trust_s(each) for each in here if await self._cast.own(each)},
            cancelled=[wire.HeldTask(task_id=each) for each in self._stops(here)],
            pending_pings=self._pings(here),
        )

    def _stops(self, runtime_ids: list[UUID]) -> list[UUID]:
        found = map(self._cast.presence, runtime_ids)
        return [task_id for presence in found if presence for task_id in sorted(presence.stops)]

    def _pings(self, runtime_ids: list[UUID]) -> list[wire.Ping]:
        return [
            wire.Ping(id=ping_id, runtime_id=runtime_id)
            for runtime_id in runtime_ids
            if (presence := self._cast.presence(runtime_id)) is not None
            for ping_id in presence.pings
        ]

    async def _pong(self, machine: Machine, runtime_id: UUID, request: wire.Pong) -> None:
        if not await self._hear(machine, runtime_id):
            raise not_found("runtime")
        if (presence := self._cast.presence(runtime_id)) is not None:
            presence.ponged(request.ping_id, trio.current_time())

    async def beat(self, machine: Machine, runtime_id: str) -> UUID | None:
        """The compatible heartbeat over the websocket: the runtime, if there is one (R4.7)."""
        try:
            identity = UUID(runtime_id.strip())
        except ValueError:
            return None
        return identity if await self._hear(machine, identity) else None

    async def _hear_of(self, machine: Machine, runtime_id: UUID, incarnation: str | None) -> bool:
        """False too where another process has registered it since: that has to be told apart."""
        is_of = await self._cast.is_of(runtime_id, incarnation)
        return is_of and await self._hear(machine, runtime_id)

    async def _hear(self, machine: Machine, runtime_id: UUID) -> bool:
        if self._cast.workspace_of(runtime_id) == machine.workspace_id:
            return self._cast.heard(runtime_id)
        row = await runtimes.find(self._database, runtime_id)
        if row is None or row.workspace_id != machine.workspace_id:
            return False
        await self._cast.attend(row)
        return self._cast.heard(runtime_id)

    # Claims

    async def _claim(self, machine: Machine, runtime_id: UUID, _: wire.Nothing) -> wire.Claimed:
        await self._cast.attend(await self._runtime(machine, runtime_id))
        found = await self._cast.claim(runtime_id, slots=1, fence=machine.fence)
        return wire.Claimed(task=found[0] if found else None)

    async def _claim_many(
        self, machine: Machine, _: UUID, request: wire.ClaimMany
    ) -> wire.ClaimedMany:
        """What has been claimed is handed over, whatever befalls the rest (R3.11)."""
        if not request.runtime_ids:
            raise invalid("runtime_ids is required")
        rows = [await self._runtime(machine, each) for each in request.runtime_ids]
        found: list[wire.ClaimedTask] = []
        for row in rows:
            if (slots := request.slots - len(found)) == 0:
                break
            try:
                await self._cast.attend(row)
                found += await self._cast.claim(row.id, slots=slots, fence=machine.fence)
            except (DatabaseUnavailable, ActorGone):
                if not found:
                    raise
                break
        return wire.ClaimedMany(tasks=found)

    async def _pending(self, machine: Machine, runtime_id: UUID, _: wire.Nothing) -> list[Task]:
        await self._runtime(machine, runtime_id)
        return await tasks.pending_of_runtime(self._database, machine.workspace_id, runtime_id)

    async def _runtime(self, machine: Machine, runtime_id: UUID) -> Runtime:
        row = await runtimes.find(self._database, runtime_id)
        if row is None or row.workspace_id != machine.workspace_id:
            raise not_found("runtime")
        return row

    # Runs

    async def _status(self, machine: Machine, task_id: UUID, _: wire.Nothing) -> wire.TaskStatus:
        row = await tasks.find(self._database, machine.workspace_id, task_id)
        if row is None:
            raise not_found("task")
        return wire.TaskStatus(status="cancelled" if row.cancel_requested_at else row.status)

    async def _renew(self, machine: Machine, task_id: UUID, request: wire.Held) -> Task:
        holder = Holder(machine.workspace_id, task_id, request.claim_token)
        return _done(await self._cast.report(task_id, partial(task_actor.Renew, holder)))

    async def _start(self, machine: Machine, task_id: UUID, request: wire.Held) -> Task:
        holder = Holder(machine.workspace_id, task_id, request.claim_token)
        return _done(await self._cast.report(task_id, partial(task_actor.Start, holder)))

    async def _stopped(self, machine: Machine, task_id: UUID, request: wire.Stopped) -> Task:
        holder = Holder(machine.workspace_id, task_id, request.claim_token)
        said = partial(task_actor.Stopped, holder, request.left)
        return _done(await self._cast.report(task_id, said))

    async def _told(self, machine: Machine, task_id: UUID, request: task_actor.Report) -> Task:
        holder = Holder(machine.workspace_id, task_id, request.claim_token)
        return _done(await self._cast.report(task_id, partial(task_actor.Told, holder, request)))

    # What directories are for

    async def _gc_check(self, machine: Machine, issue_id: UUID, _: wire.Nothing) -> wire.GcCheck:
        issue = await issues.get(self._database, machine.workspace_id, issue_id)
        if issue is None:
            raise not_found("issue")
        return wire.GcCheck(status=issue.status, updated_at=issue.updated_at)

    async def _repos(
        self, machine: Machine, workspace_id: UUID, _: wire.Nothing
    ) -> wire.Repositories:
        if workspace_id != machine.workspace_id:
            raise not_found("workspace")
        return wire.Repositories(
            workspace_id=workspace_id, repos=await self._repositories(workspace_id)
        )

    async def _repositories(self, workspace_id: UUID) -> list[wire.Repository]:
        workspace = await people.find_workspace(self._database, workspace_id)
        url = workspace and workspace.repository
        return [wire.Repository(url=url)] if url else []


def _offers(request: wire.Register) -> list[runtimes.Offer]:
    """Trimmed, with the defaults of spec section 12; of two of one provider the last one counts."""
    device = request.device_name.strip()
    offers = {}
    for each in request.runtimes:
        provider = each.type.strip() or "unknown"
        version = each.version.strip()
        offers[provider] = runtimes.Offer(
            provider=provider,
            name=each.name.strip() or f"{provider} ({device})",
            device_info=f"{device} · {version}" if version else device,
            version=version,
            status="offline" if each.status.strip() == "offline" else "online",
            problem=each.problem or (OFFLINE if each.status.strip() == "offline" else None),
        )
    return list(offers.values())


def _done(moved: Moved) -> Task:
    """The row, moved now or before by the same claim. Raises `Refused`: 404 or 409."""
    match moved.outcome:
        case Outcome.MOVED | Outcome.REPLAYED | Outcome.KEPT:
            assert moved.task is not None
            return moved.task
        case Outcome.FENCED | Outcome.REQUESTED | Outcome.ENDED:
            assert moved.task is not None
            raise fenced(f"the task is {moved.task.status}, and this claim does not hold it")
        case Outcome.NOT_FOUND:
            raise not_found("task")
