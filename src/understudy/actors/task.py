"""The actor of one task: what its daemon reports and people ask, one at a time (R2.1, R3.5, R3.7).

Every report is one fenced move in the database; what this actor adds is order, and the news to
those who watch. It remembers nothing that the row does not know: a crash costs one message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias
from uuid import UUID

import msgspec
import trio

from understudy.actors.actor import Actor
from understudy.actors.mailbox import Ask
from understudy.actors.watermark import Watermark
from understudy.core.failures import reason_of
from understudy.core.leases import Leases
from understudy.core.lifecycle import TERMINAL
from understudy.store import tasks
from understudy.store.database import Database
from understudy.store.errors import DatabaseUnavailable
from understudy.store.tasks import Failure, Holder, Moved, Outcome
from understudy.wire.daemon import Complete, Fail, Messages, Progress, Session, UsageReport

IDLE_S: Final = 120.0
OVER: Final = 2**31
"""Above every message: who watches hears of the end at once."""

CHANGED: Final = frozenset({Outcome.MOVED, Outcome.REQUESTED, Outcome.KEPT})

Report: TypeAlias = Progress | Messages | Session | UsageReport | Complete | Fail


@dataclass(frozen=True)
class Renew(Ask["Moved | DatabaseUnavailable"]):
    holder: Holder


@dataclass(frozen=True)
class Start(Ask["Moved | DatabaseUnavailable"]):
    holder: Holder


@dataclass(frozen=True)
class Told(Ask["Moved | DatabaseUnavailable"]):
    """What the daemon says of its run."""

    holder: Holder
    report: Report


@dataclass(frozen=True)
class Stopped(Ask["Moved | DatabaseUnavailable"]):
    """No process of the cancelled run is left (R7.1), or only what cannot be ended."""

    holder: Holder
    left: Sequence[str] = ()


@dataclass(frozen=True)
class Cancel(Ask["Moved | DatabaseUnavailable"]):
    """A person wants the run stopped (R7.1)."""

    workspace_id: UUID
    task_id: UUID
    by: UUID


Message: TypeAlias = Renew | Start | Told | Stopped | Cancel


class TaskActor(Actor[Message]):
    """`newest` is the highest message seq; `committed` hears of each move that was made."""

    def __init__(
        self,
        database: Database,
        leases: Leases,
        newest: Watermark,
        committed: Callable[[Moved], None],
    ) -> None:
        self._database = database
        self._leases = leases
        self._newest = newest
        self._committed = committed

    async def start(self) -> None:
        self.deadline = trio.current_time() + IDLE_S

    async def receive(self, message: Message) -> None:
        try:
            moved = await self._carry_out(message)
        except DatabaseUnavailable as away:
            message.reply(away)
            return
        message.reply(moved)
        if moved.outcome in CHANGED:
            self._committed(moved)
            if moved.task is not None and moved.task.status in TERMINAL:
                self._newest.raise_to(OVER)
        self.deadline = trio.current_time() + IDLE_S
        if moved.task is None or moved.task.status in TERMINAL:
            self.stop()

    async def wake(self) -> None:
        self.stop()  # The next report finds or makes another.

    async def _carry_out(self, message: Message) -> Moved:
        match message:
            case Renew(holder=holder):
                return await tasks.renew(self._database, holder, by_s=self._leases.renew_by_s)
            case Start(holder=holder):
                return await tasks.start(self._database, holder)
            case Told(holder=holder, report=report):
                return await self._report(holder, report)
            case Stopped(holder=holder, left=left):
                return await tasks.confirm_stop(self._database, holder, left)
            case Cancel(workspace_id=workspace_id, task_id=task_id, by=by):
                return await tasks.cancel(self._database, workspace_id, task_id, by=by)

    async def _report(self, holder: Holder, report: Report) -> Moved:
        match report:
            case Messages(messages=messages):
                moved = await tasks.append_messages(self._database, holder, messages)
                if moved.outcome is Outcome.MOVED:
                    self._newest.raise_to(max((m.seq for m in messages), default=-1))
                return moved
            case Session():
                return await tasks.pin_session(
                    self._database,
                    holder,
                    session_id=report.session_id,
                    work_dir=report.work_dir,
                    refused_session=report.refused_session_id,
                )
            case UsageReport(usage=usage):
                return await tasks.report_usage(self._database, holder, usage)
            case Progress():
                progress = msgspec.to_builtins(report)
                progress.pop("claim_token", None)
                return await tasks.set_progress(self._database, holder, progress)
            case Complete():
                return await tasks.complete(
                    self._database,
                    holder,
                    _result(report),
                    session_id=report.session_id,
                    work_dir=report.work_dir,
                )
            case Fail():
                return await tasks.fail(
                    self._database,
                    holder,
                    _failure(report),
                    session_id=report.session_id,
                    work_dir=report.work_dir,
                )


def _failure(report: Fail) -> Failure:
    return Failure(
        reason_of(report.failure_reason),
        report.error,
        retry_after_s=report.retry_after_s,
        refused_session=report.refused_session_id,
    )


def _result(report: Complete) -> dict[str, object]:
    kept = ("output", "pr_url", "branch_name", "changes")
    return {name: getattr(report, name) for name in kept if getattr(report, name) is not None}
