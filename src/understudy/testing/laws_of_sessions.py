"""What must become of sessions that agents refuse to continue (R5.10)."""

from __future__ import annotations

import math
from collections.abc import Iterator

from understudy.testing.evidence import CLOSE_S, Evidence, Run, seconds
from understudy.testing.laws import always, at_rest


@at_rest
def a_refused_session_is_retired(evidence: Evidence) -> Iterator[str]:
    """R5.10: what an agent would not continue is on record, and it is before another one begins."""
    for task_id, newest in evidence.machines.runs.items():
        due_at = math.inf
        for run in newest.line():
            if run.has_refused and _retired_at(evidence, run) > due_at + CLOSE_S:
                yield f"{task_id} was begun afresh, and {run.offered} is not retired"
            if run.has_refused and not run.is_forgotten and _retired_at(evidence, run) == math.inf:
                yield f"{task_id} would not continue {run.offered}, which is not retired"
            due_at = run.began_at


@always
def a_retired_session_is_not_offered(evidence: Evidence) -> Iterator[str]:
    """R5.10: a session that was refused is in no later claim, and who begins afresh has none."""
    for task_id, newest in evidence.machines.runs.items():
        claimed_at = seconds(evidence.tasks[task_id]["dispatched_at"])
        for run in newest.line():
            told_at = run.began_at if run.is_afresh else claimed_at
            if told_at > _retired_at(evidence, run) + CLOSE_S:
                yield f"{task_id} was offered {run.offered}, which had been refused"


def _retired_at(evidence: Evidence, run: Run) -> float:
    return evidence.retired_at.get(run.offered or "", math.inf)
