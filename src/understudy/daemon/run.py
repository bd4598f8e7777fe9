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
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias
from uuid import UUID

import msgspec
import trio

from understudy.actors.actor import Actor
from understudy.core.failures import FailureReason
from understudy.core.records import Message as Said
from understudy.core.records import Usage
from understudy.daemon import reports, workspace
from understudy.daemon.backends.backend import (
    Completed,
    Event,
    Reader,
    Session,
    Unlaunchable,
    Unparsed,
    Verdict,
)
from understudy.daemon.backends.providers import BACKENDS
from understudy.daemon.changes import Changes, describe_changes, publish
from understudy.daemon.files import replace_file
from understudy.daemon.git import GitFailed
from understudy.daemon.hold import Disowned, Hold
from understudy.daemon.kept import KeeperFailed, KeeperGone, KeeperRefused, Kept, spawn_keeper
from understudy.daemon.lines import Oversized, Piece
from understudy.daemon.link import LinkRefused
from understudy.daemon.orders import Unfit, check, keeper_spec, run_order
from understudy.daemon.outbox import Report
from understudy.daemon.preparing import wait_prepared
from understudy.daemon.record import (
    RunOrder,
    UnreadableOrder,
    heard,
    note_heard,
    read_order,
    remove_run,
    set_aside,
    write_order,
)
from understudy.daemon.repositories import PrepareFailed
from understudy.daemon.rundir import Standing
from understudy.daemon.spool import Spool
from understudy.daemon.transcript import Transcript
from understudy.daemon.trouble import AGAIN_S, TROUBLE, passes
from understudy.daemon.workshop import Workshop
from understudy.supervisor import sole
from understudy.wire.daemon import ClaimedTask

logger = logging.getLogger(__name__)

PING_S: Final = 60.0
CRASHES_MAX: Final = 2


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


