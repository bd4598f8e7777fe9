"""One run: prepared, started, followed, reported (R2.6, R6.4, R8.1).

Start is recovery. Whatever the actor needs stands in the run's directory and in the outbox, so a
crashed actor, or a daemon killed at any moment, goes on from what is there:

    nothing                       it never began; the claim expires, the server gives it out again
    order.json, no keeper ever    ask to start again, with the same token, then start the keeper
    a keeper                      read its spool from the start; the server keeps each message once
    a keeper's exit, or its loss  the same, then judge, put the report into the outbox, deliver it
    a report in the outbox        deliver it; then, and only then, remove the directory

The fences do the rest: who is told 404 or 409 holds the task no more, and stops its agent.

Every path ends in a report (R9.6). What passes (a full disk, say) is waited out; what crashes the
actor again and again is no longer followed: its agent is ended, and the report says why.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias
from uuid import UUID

import trio

from understudy.actors.actor import Actor
from understudy.core.failures import FailureReason
from understudy.daemon import reports, workspace
from understudy.daemon.backends.backend import Unlaunchable
from understudy.daemon.backends.providers import BACKENDS
from understudy.daemon.files import replace_file
from understudy.daemon.following import follow
from understudy.daemon.hold import Disowned, Hold
from understudy.daemon.kept import (
    KeeperFailed,
    KeeperGone,
    KeeperRefused,
    Kept,
    spawn_keeper,
)
from understudy.daemon.orders import Unfit, check, keeper_spec, run_order
from understudy.daemon.outbox import Report
from understudy.daemon.outcomes import LinkRefused
from understudy.daemon.preparing import wait_prepared
from understudy.daemon.record import (
    AFRESH,
    RunOrder,
    UnreadableOrder,
    read_order,
    remove_run,
    set_aside,
    write_order,
)
from understudy.daemon.repositories import PrepareFailed
from understudy.daemon.rundir import Standing
from understudy.daemon.trouble import AGAIN_S, TROUBLE, passes
from understudy.daemon.workshop import Workshop
from understudy.supervisor import sole
from understudy.wire.daemon import ClaimedTask

logger = logging.getLogger(__name__)

CRASHES_MAX: Final = 2
TELL_S: Final = 5.0


@dataclass(frozen=True)
class Stop:
    """End the agent and its whole tree; the report says `why`."""

    why: FailureReason


@dataclass(frozen=True)
class Again:
    """The server has given the task out anew: whoever has an older claim of it has none (R3.5)."""

    task: ClaimedTask


@dataclass(frozen=True)
class Over:
    """Nothing is left to do for this claim of the task."""

    task: ClaimedTask | None


Message: TypeAlias = Stop | Again | Over


class Unwanted(Exception):
    """It was stopped before it began."""

    def __init__(self, why: FailureReason) -> None:
        super().__init__(why)
        self.why = why


class RunActor(Actor[Message]):
    """`task` is what was pushed last; None for a run that was found on disk."""

    def __init__(self, task_id: UUID, task: ClaimedTask | None, workshop: Workshop) -> None:
        self._id = task_id
        self._task = task
        self._shop = workshop
        self._home = workshop.run_dir(task_id)
        self._kept = Kept(self._home)
        self._life = trio.CancelScope()
        self._beginning = trio.CancelScope()

    async def start(self) -> None:
        self._shop.slots.take(self._id)
        self.nursery.start_soon(self._live)

    async def receive(self, message: Message) -> None:
        match message:
            case Stop(why):
                self._stop_agent(why)
            case Again(task):
                if task.claim_token != self._token:
                    self._task = task
                    self._life.cancel()
            case Over(task) if task is not self._task:
                self.nursery.start_soon(self._live)
            case Over():
                self._shop.slots.release(self._id)
                self.stop()

    async def _live(self) -> None:
        task = self._task
        self._why: FailureReason | None = None
        self._take_hold(task)
        with trio.CancelScope() as self._life:
            while not await self._is_over():  # noqa: ASYNC110  # What passes sends no event.
                await trio.sleep(AGAIN_S)
        await self.ref.tell(Over(task))

    def _take_hold(self, task: ClaimedTask | None) -> None:
        self._token = task.claim_token if task else None
        lost = partial(self._stop_agent, FailureReason.CANCELLED)
        self._hold = Hold(self._shop.link, self._id, self._token, lost)

    async def _is_over(self) -> bool:
        """False where it was only interrupted, by something that passes."""
        is_over = True
        try:
            await self._go_on()
        except* Disowned as group:
            logger.warning("task %s: %s", self._id, sole(group))
            await self._abandon()
        except* TROUBLE as group:
            is_over = False
            if group.subgroup(lambda error: not passes(error)) is not None:
                raise
            logger.warning("task %s: %s; going on in %s s", self._id, sole(group), AGAIN_S)
        return is_over

    async def _go_on(self) -> None:
        order = await self._find_order()
        task = self._task or (order.task if order else None)
        if task is not None:
            await self._work(task, order)
        await self._deliver_reports()

    async def _find_order(self) -> RunOrder | None:
        """That of an older claim is abandoned, one that cannot be read is set aside (R6.2)."""
        try:
            order = read_order(self._home)
        except UnreadableOrder as unreadable:
            for run_dir in (self._home, self._home / AFRESH):
                await Kept(run_dir).end(FailureReason.CANCELLED)
            aside = set_aside(self._home)
            logger.warning("%s; its agent was ended, see %s", unreadable, aside)
            return None
        if order is not None:
            self._kept = Kept(Path(order.spec.run_dir))
        if order and self._task and order.task.claim_token != self._task.claim_token:
            await self._abandon()
            return None
        return order

    async def _work(self, task: ClaimedTask, order: RunOrder | None) -> None:
        self._take_hold(task)
        async with trio.open_nursery() as nursery:
            if task.is_movable and task.runtime_id is not None:
                nursery.start_soon(self._stop_when_distrusted, task.runtime_id)
                nursery.start_soon(self._tell_promises, task.runtime_id)
            await self._bring_to_an_end(task, order)
            nursery.cancel_scope.cancel()

    async def _bring_to_an_end(self, task: ClaimedTask, order: RunOrder | None) -> None:
        is_reported = self._shop.is_reported(task)
        if self.branch.incarnation > CRASHES_MAX:
            if not is_reported:
                await self._give_up_after_crashes(task)
            return
        if not is_reported and not self._has_begun():
            order = await self._begin(task, order)
        while order is not None and self._has_begun():
            if self._why is not None:
                self.nursery.start_soon(self._kept.end, self._why)
            fresh = await follow(order, self._kept, self._hold, self._shop)
            order = fresh and await self._begin(task, fresh)

    def _has_begun(self) -> bool:
        return self._kept.look() is not Standing.UNBORN

    async def _stop_when_distrusted(self, runtime_id: UUID) -> None:
        """R4.11: its directory, its spool and its session stay; the report waits for the link."""
        if self._kept.minds_promises():  # A server that is away while daemons change costs no run.
            await self._shop.trust.wait_promised(runtime_id)
        await self._shop.trust.wait_end(runtime_id)
        logger.warning("task %s: no link for so long that it may be given away", self._id)
        self._stop_agent(FailureReason.RUNTIME_OFFLINE)

    async def _tell_promises(self, runtime_id: UUID) -> None:
        """R4.11: to the keeper, who keeps them when this daemon is gone."""
        trust = self._shop.trust
        while True:
            promised = trust.next_promise()
            if trust.is_promised(runtime_id):
                with trio.move_on_after(TELL_S), suppress(KeeperGone, KeeperRefused):
                    await self._kept.trust(trust.until_boot_s(runtime_id))
            await promised.wait()

    def _stop_agent(self, why: FailureReason) -> None:
        """Now if it runs, not at all if it has not begun: the first reason stands."""
        if self._why is None:
            self._why = why
            self._beginning.cancel()
            self.nursery.start_soon(self._kept.end, why)

    # Begin

    async def _begin(self, task: ClaimedTask, order: RunOrder | None) -> RunOrder | None:
        """Prepare, start on the server, start the agent; None where a report is in the outbox."""
        if order is not None:
            self._kept = Kept(Path(order.spec.run_dir))
        try:
            return await self._prepare_and_start(task, order)
        except Unwanted as unwanted:
            self._put_unwanted(task, unwanted.why)
        except (Unfit, Unlaunchable) as unfit:
            self._give_up(task, unfit.reason, str(unfit))
        except LinkRefused as refused:
            self._give_up(task, FailureReason.UNKNOWN, f"the server refused the start: {refused}")
        except (PrepareFailed, workspace.WorkDirBusy, KeeperFailed, OSError) as failed:
            if self._has_begun():  # Under the keeper of an earlier daemon, or one that failed late.
                return read_order(self._home)
            self._give_up(task, FailureReason.PREPARE_FAILED, f"it could not be started: {failed}")
        return None

    async def _prepare_and_start(self, task: ClaimedTask, order: RunOrder | None) -> RunOrder:
        check(task, self._shop)
        with self._unless_stopped():
            work = await wait_prepared(task, self._hold, self._kept, self._shop)
        with work.claim:
            if order is None or order.refused is None:
                order = run_order(task, work, self._shop)
            launch = BACKENDS[task.provider].launch(order.spec)
            write_order(self._home, order)
            self._shop.changed()
            with self._unless_stopped():
                await self._hold.start()
            self._check_wanted()
            self._kept.run_dir.mkdir(mode=0o700, exist_ok=True)
            for path, text in launch.files.items():
                replace_file(Path(path), text)
            logger.info("task %s: starting %s in %s", self._id, task.provider, work.path)
            await spawn_keeper(
                self._kept.run_dir,
                keeper_spec(order, launch, self._shop),
                descriptors=work.claim.descriptors,
            )
        return order

    @contextmanager
    def _unless_stopped(self) -> Iterator[None]:
        """What is no longer wanted is not prepared to its end (R7.1). Raises `Unwanted`."""
        self._check_wanted()
        with trio.CancelScope() as self._beginning:
            yield
        if self._beginning.cancelled_caught:
            self._check_wanted()

    def _check_wanted(self) -> None:
        if self._why is not None:
            raise Unwanted(self._why)

    def _put_unwanted(self, task: ClaimedTask, why: FailureReason) -> None:
        if why is FailureReason.CANCELLED:
            self._shop.put(reports.stopped(task))
        else:
            self._give_up(task, why, "it was stopped before it began")

    def _give_up(self, task: ClaimedTask, reason: FailureReason, sentence: str) -> None:
        logger.warning("task %s cannot run: %s", self._id, sentence)
        self._shop.put(reports.failed(task, reason, sentence))

    async def _give_up_after_crashes(self, task: ClaimedTask) -> None:
        await self._kept.end(FailureReason.UNKNOWN)
        crash = self.branch.snapshot(trio.current_time()).last_crash
        what = f"{crash.error}: {crash.message}" if crash else "it crashed"
        self._give_up(task, FailureReason.UNKNOWN, f"the daemon cannot look after it: {what}")

    # Report

    async def _deliver_reports(self) -> None:
        """Until they are acknowledged, whatever that takes (R6.3, R6.4)."""
        waiting = self._shop.outbox.of_task(str(self._id))
        for report in waiting:
            await self._hold.report(report)
        self._forget(waiting)

    async def _abandon(self) -> None:
        """End what still runs, keep nothing to report: the task is somebody else's, or is over."""
        await self._kept.end(FailureReason.CANCELLED)
        self._forget(self._shop.outbox.of_task(str(self._id)))

    def _forget(self, answered: list[Report]) -> None:
        remove_run(self._home)
        for report in answered:
            self._shop.outbox.acknowledge(report.task_id, report.claim_token)
        self._shop.changed()
