"""The laws of simulated worlds: functions from evidence to what broke them.

A law is named by its function and stated by its docstring, which begins with the rules it stands
for. `broken(evidence)` asks them all; `LAWS` is the table for people.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Final, TypeAlias

from understudy.testing.evidence import Evidence

Check: TypeAlias = Callable[[Evidence], Iterator[str]]
FILES: Final = (
    "laws_of_tasks", "laws_of_retries", "laws_of_limits", "laws_of_patience", "laws_of_runs",
    "laws_of_calls", "laws_of_words", "laws_of_explanations", "laws_of_rest",
)  # fmt: skip


@dataclass(frozen=True)
class Law:
    name: str
    rules: str
    sentence: str
    check: Check
    waits: bool
    """It speaks of the end: it holds once no task is active."""


_ALL: Final[dict[str, Law]] = {}


def always(check: Check) -> Check:
    return _enact(check, waits=False)


def at_rest(check: Check) -> Check:
    return _enact(check, waits=True)


def _enact(check: Check, *, waits: bool) -> Check:
    assert check.__doc__ is not None, check.__name__
    rules, _, sentence = " ".join(check.__doc__.split()).partition(": ")
    name = check.__name__.replace("_", "-")
    assert name not in _ALL, name
    _ALL[name] = Law(name, rules, sentence, check, waits)
    return check


def broken(evidence: Evidence) -> Iterator[str]:
    """`name of the law: what broke it`."""
    is_at_rest = all(row["completed_at"] for row in evidence.tasks.values())
    for law in _table().values():
        if is_at_rest or not law.waits:
            yield from (f"{law.name}: {what}" for what in law.check(evidence))


def _table() -> dict[str, Law]:
    # Here, since those files need this one.
    for name in FILES:
        import_module(f"understudy.testing.{name}")
    return _ALL


def laws() -> list[Law]:
    return [*_table().values()]


def table() -> dict[str, str]:
    """Name to sentence, with the rules behind it."""
    return {law.name: f"{law.sentence} ({law.rules})" for law in laws()}
