"""The daemon: its whole tree on one screen, and what holds it together."""

from __future__ import annotations

import fcntl
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random, SystemRandom
from typing import Final, final
from uuid import UUID, uuid4

import trio

from understudy.actors.actor import spawn
from understudy.actors.mailbox import ActorGone
from understudy.actors.troupe import Troupe
from understudy.config import DaemonConfig
from understudy.core.restarts import CannotStart, RestartPolicy
from understudy.core.tree import Branch
from understudy.daemon import record, run
from understudy.daemon.files import replace_file
from understudy.daemon.git import Git
from understudy.daemon.link import Dial, Link, Shutout, dial
from understudy.daemon.outbox import REPORTS_MAX, Outbox, OutboxBusy
from understudy.daemon.probe import Found
from understudy.daemon.repositories import Repositories
from understudy.daemon.run import RunActor
from understudy.daemon.runtime import ProbeActor
from understudy.daemon.slots import Slots
from understudy.daemon.status import DaemonStatus, RunStatus, write_status
from understudy.daemon.workshop import Workshop
from understudy.supervisor import open_children, supervise
from understudy.version import VERSION
from understudy.wire.daemon import (
    ClaimedTask,
    HeldTask,
    Inventory,
    Register,
    Registered,
    RuntimeOffer,
)

logger = logging.getLogger(__name__)

STOP_S: Final = 5.0


async def run_daemon(
    config: DaemonConfig, tree: Branch, *, dialer: Dial | None = None, dice: Random | None = None
) -> None:
    """Work until cancelled; the agents go on under their keepers, and are found again (R7.4)."""
    config.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(config.path), _outbox(config.path) as outbox:
        dice = dice or SystemRandom()
        link = Link(dialer or dial(config), heartbeat_s=config.leases.heartbeat_s, dice=dice)
        daemon = Daemon(config, _workshop(config, link, outbox))
        async with open_children(stop_s=STOP_S) as children:
            await children.start(daemon.keep_runs, tree)
            await spawn(
                children,
                tree.child("probe"),
                partial(ProbeActor, config.search_path, daemon.found),
                mailbox_max=4,
                policy=RestartPolicy(),
            )
            await children.start(supervise, tree.child("link"), daemon.keep_link, RestartPolicy())
            await trio.sleep_forever()


