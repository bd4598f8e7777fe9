"""The laws of simulated worlds: functions from evidence to what broke them.

A law is named by its function and stated by its docstring, which begins with the rules it stands
for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TypeAlias

from understudy.testing.evidence import Evidence

Check: TypeAlias = Callable[[Evidence], Iterator[str]]


@dataclass(frozen=True)
class Law:
    name: str
    rules: str
    sentence: str
    check: Check
    waits: bool
    """It speaks of the end: it holds once no task is active."""

    def broken_by(self, evidence: Evidence) -> Iterator[str]:
        """`name of the law: what broke it`."""
        is_at_rest = all(row["completed_at"] for row in evidence.tasks.values())
        if is_at_rest or not self.waits:
            yield from (f"{self.name}: {what}" for what in self.check(evidence))


def always(check: Check) -> Law:
    return _enacted(check, waits=False)


def at_rest(check: Check) -> Law:
    return _enacted(check, waits=True)


def _enacted(check: Check, *, waits: bool) -> Law:
    assert check.__doc__ is not None, check.__name__
    rules, _, sentence = " ".join(check.__doc__.split()).partition(": ")
    return Law(check.__name__.replace("_", "-"), rules, sentence, check, waits)


def enacted_in(book: ModuleType) -> list[Law]:
    return [found for found in vars(book).values() if isinstance(found, Law)]
