"""The end of a run, judged and put into words for the server (R5.11, R6.3, R6.8)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from understudy.core.failures import FailureReason
from understudy.daemon import rundir
from understudy.daemon.backends.backend import Completed, Exit, Failed, ResumeRefused, Verdict
from understudy.daemon.changes import Changes
from understudy.daemon.kept import Kept
from understudy.daemon.outbox import Report
from understudy.daemon.record import RunOrder
from understudy.daemon.rundir import Standing, Why
from understudy.wire.daemon import ClaimedTask, Complete, Fail, Stopped

STDERR_TAIL: Final = 4096
OUTPUT_MAX: Final = 1_000_000
DEGRADED_MAX: Final = 4_000
LEFT_MAX: Final = 20
LEFT_CHARS_MAX: Final = 100
RETRY_AFTER_S_MAX: Final = 366.0 * 86400

Body = Complete | Fail | Stopped
KINDS: Final[dict[str, type[Body]]] = {"complete": Complete, "fail": Fail, "stopped": Stopped}


def exit_of(kept: Kept) -> Exit:
    """How the program ended, from the keeper's record, or that the keeper was lost."""
    if kept.look() is not Standing.OVER:
        return Exit(why=str(FailureReason.KEEPER_LOST))
    end = kept.exit()
    why, _, told = end.why.partition(": ")  # As `watchdog.Stall` puts it.
    if why == Why.SPOOL_FULL:
        told = f"it had printed {(end.out_bytes + end.err_bytes) >> 20} MiB"
    said = end.error or told
    return Exit(why=why, code=end.code, signal=end.signal, error=said, left=tuple(end.left))


def stderr_tail(run_dir: Path) -> str:
    try:
        with (run_dir / rundir.ERR).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - STDERR_TAIL))
            return file.read().decode("utf-8", "replace").replace("\0", "")
    except FileNotFoundError:
        return ""


def judged(
    order: RunOrder,
    verdict: Verdict,
    end: Exit,
    *,
    session_id: str | None,
    changes: Changes | None,
    now: float,
) -> Report:
    """What goes into the outbox. `now`: seconds since 1970, as the provider counts them."""
    task, token, work_dir = order.task, order.task.claim_token, order.spec.work_dir
    match verdict:
        case Completed(output):
            complete = Complete(
                claim_token=token,
                output=output[:OUTPUT_MAX],
                branch_name=order.branch,
                changes=None if changes is None else msgspec.to_builtins(changes),
                session_id=session_id,
                work_dir=work_dir,
            )
            return _report(task, "complete", complete)
        case Failed(reason=FailureReason.CANCELLED) if end.why == FailureReason.CANCELLED:
            return stopped(task, end.left)
        case Failed(reason=reason, error=error, is_session_safe=is_safe):
            fail = Fail(
                claim_token=token,
                error=error[:OUTPUT_MAX],
                failure_reason=reason,
                session_id=session_id if is_safe else None,
                work_dir=work_dir,
                retry_after_s=_retry_after_s(verdict, now),
            )
            return _report(task, "fail", fail)
        case ResumeRefused(session_id=refused, error=error):
            # After a fresh start no session was resumed: whoever says this cannot be believed.
            fail = Fail(
                claim_token=token,
                error=error[:OUTPUT_MAX],
                failure_reason=FailureReason.AGENT_ERROR,
                refused_session_id=refused,
            )
            return _report(task, "fail", fail)


def _retry_after_s(failed: Failed, now: float) -> float | None:
    """R5.2: what the provider asks for, or the time until its quota returns."""
    told_s = failed.retry_after_s if failed.resets_at is None else failed.resets_at - now
    return None if told_s is None else min(max(0.0, told_s), RETRY_AFTER_S_MAX)


def failed(task: ClaimedTask, reason: FailureReason, error: str) -> Report:
    token = task.claim_token
    fail = Fail(claim_token=token, error=error[:OUTPUT_MAX], failure_reason=reason)
    return _report(task, "fail", fail)


def stopped(task: ClaimedTask, left: Sequence[str] = ()) -> Report:
    """Its process tree is gone, as the server asked for (R7.1), but for what is `left`."""
    named = [name[:LEFT_CHARS_MAX] for name in left[:LEFT_MAX]]
    return _report(task, "stopped", Stopped(claim_token=task.claim_token, left=named))


def body_of(report: Report) -> Body:
    body: Body = msgspec.json.decode(report.payload, type=KINDS[report.kind])
    return body


def forms(report: Report) -> Iterator[tuple[str, Body]]:
    """The verdict, and what to say should the server refuse it for good: less and less (R6.3)."""
    body = body_of(report)
    yield report.kind, body
    match body:
        case Complete(claim_token=token):
            yield report.kind, degraded(body)
            error = "the server refused the result of this run, which had succeeded"
            yield "fail", Fail(claim_token=token, error=error)
        case Fail():
            yield report.kind, degraded(body)
        case Stopped(claim_token=token):
            cancelled = FailureReason.CANCELLED
            yield "fail", Fail(claim_token=token, error="stopped", failure_reason=cancelled)


def degraded(body: Complete | Fail) -> Complete | Fail:
    """A form of the same verdict that nothing can object to (R6.8)."""
    if isinstance(body, Complete):
        plain = body.output.encode("ascii", "replace").decode()[:DEGRADED_MAX]
        return Complete(claim_token=body.claim_token, output=plain)
    plain = body.error.encode("ascii", "replace").decode()[:DEGRADED_MAX]
    return Fail(claim_token=body.claim_token, error=plain, failure_reason=FailureReason.UNKNOWN)


def _report(task: ClaimedTask, kind: str, body: Body) -> Report:
    return Report(str(task.id), str(task.claim_token), kind, msgspec.json.encode(body))
