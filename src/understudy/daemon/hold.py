"""What a run says to the server under its claim, and what it hears (R3.7, R6.3).

Each word may be said twice. A refusal that may pass never comes here: the link asks again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, final
from uuid import UUID

import trio

from understudy.core.records import Message, Usage
from understudy.daemon import reports
from understudy.daemon.link import Link
from understudy.daemon.outbox import Report
from understudy.daemon.outcomes import LinkLost, LinkRefused
from understudy.wire import daemon as wire

logger = logging.getLogger(__name__)

LOST_TO: Final = frozenset({404, 409})


class Disowned(Exception):
    """The server has said that this claim holds the task no more."""


class Unreported(Exception):
    """The server takes the end of this run in no form."""


@final
class Hold:
    """A claim of a task. `lost` is called once, should the server say that it holds no more."""

    def __init__(
        self, link: Link, task_id: UUID, token: UUID | None, lost: Callable[[], None]
    ) -> None:
        self._link = link
        self._id = task_id
        self._token = token
        self._lost = lost
        self._is_lost = False

    async def start(self) -> None:
        """Raises `Disowned`, or `LinkRefused`."""
        await self._deliver("start", wire.Held(claim_token=self._token))

    async def renew_forever(self, *, every_s: float) -> None:
        """Raises `Disowned`."""
        held = wire.Held(claim_token=self._token)
        while True:
            await trio.sleep(every_s)
            try:
                await self._link.call("lease", held, self._id)
            except LinkLost:
                continue
            except LinkRefused as refused:
                if refused.refusal.status in LOST_TO:
                    raise Disowned(str(refused)) from None

    async def say(self, batch: list[Message]) -> None:
        """One message that the server does not take must not cost the others."""
        try:
            await self._tell("messages", wire.Messages(claim_token=self._token, messages=batch))
        except LinkRefused as refused:
            if len(batch) == 1:
                logger.warning("task %s: message %s: %s", self._id, batch[0].seq, refused)
                return
            half = len(batch) // 2
            await self.say(batch[:half])
            await self.say(batch[half:])

    async def pin(self, session_id: str, work_dir: str) -> None:
        body = wire.Session(claim_token=self._token, session_id=session_id, work_dir=work_dir)
        try:
            await self._tell("session", body)
        except LinkRefused as refused:
            logger.warning("task %s: its session was not taken: %s", self._id, refused)

    async def retire(self, session_id: str) -> None:
        """Its CLI would not continue it: it is never to be offered again, to this task or to the
        next, so it is told even if the claim is void (R5.10)."""
        body = wire.Session(claim_token=self._token, refused_session_id=session_id)
        try:
            await self._deliver("session", body)
        except Disowned as disowned:
            logger.info("task %s: its dead session comes late: %s", self._id, disowned)
        except LinkRefused as refused:
            logger.warning("task %s: a dead session was not taken: %s", self._id, refused)

    async def bill(self, usage: list[Usage]) -> None:
        """Of a run that was cancelled too: its tokens were spent (R6.7)."""
        body = wire.UsageReport(claim_token=self._token, usage=usage)
        try:
            await self._deliver("usage", body)
        except (Disowned, LinkRefused) as refused:
            logger.warning("task %s: its usage was not taken: %s", self._id, refused)

    async def report(self, report: Report) -> None:
        """Until it is acknowledged, whatever that takes (R6.4). Raises `Unreported`."""
        for kind, body in reports.forms(report):
            try:
                await self._deliver(kind, body)
            except Disowned as disowned:
                logger.warning("task %s: its end comes too late: %s", self._id, disowned)
            except LinkRefused as refused:
                logger.warning("task %s: %s was refused: %s", self._id, kind, refused)
                continue
            return
        raise Unreported("the server takes the end of this run in no form")

    async def _tell(self, call: str, body: wire.Request) -> None:
        """What the run can do without. Once the claim is void nothing more is told."""
        if self._is_lost:
            return
        try:
            await self._deliver(call, body)
        except Disowned as disowned:
            if not self._is_lost:
                logger.warning("task %s: %s; stopping its agent", self._id, disowned)
                self._is_lost = True
                self._lost()

    async def _deliver(self, call: str, body: wire.Request) -> None:
        try:
            await self._link.deliver(call, body, self._id)
        except LinkRefused as refused:
            if refused.refusal.status in LOST_TO:
                raise Disowned(str(refused)) from None
            raise
