"""Of a long history, what a person reads first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

from understudy.testing.trial import Outcome

LAST_LINES: Final = 25
LINES_MAX: Final = 60
WIDTH: Final = 180
_ID: Final = re.compile(r"\b([0-9a-f]{8})-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")


def excerpt(outcome: Outcome) -> Iterator[str]:
    """The end, the faults, and the lines about whatever the violations name."""
    subjects = {match[0] for violation in outcome.violations for match in _ID.finditer(violation)}
    end = len(outcome.log) - LAST_LINES
    told = [
        number
        for number, line in enumerate(outcome.log)
        if number >= end or is_fault(line, outcome.faults) or any(map(line.__contains__, subjects))
    ]
    told = [-1, *told[-LINES_MAX:]]
    for before, number in pairwise(told):
        if (left_out := number - before - 1) > 0:
            yield f"      … {left_out} lines"
        yield marked(outcome.log[number], outcome.faults)


def marked(line: str, faults: Sequence[str]) -> str:
    return f"{'!!' if is_fault(line, faults) else '  '} {short(line)}"


def short(line: str) -> str:
    """Ids cut to what tells them apart, and no more than fits a wide terminal."""
    line = _ID.sub(r"\1", line)
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…"


def is_fault(line: str, faults: Sequence[str]) -> bool:
    return "#" in line and any(re.search(rf"{re.escape(name)}(?!\d)", line) for name in faults)
