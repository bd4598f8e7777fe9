"""The daemon: its whole tree on one screen, and what holds it together."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import AsyncIterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from signal import Signals
from typing import Final, final
from uuid import UUID

import trio
from msgspec import UNSET

from understudy.actors.mailbox import ActorGone
from understudy.actors.troupe import Troupe
from understudy.config import DaemonConfig
from understudy.core.failures import FailureReason
from understudy.core.restarts import CannotStart, RestartPolicy
from understudy.core.secrets import Secrets, confided
from understudy.core.tree import Branch
from understudy.daemon import record, run, trust
from understudy.daemon.git import Git
from understudy.daemon.identity import TAKEN, TAKEN_S, Identity, alone
from understudy.daemon.link import Dial, Link, Shutout, dial
from understudy.daemon.machine import here
from understudy.daemon.outbox import Outbox, open_outbox
from understudy.daemon.outcomes import LinkLost, LinkRefused
from understudy.daemon.polling import Poll, poll
from understudy.daemon.probe import Found, probe_forever
from understudy.daemon.repositories import Repositories
from understudy.daemon.run import RunActor
from understudy.daemon.rundir import sync_directory
from understudy.daemon.slots import Slots
from understudy.daemon.status import STATUS, DaemonStatus, status_of, write_status
from understudy.daemon.stopping import SIGNALS, Ending, Stopping
from understudy.daemon.tidying import tidy_forever
from understudy.daemon.trust import Trust
from understudy.daemon.workshop import Workshop
from understudy.parent import has_parent
from understudy.supervisor import open_children, supervise
from understudy.version import VERSION
from understudy.wire.daemon import (
    ClaimedTask,
    Deregister,
    HeldTask,
    Inventory,
    Register,
    Registered,
    RuntimeOffer,
)

logger = logging.getLogger(__name__)

STOP_S: Final = 5.0
LEAVE_S: Final = 2.0
SHUTDOWN: Final = run.Stop(FailureReason.RUNTIME_SHUTDOWN)


async def run_daemon(
    config: DaemonConfig,
    tree: Branch,
    *,
    dialer: Dial | None = None,
    poller: Poll | None = None,
    signals: AsyncIterable[int] | None = None,
    secrets: Secrets | None = None,
) -> Ending:
    """Work until cancelled; the agents go on under their keepers, and are found again (R7.4).

    Or until one of `stopping.SIGNALS` comes, and what it asks for is done. What the log is to hide
    is added to `secrets`.
    """
    config.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with alone(config.path), open_outbox(config.path / "outbox.db") as outbox:
        (config.path / STATUS).unlink(missing_ok=True)  # It speaks of another process.
        identity = Identity(config.path)
        link = Link(
            dialer or dial(config),
            heartbeat_s=config.leases.heartbeat_s,
            dice=here().dice,
            poll=poller or (None if dialer else poll(config)),
            transport=config.transport,
            incarnation=identity.incarnation,
        )
        shop = _workshop(config, link, outbox)
        shop.secrets = secrets or shop.secrets
        daemon = Daemon(config, identity, shop)
        async with open_children(stop_s=STOP_S) as children:
            probe = partial(
                probe_forever, partial(here().find_clis, config.search_path), daemon.found
            )
            await children.start(supervise, tree.child("probe"), probe, RestartPolicy())
            # After the probe: what is found again may have to be started, with what is here.
            await children.start(daemon.keep_runs, tree)
            await children.start(supervise, tree.child("link"), daemon.keep_link, RestartPolicy())
            tidy = partial(tidy_forever, config.path, shop)
            await children.start(supervise, tree.child("tidying"), tidy, RestartPolicy())
            try:
                return await daemon.wait_end(signals)
            finally:
                await daemon.take_leave()


def _workshop(config: DaemonConfig, link: Link, outbox: Outbox) -> Workshop:
    for directory in (runs := config.path / "runs", work := config.path / "work"):
        directory.mkdir(mode=0o700, exist_ok=True)
    sync_directory(config.path)
    return Workshop(
        server=config.server,
        workspace_id=config.workspace_id,
        runs=runs,
        link=link,
        outbox=outbox,
        repositories=Repositories(work, Git(os.environ)),
        slots=Slots(config.tasks_max),
        leases=config.leases,
        trust=Trust(trust.now() + config.leases.offline_after_s),
        environment={**os.environ, "PATH": config.search_path},
        orphan_s=config.orphan_s,
        limits=config.limits,
    )


@final
class Daemon:
    """What the link asks of us (`Host`), and the runs."""

    runs: Troupe[run.Message]

    def __init__(self, config: DaemonConfig, identity: Identity, workshop: Workshop) -> None:
        self._config = config
        self._shop = workshop
        self._identity = identity
        self._taken: str | None = None
        """Why another machine has our name, in words."""
        self._pushed: dict[UUID, ClaimedTask] = {}
        self._nursery: trio.Nursery | None = None
        self._shutout: str | None = None
        self._shut_out = trio.Event()
        workshop.slots.freed = self._run_over
        workshop.changed = self.note_status
        self._stopping = Stopping(is_idle=lambda: workshop.slots.is_idle)

    async def keep_runs(
        self, branch: Branch, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Look after all runs, beginning with those that are on disk (R8.1): start is recovery."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self.runs = Troupe(nursery, branch.child("runs"), self._run_actor)
            for task in self._tasks():
                self._keep_secrets(task)
            for task_id in self._on_disk():
                logger.info("task %s: found again", task_id)
                await self.runs.find(task_id)
            self.note_status()
            task_status.started()
            await trio.sleep_forever()

    async def keep_link(self, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            await self._shop.link.run(self, task_status=task_status)
        except Shutout as shutout:  # No crash to ride out: a person has to act.
            self._shutout = str(shutout)
            self._shut_out.set()

    async def _wait_shutout(self) -> None:
        await self._shut_out.wait()
        assert self._shutout is not None
        raise CannotStart(self._shutout)

    async def wait_end(self, signals: AsyncIterable[int] | None) -> Ending:
        """Raises `CannotStart` where the server does not want this daemon."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._wait_shutout)
            if signals is not None:
                nursery.start_soon(self._hear, signals)
            ending = await self._stopping.wait_over()
            nursery.cancel_scope.cancel()
        return ending

    async def _hear(self, signals: AsyncIterable[int]) -> None:
        async for number in signals:
            self.end(SIGNALS[Signals(number)])

    def end(self, ending: Ending) -> None:
        """Begin to (R7.4). Tasks that come under the credit of old are not taken any more."""
        self._stopping.ask(ending)
        if ending is not Ending.RESTART:
            self._shop.link.connect_again()
        if ending is Ending.NOW:
            for task in self._tasks():
                self._tell_run(task.id, SHUTDOWN)
        self.note_status()

    async def take_leave(self) -> None:
        """So that the server need not find out by silence. Not while agents go on here: it would
        count their time from now, and they from when the server was last heard (R4.11)."""
        runtime_ids = [str(each) for each in self._shop.runtimes]
        is_left = self._shop.slots.is_idle and self._stopping.ending is not Ending.RESTART
        is_left &= self._taken is None
        if is_left and runtime_ids and self._shop.link.is_up:
            leave = Deregister(runtime_ids=runtime_ids)
            with trio.move_on_after(LEAVE_S, shield=True), suppress(LinkLost, LinkRefused):
                await self._shop.link.call("deregister", leave)

    def _run_actor(self, task_id: UUID) -> RunActor:
        return RunActor(task_id, self._pushed.get(task_id), self._shop)

    def _on_disk(self) -> list[UUID]:
        named = {UUID(task_id) for task_id, _ in self._shop.outbox.claims()}
        return sorted(named | record.runs_in(self._shop.runs).keys())

    def found(self, found: list[Found]) -> None:
        """What the probe says is here now; told to the server if it has changed."""
        fresh = {each.provider: each for each in found}
        if fresh != self._shop.found:
            self._shop.found = fresh
            self._shop.link.register_again()

    # The link's host

    async def connected(self) -> list[UUID]:
        asked_at = trust.now()
        answer = await self._shop.link.call("register", self._registration())
        assert isinstance(answer, Registered)
        self.stop([UUID(task_id) for task_id, said in answer.verdicts.items() if said == "stop"])
        if answer.taken_by is not UNSET:
            self._note_taken(answer.taken_by)
            return []
        self._taken = None
        self._identity.registered()
        self._shop.runtimes = {each.id: each.provider for each in answer.runtimes}
        self.trusted(asked_at, answer.trust_s)
        return [each.id for each in answer.runtimes if each.status == "online"]

    def _note_taken(self, device: str) -> None:
        """What runs here goes on under its claims, and is reported; nothing new comes (R6.2)."""
        is_news, self._taken = self._taken is None, TAKEN.format(device, self._config.path)
        if is_news:
            logger.error("%s", self._taken)
            assert self._nursery is not None
            self._nursery.start_soon(self._wait_name)

    async def _wait_name(self) -> None:
        while self._taken is not None:
            await trio.sleep(TAKEN_S)
            self._shop.link.register_again()

    def trusted(self, asked_at: float, trust_s: Mapping[UUID, float]) -> None:
        self._shop.trust.promise(asked_at, trust_s)

    def _registration(self) -> Register:
        return Register(
            workspace_id=self._config.workspace_id,
            daemon_id=self._identity.daemon_id,
            device_name=platform.node() or "this machine",
            cli_version=VERSION,
            incarnation=self._identity.incarnation,
            after=self._identity.after,
            runtimes=[
                RuntimeOffer(
                    type=each.provider,
                    version=each.version,
                    status="offline" if each.problem else "online",
                    problem=each.problem,
                )
                for each in self._shop.found.values()
            ],
            inventory=self._inventory(),
        )

    def _inventory(self) -> Inventory:
        """R6.2: what runs here, and what has ended, or is being ended, and is not acknowledged.

        What may be elsewhere by now has been told to stop: its end is on its way (R4.11).
        """
        finished = [
            HeldTask(task_id=UUID(task_id), claim_token=_token(token))
            for task_id, token in self._shop.outbox.claims()
        ]
        ended = {each.task_id for each in finished}
        running = list[HeldTask]()
        for task in self._tasks():
            if task.id not in ended:
                held = HeldTask(task_id=task.id, claim_token=task.claim_token)
                is_ending = self._shop.may_be_elsewhere(task)
                (finished if is_ending else running).append(held)
        return Inventory(running=running, finished=finished)

    def _tasks(self) -> list[ClaimedTask]:
        """What is prepared, runs, or was found again: each once, under its newest claim."""
        found = {order.task.id: order.task for order in record.read_orders(self._shop.runs)}
        return list((found | self._pushed).values())

    def take(self, tasks: list[ClaimedTask]) -> None:
        """Pushed under our credit. What we have already is under a newer claim now (R3.5)."""
        for task in tasks:
            if self._shop.slots.holds(task.id):
                logger.warning("task %s was pushed again", task.id)
                self._pushed[task.id] = task
                self._tell_run(task.id, run.Again(task))
            elif self._stopping.takes_nothing:
                logger.info("task %s came too late: this daemon is about to end", task.id)
            else:
                self._take(task)
        self.note_status()

    def _take(self, task: ClaimedTask) -> None:
        self._keep_secrets(task)
        self._pushed[task.id] = task
        self._shop.slots.take(task.id)
        assert self._nursery is not None
        self._nursery.start_soon(self._begin, task.id)

    def _keep_secrets(self, task: ClaimedTask) -> None:
        self._shop.secrets.add(task.agent.custom_env.values())
        self._shop.secrets.add(confided(task.agent.mcp_config))

    async def _begin(self, task_id: UUID) -> None:
        while self.runs.get(task_id) is not None:
            await trio.lowlevel.checkpoint()  # The last one of this task is just leaving.
        await self.runs.find(task_id)
        if self._stopping.ending is Ending.NOW:
            self._tell_run(task_id, SHUTDOWN)  # It was not there yet when the others were told.

    def free_slots(self) -> int:
        if self._stopping.takes_nothing:
            return 0
        return min(self._shop.slots.free, self._shop.outbox.room())

    def link_changed(self) -> None:
        self.note_status()

    def _run_over(self, task_id: UUID) -> None:
        self._pushed.pop(task_id, None)
        self._shop.link.offer(self.free_slots())
        self._stopping.look()
        self.note_status()

    def stop(self, task_ids: Sequence[UUID]) -> None:
        """Cancelled, or given up by the server (R7.1, R7.3)."""
        for task_id in task_ids:
            self._tell_run(task_id, run.Stop(FailureReason.CANCELLED))

    def _tell_run(self, task_id: UUID, message: run.Message) -> None:
        if (actor := self.runs.get(task_id)) is not None:
            try:
                actor.tell_nowait(message)
            except (trio.WouldBlock, ActorGone):
                logger.warning("task %s does not listen", task_id)

    def note_status(self) -> None:
        try:
            write_status(self._config.path, self._status())
        except OSError as error:  # It is for people; nothing else waits for it.
            logger.warning("no status was written: %s", error)

    def _status(self) -> DaemonStatus:
        specs = {order.task.id: order.spec for order in record.read_orders(self._shop.runs)}
        runs = [
            status_of(task, specs.get(task.id), is_reported=self._shop.is_reported(task))
            for task in self._tasks()
        ]
        return DaemonStatus(
            pid=os.getpid(),
            server=self._config.server,
            daemon_id=self._identity.daemon_id,
            version=VERSION,
            is_linked=self._shop.link.is_up and self._taken is None,
            slots=self._shop.slots.total,
            slots_free=self._shop.slots.free,
            reports_waiting=len(self._shop.outbox.claims()),
            found={each.provider: each.problem for each in self._shop.found.values()},
            runs=runs,
            incarnation=self._identity.incarnation,
            trouble=self._taken or self._shop.link.trouble,
            ending=self._stopping.ending,
            is_child=has_parent(),
            disk=self._shop.disk,
            is_over_http=self._shop.link.is_over_http,
            no_websocket=self._shop.link.no_websocket,
        )


def _token(text: str) -> UUID | None:
    return None if text == str(None) else UUID(text)
