"""The end of a run, judged and put into words for the server (R5.11, R6.3, R6.8)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final
from uuid import UUID

import msgspec

from understudy.core.failures import FailureReason
from understudy.daemon import rundir
from understudy.daemon.backends.backend import Completed, Exit, Failed, ResumeRefused, Verdict
from understudy.daemon.changes import Changes
from understudy.daemon.kept import Kept
from understudy.daemon.outbox import Report
from understudy.daemon.record import RunOrder
from understudy.daemon.rundir import Standing
from understudy.wire.daemon import Complete, Fail

STDERR_TAIL: Final = 4096
OUTPUT_MAX: Final = 1_000_000
DEGRADED_MAX: Final = 4_000


def exit_of(kept: Kept) -> Exit:
    """How the program ended, from the keeper's record, or that the keeper was lost."""
    if kept.look() is not Standing.OVER:
        return Exit(why=str(FailureReason.KEEPER_LOST))
    end = kept.exit()
    return Exit(why=end.why, code=end.code, signal=end.signal, error=end.error or "")


def stderr_tail(run_dir: Path) -> str:
    try:
        with (run_dir / rundir.ERR).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - STDERR_TAIL))
            return file.read().decode("utf-8", "replace").replace("\0", "")
    except FileNotFoundError:
        return ""


def judged(
    order: RunOrder, verdict: Verdict, *, session_id: str | None, changes: Changes | None
) -> Report:
    """What goes into the outbox."""
    token = order.task.claim_token
    match verdict:
        case Completed(output):
            complete = Complete(
                claim_token=token,
                output=output[:OUTPUT_MAX],
                branch_name=order.branch,
                changes=None if changes is None else msgspec.to_builtins(changes),
                session_id=session_id,
                work_dir=order.spec.work_dir,
            )
            return _report(order.task.id, token, "complete", complete)
        case Failed(reason=reason, error=error, is_session_safe=is_safe):
            return failed(
                order.task.id,
                token,
                reason,
                error,
                session_id=session_id if is_safe else None,
                work_dir=order.spec.work_dir,
            )
        case ResumeRefused(error=error):
            return failed(order.task.id, token, FailureReason.AGENT_ERROR, error)


def failed(
    task_id: UUID,
    token: UUID | None,
    reason: FailureReason,
    error: str,
    *,
    session_id: str | None = None,
    work_dir: str | None = None,
) -> Report:
    body = Fail(
        claim_token=token,
        error=error[:OUTPUT_MAX],
        failure_reason=reason,
        session_id=session_id,
        work_dir=work_dir,
    )
    return _report(task_id, token, "fail", body)


def body_of(report: Report) -> Complete | Fail:
    if report.kind == "complete":
        return msgspec.json.decode(report.payload, type=Complete)
    return msgspec.json.decode(report.payload, type=Fail)


def forms(report: Report) -> Iterator[tuple[str, Complete | Fail]]:
    """The verdict, and what to say should the server refuse it for good: less and less (R6.3)."""
    body = body_of(report)
    yield report.kind, body
    yield report.kind, degraded(body)
    if isinstance(body, Complete):
        error = "the server refused the result of this run, which had succeeded"
        yield "fail", Fail(claim_token=body.claim_token, error=error)


def degraded(body: Complete | Fail) -> Complete | Fail:
    """A form of the same verdict that nothing can object to (R6.8)."""
    if isinstance(body, Complete):
        plain = body.output.encode("ascii", "replace").decode()[:DEGRADED_MAX]
        return Complete(claim_token=body.claim_token, output=plain)
    plain = body.error.encode("ascii", "replace").decode()[:DEGRADED_MAX]
    return Fail(claim_token=body.claim_token, error=plain, failure_reason=FailureReason.UNKNOWN)


def _report(task_id: UUID, token: UUID | None, kind: str, body: Complete | Fail) -> Report:
    return Report(str(task_id), str(token), kind, msgspec.json.encode(body))
