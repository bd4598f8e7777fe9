"""What is left when all is done: nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from understudy.testing.evidence import Evidence, LeftOver
from understudy.testing.laws import at_rest


def _left(evidence: Evidence, of: Callable[[LeftOver], Sequence[str]], what: str) -> Iterator[str]:
    for each in evidence.machines.left_over:
        if found := of(each):
            yield f"{each.machine} has {what}: {', '.join(found)}"


@at_rest
def no_process_is_left(evidence: Evidence) -> Iterator[str]:
    """R7.2, R8.1: no keeper, no agent and no child of one is alive."""
    yield from _left(evidence, lambda each: each.processes, "processes")


@at_rest
def no_directory_is_locked(evidence: Evidence) -> Iterator[str]:
    """R8.3: no directory of a run, and no run, is claimed by anybody."""
    yield from _left(evidence, lambda each: each.locked, "locks")


@at_rest
def no_run_is_left_on_disk(evidence: Evidence) -> Iterator[str]:
    """R6.4: no machine keeps a run that is over and reported."""
    yield from _left(evidence, lambda each: each.runs, "runs on its disk")


@at_rest
def no_slot_is_taken(evidence: Evidence) -> Iterator[str]:
    """R9.6: each daemon has all its slots back."""
    yield from _left(evidence, lambda each: each.slots, "runs in its slots")


@at_rest
def no_report_is_left(evidence: Evidence) -> Iterator[str]:
    """R6.4: no outbox holds a report that was not answered."""
    yield from _left(evidence, lambda each: each.reports, "reports")


@at_rest
def no_connection_is_left(evidence: Evidence) -> Iterator[str]:
    """R11.2: whoever has no more to say closes: no daemon and no node has idle connections."""
    yield from _left(evidence, lambda each: each.connections, "connections open")