def _workshop(config: DaemonConfig, link: Link, outbox: Outbox) -> Workshop:
    runs, work = config.path / "runs", config.path / "work"
    for directory in (runs, work):
        directory.mkdir(mode=0o700, exist_ok=True)
    return Workshop(
        workspace_id=config.workspace_id,
        runs=runs,
        link=link,
        outbox=outbox,
        repositories=Repositories(work, Git(os.environ)),
        slots=Slots(config.tasks_max),
        leases=config.leases,
        environment={**os.environ, "PATH": config.search_path},
    )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One daemon for each directory; the lock goes with the process, however it ends."""
    file = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CannotStart(
            f"a daemon runs in {path} already: `understudy daemon status` shows it"
        ) from None
    else:
        yield
    finally:
        os.close(file)


@contextmanager
def _outbox(path: Path) -> Iterator[Outbox]:
    try:
        with Outbox(path / "outbox.db") as outbox:
            yield outbox
    except OutboxBusy:
        raise CannotStart(f"{path / 'outbox.db'} is in use by another program") from None


@final
class Daemon:
    """What the link asks of us (`Host`), and the runs."""

    runs: Troupe[run.Message]

    def __init__(self, config: DaemonConfig, workshop: Workshop) -> None:
        self._config = config
        self._shop = workshop
        self._daemon_id = _identity(config.path / "daemon_id")
        self._incarnation = uuid4().hex
        self._pushed: dict[UUID, ClaimedTask] = {}
        self._nursery: trio.Nursery | None = None
        workshop.slots.freed = self._slot_freed

    async def keep_runs(
        self, branch: Branch, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Look after all runs, beginning with those that are on disk (R8.1): start is recovery."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self.runs = Troupe(nursery, branch.child("runs"), self._run_actor)
            for task_id in self._on_disk():
                logger.info("task %s: found again", task_id)
                await self.runs.find(task_id)
            task_status.started()
            await trio.sleep_forever()

    async def keep_link(self, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            await self._shop.link.run(self, task_status=task_status)
        except Shutout as shutout:
            raise CannotStart(str(shutout)) from None

    def _run_actor(self, task_id: UUID) -> RunActor:
        return RunActor(task_id, self._pushed.get(task_id), self._shop)

    def _on_disk(self) -> list[UUID]:
        named = {entry.name for entry in self._shop.runs.iterdir() if entry.is_dir()}
        named |= {report.task_id for report in self._shop.outbox.pending(REPORTS_MAX)}
        return sorted(UUID(name) for name in named)

    def found(self, found: list[Found]) -> None:
        """What the probe says is here now; told to the server if it has changed."""
        fresh = {each.provider: each for each in found}
        if fresh == self._shop.found:
            return
        self._shop.found = fresh
        if self._shop.link.is_up and self._nursery is not None:
            self._nursery.start_soon(self._shop.link.register_again, self)

    # The link's host

    async def connected(self) -> list[UUID]:
        answer = await self._shop.link.call("register", self._registration())
        assert isinstance(answer, Registered)
        self._shop.runtimes = {each.id: each.provider for each in answer.runtimes}
        for task_id, verdict in answer.verdicts.items():
            if verdict == "stop":
                self._stop_run(UUID(task_id))
        self.note_status()
        return [each.id for each in answer.runtimes if each.status == "online"]

    def _registration(self) -> Register:
        return Register(
            workspace_id=self._config.workspace_id,
            daemon_id=self._daemon_id,
            device_name=platform.node() or "this machine",
            cli_version=VERSION,
            incarnation=self._incarnation,
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
        """R6.2: what runs here, and what is finished and not acknowledged."""
        waiting = self._shop.outbox.pending(REPORTS_MAX)
        finished = [
            HeldTask(task_id=UUID(each.task_id), claim_token=UUID(each.claim_token))
            for each in waiting
        ]
        ended = {each.task_id for each in finished}
        running = [
            HeldTask(task_id=order.task.id, claim_token=order.task.claim_token)
            for order in self._orders()
            if order.task.id not in ended
        ]
        return Inventory(running=running, finished=finished)

    def _orders(self) -> list[record.RunOrder]:
        orders = (record.read_order(entry) for entry in self._shop.runs.iterdir())
        return [order for order in orders if order is not None]

    def take(self, tasks: list[ClaimedTask]) -> None:
        """Pushed under our credit; one that we have already is the same one again."""
        for task in tasks:
            if self.runs.get(task.id) is not None:
                logger.warning("task %s was pushed again; its run here goes on", task.id)
                continue
            self._shop.slots.take(task.id)
            self._pushed[task.id] = task
            assert self._nursery is not None
            self._nursery.start_soon(self.runs.find, task.id)
        self.note_status()

    def free_slots(self) -> int:
        return min(self._shop.slots.free, self._shop.outbox.room())

    def _slot_freed(self) -> None:
        if self._shop.slots.free:  # Runs found after a restart may be more than the slots.
            self._shop.link.grant(1)
        self.note_status()

    def _stop_run(self, task_id: UUID) -> None:
        """The server gave the task up: whatever the run reports next will be refused."""
        if (actor := self.runs.get(task_id)) is not None:
            try:
                actor.tell_nowait(run.Stop("cancelled"))
            except (trio.WouldBlock, ActorGone):
                pass

    def note_status(self) -> None:
        runs = [
            RunStatus(
                task_id=order.task.id,
                issue=order.task.issue.key if order.task.issue else None,
                provider=order.task.provider,
                work_dir=order.spec.work_dir,
            )
            for order in self._orders()
        ]
        write_status(
            self._config.path,
            DaemonStatus(
                pid=os.getpid(),
                server=self._config.server,
                daemon_id=self._daemon_id,
                version=VERSION,
                is_linked=self._shop.link.is_up,
                slots=self._shop.slots.total,
                slots_free=self._shop.slots.free,
                reports_waiting=len(self._shop.outbox.pending(REPORTS_MAX)),
                found={each.provider: each.problem for each in self._shop.found.values()},
                runs=runs,
            ),
        )


def _identity(path: Path) -> str:
    """Stable across restarts: the server tells machines apart by it."""
    if not path.exists():
        replace_file(path, str(uuid4()))
    return path.read_text().strip()
