"""One world on trial: which seed, which of its faults may strike, and what came of it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from importlib import import_module
from pathlib import Path
from typing import Final, TypeAlias, final

import msgspec

from understudy.core.struct import Struct

WORLD: Final = "understudy.testing.world"
"""A module with a `simulate`."""
LAW_WORDS: Final = 4
_CHANGING: Final = re.compile(r"""\([^)]*\)|\[[^]]*\]|'[^']*'|"[^"]*"|\S*\d\S*""")


class Trial(Struct, omit_defaults=True):
    seed: int
    only: tuple[str, ...] | None = None
    """The faults that may strike, as `site#n`; None: all."""
    kinds: tuple[str, ...] | None = None
    with_log: bool = False
    """A clean history is long and seldom read."""

    @property
    def muted(self) -> frozenset[str]:
        return frozenset() if self.only is None else AllBut(self.only)


class Outcome(Struct):
    seed: int
    violations: list[str]
    faults: list[str] = msgspec.field(default_factory=list)
    """Those that struck, in their order."""
    log: list[str] = msgspec.field(default_factory=list)
    digest: str = ""
    runs: int = 0
    virtual_s: float = 0.0


Conduct: TypeAlias = Callable[[Trial], Awaitable[Outcome]]


class Regression(Struct, omit_defaults=True):
    """A seed that found a bug, for `tests/simulation/seeds/`.

    It names the faults that were left when it was shortened, not the many that were muted, so it
    stays short and readable. What it promises: this world, with these faults, is clean. What it
    cannot promise: that the faults still meet the bug. They strike at the n-th visit of a site,
    and whoever changes the code may move the visits; then they strike elsewhere, or not at all
    (the test that runs it says how many did). The bug itself needs a test of its own.
    """

    seed: int
    only: tuple[str, ...] | None = None
    kinds: tuple[str, ...] | None = None
    bug: str
    """A sentence."""
    fixed_in: str = ""
    """The commit."""

    @property
    def trial(self) -> Trial:
        return Trial(seed=self.seed, only=self.only, kinds=self.kinds, with_log=True)

    def write(self, path: Path) -> None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self)) + b"\n")


def read_regression(path: Path) -> Regression:
    return msgspec.json.decode(path.read_bytes(), type=Regression)


@final
class AllBut(frozenset[str]):
    """Every name except these. The world asks of each fault whether it is in here."""

    def __contains__(self, name: object) -> bool:
        return not super().__contains__(name)

    def __bool__(self) -> bool:
        return True


def conduct(dsn: str, trial: Trial, *, world: str = WORLD) -> Outcome:
    simulate = import_module(world).simulate
    restricted = {} if trial.kinds is None else {"kinds": frozenset(trial.kinds)}
    story = simulate(dsn, trial.seed, muted=trial.muted, **restricted)
    return Outcome(
        seed=trial.seed,
        violations=story.violations,
        faults=story.faults,
        log=sorted(story.log, key=_at) if story.violations or trial.with_log else [],
        digest=story.digest,
        runs=story.runs,
        virtual_s=getattr(story, "virtual_s", 0.0),
    )


def _at(line: str) -> float:
    """What was noted and what the events tell are one history, by time."""
    return float(line.split(maxsplit=1)[0])


def law(violation: str) -> str:
    """What of a violation is the same in another history: its words, without ids and values."""
    name, colon, _ = violation.partition(":")
    if colon and not _CHANGING.search(name):
        return name
    return " ".join(_CHANGING.sub(" ", violation).split()[:LAW_WORDS])


def kind(fault: str) -> str:
    """`machine-1/half-open-up#3` is a `half-open-up`."""
    return fault.rpartition("#")[0].rpartition("/")[2]


def place(fault: str) -> str:
    """`machine-1>node-0@28/half-open-up#3` is at `machine-1>node-0`."""
    return fault.partition("/")[0].partition("@")[0]
