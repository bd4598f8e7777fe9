"""One run: prepared, started, followed, reported (R2.6, R6.4, R8.1).

Start is recovery. Whatever the actor needs stands in the run's directory and in the outbox, so a
crashed actor, or a daemon killed at any moment, goes on from what is there:

    nothing                       it never began; the claim expires, the server gives it out again
    order.json, no keeper ever    ask to start again, with the same token, then start the keeper
    a keeper                      read its spool from the start; the server keeps each message once
    a keeper's exit, or its loss  the same, then judge, put the report into the outbox, deliver it
    a report in the outbox        deliver it; then, and only then, remove the directory

The fences do the rest: who is told 404 or 409 holds the task no more, and stops.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
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
from understudy.daemon.kept import KeeperFailed, KeeperGone, Kept, spawn_keeper
from understudy.daemon.lines import Oversized, Piece
from understudy.daemon.link import LinkLost, LinkRefused
from understudy.daemon.orders import Unfit, check, keeper_spec, run_order, work_order
from understudy.daemon.record import RunOrder, heard, note_heard, read_order, write_order
from understudy.daemon.repositories import PrepareFailed
from understudy.daemon.rundir import Standing
from understudy.daemon.spool import Spool
from understudy.daemon.transcript import Transcript
from understudy.daemon.workshop import Workshop
from understudy.wire import daemon as wire
from understudy.wire.daemon import ClaimedTask

logger = logging.getLogger(__name__)

PING_S: Final = 60.0
LOST_TO: Final = frozenset({404, 409})


class Disowned(Exception):
    """The server has said that this claim holds the task no more."""


@dataclass(frozen=True)
class Stop:
    """End the agent and its whole tree; the report says `why`."""

    why: str


@dataclass(frozen=True)
class Over:
    """Nothing is left to do."""


Message: TypeAlias = Stop | Over


class RunActor(Actor[Message]):
    """`task` is what was pushed; None for a run that was found on disk."""

    def __init__(self, task_id: UUID, task: ClaimedTask | None, workshop: Workshop) -> None:
        self._id = task_id
        self._task = task
        self._shop = workshop
        self._kept = Kept(workshop.run_dir(task_id))

    async def start(self) -> None:
        self._shop.slots.take(self._id)
        self.nursery.start_soon(self._live)

    async def receive(self, message: Message) -> None:
        match message:
            case Stop(why):
                try:
                    await self._kept.stop(why)
                except KeeperGone:
                    pass  # It has ended by itself, or has not begun: then `start` is refused.
            case Over():
                self._shop.slots.release(self._id)
                self.stop()

    async def _live(self) -> None:
        try:
            await self._go_on()
        except* Disowned as group:
            logger.warning("task %s: %s; stopping its agent", self._id, group.exceptions[0])
            await self._abandon()
        await self.ref.tell(Over())

    async def _go_on(self) -> None:
        order = read_order(self._kept.run_dir)
        if order is None and self._task is None:
            await self._deliver_report()
            return
        if self._shop.report_of(self._id) is None and not self._has_begun():
            order = await self._begin(order.task if order else self._task)
        if order is not None and self._kept.look() is not Standing.UNBORN:
            await self._follow(order)
        await self._deliver_report()

    def _has_begun(self) -> bool:
        run_dir = self._kept.run_dir
        return run_dir.exists() and self._kept.look() is not Standing.UNBORN

    # Begin

    async def _begin(self, task: ClaimedTask | None) -> RunOrder | None:
        """Prepare, start on the server, start the agent; None where a failure is in the outbox."""
        assert task is not None
        try:
            return await self._prepare_and_start(task)
        except Unfit as unfit:
            self._give_up(task, unfit.reason, str(unfit))
        except Unlaunchable as unlaunchable:
            self._give_up(task, unlaunchable.reason, str(unlaunchable))
        except (PrepareFailed, workspace.WorkDirBusy) as failed:
            self._give_up(task, FailureReason.PREPARE_FAILED, str(failed))
        except KeeperFailed as failed:
            if self._has_begun():
                return read_order(self._kept.run_dir)  # It did come up, and then failed.
            self._give_up(task, FailureReason.PREPARE_FAILED, f"no keeper came up: {failed}")
        return None

    async def _prepare_and_start(self, task: ClaimedTask) -> RunOrder:
        check(task, self._shop)
        work = await self._prepare(task)
        with work.claim:
            order = run_order(task, work, self._shop)
            launch = BACKENDS[task.provider].launch(order.spec)
            write_order(self._kept.run_dir, order)
            await self._deliver("start", wire.Held(claim_token=task.claim_token))
            for path, text in launch.files.items():
                replace_file(Path(path), text)
            logger.info("task %s: starting %s in %s", self._id, task.provider, work.path)
            await spawn_keeper(
                self._kept.run_dir,
                keeper_spec(order, launch),
                descriptors=work.claim.descriptors,
            )
        return order

    async def _prepare(self, task: ClaimedTask) -> workspace.WorkDir:
        """The claim is renewed meanwhile: a checkout may take longer than a lease (R3.4)."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._renew_forever, task)
            work = await workspace.prepare(work_order(task), self._shop.repositories)
            nursery.cancel_scope.cancel()
        return work

    async def _renew_forever(self, task: ClaimedTask) -> None:
        while True:
            await trio.sleep(self._shop.leases.renew_every_s)
            try:
                held = wire.Held(claim_token=task.claim_token)
                await self._shop.link.call("lease", held, self._id)
            except LinkLost:
                continue
            except LinkRefused as refused:
                if refused.refusal.status in LOST_TO:
                    return  # `start` will be refused too, and says so.

    def _give_up(self, task: ClaimedTask, reason: FailureReason, sentence: str) -> None:
        logger.warning("task %s cannot run: %s", self._id, sentence)
        self._shop.outbox.put(reports.failed(self._id, task.claim_token, reason, sentence))

    # Follow

    async def _follow(self, order: RunOrder) -> None:
        """Read the spool to its end, tell the server, judge; the report is in the outbox then."""
        reader = BACKENDS[order.task.provider].reader(order.spec)
        token = order.task.claim_token
        last = heard(self._kept.run_dir)

        async def send(batch: list[Said]) -> None:
            await self._tell("messages", wire.Messages(claim_token=token, messages=batch))
            note_heard(self._kept.run_dir, batch[-1].seq)

        transcript = Transcript(send, last)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ping_forever)
            async with trio.open_nursery() as senders:
                senders.start_soon(transcript.send_all)
                session_id = await self._read(order, reader, transcript, senders)
                await self._judge(order, reader, session_id)
                transcript.close()
            bill = [msgspec.convert(each, Usage, from_attributes=True) for each in reader.usage()]
            if bill:
                await self._tell("usage", wire.UsageReport(claim_token=token, usage=bill))
            nursery.cancel_scope.cancel()

    async def _read(
        self, order: RunOrder, reader: Reader, transcript: Transcript, senders: trio.Nursery
    ) -> str | None:
        session_id: str | None = None
        with Spool(self._kept.run_dir) as spool:
            async for pieces in spool:
                events = [event for piece in pieces for event in _events(reader, piece)]
                await transcript.add(events)
                for event in events:
                    if isinstance(event, Session) and event.is_resumable:
                        session_id = event.id
                        senders.start_soon(self._pin, order, event.id)
        return session_id

    async def _pin(self, order: RunOrder, session_id: str) -> None:
        await self._tell(
            "session",
            wire.Session(
                claim_token=order.task.claim_token,
                session_id=session_id,
                work_dir=order.spec.work_dir,
            ),
        )

    async def _judge(self, order: RunOrder, reader: Reader, session_id: str | None) -> None:
        if self._shop.report_of(self._id) is not None:
            return  # The first verdict stands.
        if self._kept.look() is Standing.LOST:
            await self._kept.sweep()
        end = reports.exit_of(self._kept)
        verdict = reader.finish(end, reports.stderr_tail(self._kept.run_dir))
        changes = await self._hand_over(order, verdict)
        report = reports.judged(order, verdict, session_id=session_id, changes=changes)
        self._shop.outbox.put(report)
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
        except GitFailed as failure:
            logger.warning("task %s: its changes cannot be counted: %s", self._id, failure)
            return None
        return changes

    async def _ping_forever(self) -> None:
        """Tell the keeper that its daemon is there (R8.2)."""
        while True:
            try:
                await self._kept.ping()
            except KeeperGone:
                return
            await trio.sleep(PING_S)

    # Report

    async def _deliver_report(self) -> None:
        """Until it is acknowledged, whatever that takes (R6.3, R6.4)."""
        if (report := self._shop.report_of(self._id)) is not None:
            body = reports.body_of(report)
            try:
                await self._deliver(report.kind, body)
            except LinkRefused as refused:
                logger.warning("task %s: %s; sending less", self._id, refused)
                await self._deliver(report.kind, reports.degraded(body))
        shutil.rmtree(self._kept.run_dir, ignore_errors=True)
        if report is not None:
            self._shop.outbox.acknowledge(report.task_id, report.claim_token)

    async def _abandon(self) -> None:
        """End what still runs, keep nothing to report: the task is somebody else's, or is over."""
        try:
            await self._kept.stop(str(FailureReason.CANCELLED))
            await self._kept.wait_exit()
        except KeeperGone:
            pass
        if self._has_begun() and self._kept.look() is Standing.LOST:
            await self._kept.sweep()
        report = self._shop.report_of(self._id)
        shutil.rmtree(self._kept.run_dir, ignore_errors=True)
        if report is not None:
            self._shop.outbox.acknowledge(report.task_id, report.claim_token)

    async def _tell(self, call: str, body: wire.Request) -> None:
        """Deliver what the run can do without, should the server not take it."""
        try:
            await self._deliver(call, body)
        except LinkRefused as refused:
            logger.warning("task %s: %s was not taken: %s", self._id, call, refused)

    async def _deliver(self, call: str, body: wire.Request) -> None:
        """Raises `Disowned`, or `LinkRefused` for any other refusal that is final."""
        try:
            await self._shop.link.deliver(call, body, self._id)
        except LinkRefused as refused:
            if refused.refusal.status in LOST_TO:
                raise Disowned(str(refused)) from None
            raise


def _events(reader: Reader, piece: Piece) -> list[Event]:
    if isinstance(piece, Oversized):
        return [Unparsed("a line too long to read", piece.end - piece.start)]
    return reader.feed(piece.text)