class RunActor(Actor[Message]):
    """`task` is what was pushed last; None for a run that was found on disk."""

    def __init__(self, task_id: UUID, task: ClaimedTask | None, workshop: Workshop) -> None:
        self._id = task_id
        self._task = task
        self._shop = workshop
        self._kept = Kept(workshop.run_dir(task_id))
        self._life = trio.CancelScope()

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
            order = read_order(self._kept.run_dir)
        except UnreadableOrder as unreadable:
            await self._kept.end(FailureReason.CANCELLED)
            aside = set_aside(self._kept.run_dir)
            logger.warning("%s; its agent was ended, see %s", unreadable, aside)
            return None
        if order and self._task and order.task.claim_token != self._task.claim_token:
            await self._abandon()
            return None
        return order

    async def _work(self, task: ClaimedTask, order: RunOrder | None) -> None:
        self._take_hold(task)
        is_reported = self._is_reported(task)
        if self.branch.incarnation > CRASHES_MAX:
            if not is_reported:
                await self._give_up_after_crashes(task)
            return
        if not is_reported and not self._has_begun():
            order = await self._begin(task)
        if order is not None and self._has_begun():
            await self._follow(order)

    def _has_begun(self) -> bool:
        return self._kept.look() is not Standing.UNBORN

    def _is_reported(self, task: ClaimedTask) -> bool:
        return self._shop.outbox.holds(str(self._id), str(task.claim_token))

    def _stop_agent(self, why: FailureReason) -> None:
        """Now if it runs, else as soon as it does: the first reason stands."""
        if self._why is None:
            self._why = why
            self.nursery.start_soon(self._kept.end, why)

    # Begin

    async def _begin(self, task: ClaimedTask) -> RunOrder | None:
        """Prepare, start on the server, start the agent; None where a failure is in the outbox."""
        try:
            return await self._prepare_and_start(task)
        except (Unfit, Unlaunchable) as unfit:
            self._give_up(task, unfit.reason, str(unfit))
        except LinkRefused as refused:
            self._give_up(task, FailureReason.UNKNOWN, f"the server refused the start: {refused}")
        except (PrepareFailed, workspace.WorkDirBusy, KeeperFailed, OSError) as failed:
            if self._has_begun():  # Under the keeper of an earlier daemon, or one that failed late.
                return read_order(self._kept.run_dir)
            self._give_up(task, FailureReason.PREPARE_FAILED, f"it could not be started: {failed}")
        return None

    async def _prepare_and_start(self, task: ClaimedTask) -> RunOrder:
        check(task, self._shop)
        work = await wait_prepared(task, self._hold, self._kept, self._shop)
        with work.claim:
            order = run_order(task, work, self._shop)
            launch = BACKENDS[task.provider].launch(order.spec)
            write_order(self._kept.run_dir, order)
            self._shop.changed()
            self._check_wanted()
            await self._hold.start()
            self._check_wanted()
            for path, text in launch.files.items():
                replace_file(Path(path), text)
            logger.info("task %s: starting %s in %s", self._id, task.provider, work.path)
            await spawn_keeper(
                self._kept.run_dir,
                keeper_spec(order, launch),
                descriptors=work.claim.descriptors,
            )
        return order

    def _check_wanted(self) -> None:
        if self._why is not None:
            raise Unfit(self._why, "it was stopped before it began")

    def _give_up(self, task: ClaimedTask, reason: FailureReason, sentence: str) -> None:
        logger.warning("task %s cannot run: %s", self._id, sentence)
        self._put(reports.failed(self._id, task.claim_token, reason, sentence))

    def _put(self, report: Report) -> None:
        self._shop.outbox.put(report)
        self._shop.changed()

    async def _give_up_after_crashes(self, task: ClaimedTask) -> None:
        await self._kept.end(FailureReason.UNKNOWN)
        crash = self.branch.snapshot(trio.current_time()).last_crash
        what = f"{crash.error}: {crash.message}" if crash else "it crashed"
        self._give_up(task, FailureReason.UNKNOWN, f"the daemon cannot look after it: {what}")

    # Follow

    async def _follow(self, order: RunOrder) -> None:
        """Read the spool to its end, tell the server, judge; the report is in the outbox then."""
        if self._why is not None:
            self.nursery.start_soon(self._kept.end, self._why)
        reader = BACKENDS[order.task.provider].reader(order.spec)
        transcript = Transcript(self._send, heard(self._kept.run_dir))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ping_forever)
            async with trio.open_nursery() as senders:
                senders.start_soon(transcript.send_all)
                session_id = await self._read(order, reader, transcript, senders)
                await self._judge(order, reader, session_id)
                transcript.close()
            if bill := reader.usage():
                await self._hold.bill(
                    [msgspec.convert(each, Usage, from_attributes=True) for each in bill]
                )
            nursery.cancel_scope.cancel()

    async def _send(self, batch: list[Said]) -> None:
        await self._hold.say(batch)
        note_heard(self._kept.run_dir, batch[-1].seq)

    async def _read(
        self, order: RunOrder, reader: Reader, transcript: Transcript, senders: trio.Nursery
    ) -> str | None:
        session_id: str | None = None
        with Spool(self._kept.run_dir) as spool:
            async for pieces in spool:
                events = [event for piece in pieces for event in _events(reader, piece)]
                await transcript.add(events)
                for event in events:
                    if isinstance(event, Session) and event.is_resumable and event.id != session_id:
                        session_id = event.id
                        senders.start_soon(self._hold.pin, event.id, order.spec.work_dir)
        return session_id

    async def _judge(self, order: RunOrder, reader: Reader, session_id: str | None) -> None:
        if self._kept.look() is Standing.LOST:
            await self._kept.sweep()
        end = reports.exit_of(self._kept)
        verdict = reader.finish(end, reports.stderr_tail(self._kept.run_dir))
        if self._is_reported(order.task):
            return  # The first verdict stands.
        changes = await self._hand_over(order, verdict)
        self._put(reports.judged(order, verdict, session_id=session_id, changes=changes))
        logger.info("task %s ended: %s, %s", self._id, end.why, type(verdict).__name__.lower())

    async def _hand_over(self, order: RunOrder, verdict: Verdict) -> Changes | None:
        """Count what the run left, and put its branch where its user looks for it."""
        path, git = Path(order.spec.work_dir), self._shop.repositories.git
        if order.branch is None:
            return None
        try:
            changes = await describe_changes(git, path, order.base_commit)
            trouble = None
            if isinstance(verdict, Completed) and changes.commits:
                trouble = await publish(git, path, order.branch)
            if trouble:
                logger.warning("task %s: %s", self._id, trouble)
        except (GitFailed, OSError) as failure:  # The agent may have removed the directory.
            logger.warning("task %s: its changes cannot be counted: %s", self._id, failure)
            return None
        return changes

    async def _ping_forever(self) -> None:
        """Tell the keeper that its daemon is there (R8.2)."""
        while self._kept.look() is Standing.KEPT:
            with trio.move_on_after(PING_S), suppress(KeeperGone, KeeperRefused):
                await self._kept.ping()
            await trio.sleep(PING_S)

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
        remove_run(self._kept.run_dir)
        for report in answered:
            self._shop.outbox.acknowledge(report.task_id, report.claim_token)
        self._shop.changed()


def _events(reader: Reader, piece: Piece) -> list[Event]:
    if isinstance(piece, Oversized):
        return [Unparsed("a line too long to read", piece.end - piece.start)]
    return reader.feed(piece.text)
