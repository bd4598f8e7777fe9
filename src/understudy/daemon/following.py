"""A run that has a keeper, followed to its end: read, told, judged, billed (R6.7, R6.9, R8.1)."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import msgspec
import trio

from understudy.core.records import Message as Said
from understudy.core.records import Usage
from understudy.daemon import reports
from understudy.daemon.backends.backend import (
    Completed,
    Event,
    Reader,
    ResumeRefused,
    Session,
    Unparsed,
    Verdict,
    sums,
)
from understudy.daemon.backends.providers import BACKENDS
from understudy.daemon.changes import Changes, describe_changes, publish
from understudy.daemon.dialogue import Dialogue
from understudy.daemon.git import GitFailed
from understudy.daemon.hold import Hold
from understudy.daemon.kept import KeeperGone, KeeperRefused, Kept
from understudy.daemon.lines import Oversized, Piece
from understudy.daemon.machine import here
from understudy.daemon.orders import afresh
from understudy.daemon.record import RunOrder, heard, note_heard
from understudy.daemon.rundir import Standing
from understudy.daemon.spool import Spool
from understudy.daemon.times import Times
from understudy.daemon.transcript import Transcript
from understudy.daemon.watchdog import Watchdog
from understudy.daemon.workshop import Workshop

logger = logging.getLogger(__name__)

PING_S: Final = 60.0


async def follow(order: RunOrder, kept: Kept, hold: Hold, workshop: Workshop) -> RunOrder | None:
    """Read the spool to its end, tell the server, judge; the report is in the outbox then.

    Or there is none, because the agent has not begun: then what to start in its place (R5.10).
    """
    reader = BACKENDS[order.task.provider].reader(order.spec)
    return await _Follower(order, kept, hold, workshop, reader).follow()


@final
@dataclass
class _Follower:
    order: RunOrder
    kept: Kept
    hold: Hold
    shop: Workshop
    reader: Reader
    session_id: str | None = None

    async def follow(self) -> RunOrder | None:
        self.transcript = Transcript(
            self._send, heard(self.kept.run_dir), seq_first=self.order.seq_first
        )
        now = here().monotonic_s()
        self.times = Times(self.kept.run_dir, now)
        began_at = trio.current_time() - self.times.began_ago_s(now)
        self.watchdog = Watchdog(self.shop.limits, began_at)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ping_forever)
            nursery.start_soon(self._stop_when_stalled)
            async with trio.open_nursery() as senders:
                senders.start_soon(self.transcript.send_all)
                await self._read(senders)
                fresh = await self._judge()
                self.transcript.close()
            await self._bill()
            nursery.cancel_scope.cancel()
        return fresh

    async def _send(self, batch: list[Said]) -> None:
        await self.hold.say(batch)
        note_heard(self.kept.run_dir, batch[-1].seq)

    async def _read(self, senders: trio.Nursery) -> None:
        dialogue = Dialogue(self.kept)
        with Spool(self.kept.run_dir) as spool:
            async for pieces in spool:
                if not pieces:
                    self.watchdog.resume()
                    continue
                self.watchdog.pause()
                events = [event for piece in pieces for event in self._events(piece)]
                for event in events:
                    await dialogue.tell(event)  # First: an answer waits for no server.
                await self.transcript.add(events)
                for event in events:
                    if isinstance(event, Session) and event.is_resumable:
                        self._pin(event.id, senders)

                self.times.note(pieces[-1].end, here().monotonic_s())

    def _events(self, piece: Piece) -> list[Event]:
        if isinstance(piece, Oversized):
            events: list[Event] = [Unparsed("a line too long to read", piece.end - piece.start)]
        else:
            events = self.reader.feed(piece.text)
        at = trio.current_time() - self.times.ago_s(piece.end, here().monotonic_s())
        for event in events:
            self.watchdog.see(event, at)
        return events

    async def _stop_when_stalled(self) -> None:
        stall = await self.watchdog.wait_stall()
        logger.warning("task %s: %s; stopping its agent", self.order.task.id, stall.why)
        await self.kept.end(stall.why)

    def _pin(self, session_id: str, senders: trio.Nursery) -> None:
        if session_id != self.session_id:
            self.session_id = session_id
            senders.start_soon(self.hold.pin, session_id, self.order.spec.work_dir)

    async def _judge(self) -> RunOrder | None:
        order = self.order
        if self.kept.look() is Standing.LOST:
            await self.kept.sweep()
        end = reports.exit_of(self.kept)
        verdict = self.reader.finish(end, reports.stderr_tail(self.kept.run_dir))
        if self.shop.is_reported(order.task):
            return None  # The first verdict stands.
        if isinstance(verdict, ResumeRefused) and order.refused is None:
            logger.warning("task %s: %s; beginning afresh", order.task.id, verdict.error)
            await self.hold.retire(verdict.session_id)
            seq_first = self.transcript.seq_next
            return afresh(order, verdict, seq_first=seq_first, spent=self.reader.usage())
        changes = await self._hand_over(verdict)
        now = here().epoch_s()  # Providers say when a quota resets, not in how long.
        report = reports.judged(
            order, verdict, end, session_id=self.session_id, changes=changes, now=now
        )
        self.shop.put(report)
        logger.info("task %s ended: %s, %s", order.task.id, end.why, type(verdict).__name__.lower())
        return None

    async def _hand_over(self, verdict: Verdict) -> Changes | None:
        """Count what the run left, and put its branch where its user looks for it."""
        order, git = self.order, self.shop.repositories.git
        path = Path(order.spec.work_dir)
        if order.branch is None:
            return None
        try:
            changes = await describe_changes(git, path, order.base_commit)
            trouble = None
            if isinstance(verdict, Completed):  # Its earlier attempts may have made the commits.
                trouble = await publish(git, path, order.branch)
            if trouble:
                logger.warning("task %s: %s", order.task.id, trouble)
        except (GitFailed, OSError) as failure:  # The agent may have removed the directory.
            logger.warning("task %s: its changes cannot be counted: %s", order.task.id, failure)
            return None
        return changes

    async def _bill(self) -> None:
        """All that this task has cost here, since the server keeps one bill of it."""
        if bill := sums((*self.order.spent, *self.reader.usage())):
            await self.hold.bill(
                [msgspec.convert(each, Usage, from_attributes=True) for each in bill.values()]
            )

    async def _ping_forever(self) -> None:
        """Tell the keeper that its daemon is there (R8.2)."""
        while self.kept.look() is Standing.KEPT:
            with trio.move_on_after(PING_S), suppress(KeeperGone, KeeperRefused):
                await self.kept.ping()
            await trio.sleep(PING_S)
