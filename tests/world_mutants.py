"""Which seed of the simulated world notices each broken guard (`make mutants`).

    python -m tests.world_mutants [--only WORD] [--seeds N] [--first S] [--json]

A mutant is a change to a copy of `src`. It lives through one seed after the other until the auditor
finds what it does not find in the same seed of the code as it is (the control), and finds it again
in a process of its own: what does not repeat itself is no proof of anything. One that hangs, dies
or cannot be imported is found, too: "the-world-holds". A run over all of them writes
docs/mutants.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from shutil import copytree
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final, final

import msgspec
import psycopg
import trio
from psycopg import sql
from rich.console import Console
from rich.table import Table
from tests.world_guards import MUTANTS, WorldMutant

from understudy.store.embedded import EmbeddedServer
from understudy.testing.postgres import throwaway_server
from understudy.testing.trial import Trial, law
from understudy.testing.worker import Worker

ROOT: Final = Path(__file__).resolve().parent.parent
TABLE: Final = ROOT / "docs" / "mutants.md"
SEEDS: Final = 200
KILLED_MIN: Final = 0.95
JOBS: Final = 2
ROUNDS: Final = (10, 50)
WHAT_MAX: Final = 300
HEAD: Final = """\
# Mutants

Written by `make mutants`: guards of the production code, each broken in a copy, and how many seeds
of the simulated world (`understudy torture`) it takes until one of the auditor's laws is violated.

"""


@dataclass(frozen=True)
class Verdict:
    """`seeds`: how many it took, or how many it survived; `law` is empty for a survivor."""

    name: str
    breaks: str
    seeds: int
    law: str = ""
    what: str = ""
    seconds: float = 0.0

    @property
    def is_killed(self) -> bool:
        return bool(self.law)


@final
class Laboratory:
    """The code as it is now, what the control violates, and a PostgreSQL for each world at a time:
    snapshots tell of all databases of a server, and histories would not repeat themselves."""

    def __init__(self, servers: Sequence[EmbeddedServer], directory: Path) -> None:
        self.directory = directory
        self.violated: dict[int, frozenset[str]] = {}
        self.ignored = 0
        self.flukes: list[str] = []
        """Violations that did not come again."""
        self._idle = [*servers]
        self._names = count(1)
        self._busy = trio.Lock()
        self.source = copytree(ROOT / "src", directory / "src")

    @asynccontextmanager
    async def open_control(self) -> AsyncIterator[None]:
        async with self.open_worker(self.source) as self._control:
            yield

    @asynccontextmanager
    async def open_worker(self, source: Path) -> AsyncIterator[Worker]:
        """With a database of its own, since its schema may be, too."""
        number, server = next(self._names), self._idle.pop()
        name = f"world_{number}"
        await trio.to_thread.run_sync(server.ensure_database, name)
        stderr = self.directory / f"worker-{number}"
        worker = Worker(server.dsn(name), 0, stderr=stderr, source=source)
        try:
            yield worker
        finally:
            await worker.aclose()
            await trio.to_thread.run_sync(_drop, server, name)
            self._idle.append(server)

    async def laws_violated(self, seed: int) -> frozenset[str]:
        """By the code as it is."""
        async with self._busy:
            if seed not in self.violated:
                outcome = await self._control.conduct(Trial(seed=seed))
                self.violated[seed] = frozenset(map(named, outcome.violations))
        return self.violated[seed]

    async def judge(
        self, mutant: WorldMutant, seeds: Sequence[int], before: Verdict | None
    ) -> Verdict:
        """Behind the seeds that it has survived before."""
        began = time.monotonic()
        survived, spent_s = (before.seeds, before.seconds) if before else (0, 0.0)
        with TemporaryDirectory(prefix="mutant-", dir=self.directory) as directory:
            source = copytree(self.source, Path(directory) / "src")
            mutant.apply(source / "understudy")
            async with self.open_worker(source) as worker:
                tried, what = await self._first_news(worker, seeds[survived:])
        noticed = named(what) if what else ""
        took_s = round(spent_s + time.monotonic() - began, 1)
        tried += survived
        return Verdict(mutant.name, mutant.breaks, tried, noticed, what[:WHAT_MAX], took_s)

    async def _first_news(self, worker: Worker, seeds: Sequence[int]) -> tuple[int, str]:
        """How many seeds it took, and the first violation; none is empty."""
        for tried, seed in enumerate(seeds, start=1):
            outcome = await worker.conduct(Trial(seed=seed))
            for what in await self._news(seed, outcome.violations):
                if await self._comes_again(worker, seed, named(what)):
                    return tried, what
                self.flukes.append(f"seed {seed}: {what[:WHAT_MAX]}")
        return len(seeds), ""

    async def _comes_again(self, worker: Worker, seed: int, noticed: str) -> bool:
        await worker.aclose()
        again = await worker.conduct(Trial(seed=seed))
        return noticed in map(named, again.violations)

    async def _news(self, seed: int, violations: Sequence[str]) -> list[str]:
        if not violations:
            return []
        known = await self.laws_violated(seed)
        self.ignored += len(set(map(named, violations)) & known)
        news = {named(each): each for each in reversed(violations) if named(each) not in known}
        return [*reversed(news.values())]  # The first of each law.


def _drop(server: EmbeddedServer, name: str) -> None:
    drop = sql.SQL("drop database {} with (force)").format(sql.Identifier(name))
    with psycopg.connect(server.dsn("postgres"), autocommit=True) as connection:
        connection.execute(drop)


def named(violation: str) -> str:
    """The law that was broken; a world that ends badly broke the first of all."""
    if violation.startswith("the world"):
        return "the-world-holds"
    return law(violation)


async def judge_all(
    laboratory: Laboratory, mutants: Sequence[WorldMutant], seeds: Sequence[int]
) -> list[Verdict]:
    """Who survives some seeds is given more; in the end the control lives through all."""
    verdicts: dict[str, Verdict] = {}
    jobs = _in_rounds(laboratory, mutants, seeds, verdicts)

    async def work() -> None:
        for job in jobs:
            await job()

    async with laboratory.open_control(), trio.open_nursery() as nursery:
        for _ in range(JOBS):
            nursery.start_soon(work)
    return [verdicts[mutant.name] for mutant in mutants]


def _in_rounds(
    laboratory: Laboratory,
    mutants: Sequence[WorldMutant],
    seeds: Sequence[int],
    verdicts: dict[str, Verdict],
) -> Iterator[Callable[[], Awaitable[object]]]:
    async def judge(mutant: WorldMutant, up_to: int) -> None:
        before = verdicts.get(mutant.name)
        verdict = await laboratory.judge(mutant, seeds[:up_to], before)
        verdicts[mutant.name] = verdict
        sys.stderr.write(line(verdict) + "\n")

    for up_to in sorted({*(each for each in ROUNDS if each < len(seeds)), len(seeds)}):
        for mutant in mutants:
            before = verdicts.get(mutant.name)
            if before is None or (not before.is_killed and before.seeds < up_to):
                yield partial(judge, mutant, up_to)
    for seed in seeds:
        yield partial(laboratory.laws_violated, seed)


def line(verdict: Verdict) -> str:
    fate = f"killed by {verdict.seeds}" if verdict.is_killed else f"SURVIVED {verdict.seeds}"
    return f"{verdict.name:44} {fate:14} {verdict.seconds:6.0f} s  {verdict.what[:110]}"


@dataclass(frozen=True)
class Summary:
    mutants: int
    killed: int
    median_seeds: float | None
    seeds: int
    control_violations: dict[int, list[str]]
    ignored: int
    """Violations of mutants that the control has in the same seed."""
    flukes: list[str]
    """Those that did not come again: worlds are to be deterministic, so there should be none."""

    @property
    def share(self) -> float:
        return self.killed / self.mutants

    def __str__(self) -> str:
        violated = sum(map(len, self.control_violations.values()))
        return (
            f"{self.killed} of {self.mutants} mutants killed ({self.share:.0%}) within "
            f"{self.seeds} seeds, median {self.median_seeds:g}; the control violates {violated} "
            f"laws in {len(self.control_violations)} seeds, for which {self.ignored} violations "
            f"were ignored; {len(self.flukes)} others did not come again, and did not count"
        )


def summary(verdicts: Sequence[Verdict], laboratory: Laboratory, seeds: int) -> Summary:
    killed = [verdict.seeds for verdict in verdicts if verdict.is_killed]
    unclean = {seed: sorted(laws) for seed, laws in sorted(laboratory.violated.items()) if laws}
    needed = median(killed) if killed else 0
    ignored, flukes = laboratory.ignored, laboratory.flukes
    return Summary(len(verdicts), len(killed), needed, seeds, unclean, ignored, flukes)


def rich_table(verdicts: Sequence[Verdict]) -> Table:
    table = Table("mutant", "what is broken", "seeds", "law", "s")
    for each in verdicts:
        fate = str(each.seeds) if each.is_killed else f"[red]> {each.seeds}"
        table.add_row(each.name, each.breaks, fate, each.law, f"{each.seconds:.0f}")
    return table


def markdown(verdicts: Sequence[Verdict], told: Summary) -> Iterator[str]:
    yield HEAD
    yield f"{told}.\n\n| mutant | what is broken | seeds | law |\n| --- | --- | --- | --- |\n"
    for each in verdicts:
        fate = each.seeds if each.is_killed else f"> {each.seeds}"
        yield f"| {each.name} | {each.breaks} | {fate} | {each.law or 'nothing'} |\n"


async def run(options: argparse.Namespace) -> int:
    mutants = [mutant for mutant in MUTANTS if options.only in mutant.name]
    seeds = range(options.first, options.first + options.seeds)
    with ExitStack() as stack:
        directory = stack.enter_context(TemporaryDirectory(prefix="understudy-"))
        servers = [stack.enter_context(throwaway_server()) for _ in range(JOBS + 1)]
        laboratory = Laboratory(servers, Path(directory))
        verdicts = await judge_all(laboratory, mutants, seeds)
    told = summary(verdicts, laboratory, len(seeds))
    Console(stderr=True).print(rich_table(verdicts))
    if len(mutants) == len(MUTANTS):
        TABLE.write_text("".join(markdown(verdicts, told)))
    if options.json:
        whole = asdict(told) | {"mutants": [asdict(verdict) for verdict in verdicts]}
        sys.stdout.write(msgspec.json.encode(whole).decode() + "\n")
    else:
        sys.stdout.write(f"{told}\n")
    return 0 if told.share >= KILLED_MIN else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="mutants whose name has this in it")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--json", action="store_true", help="the last line is one object")
    options = parser.parse_args()
    if not any(options.only in mutant.name for mutant in MUTANTS):
        parser.error(f"no mutant has {options.only!r} in its name")
    return trio.run(run, options)


if __name__ == "__main__":
    sys.exit(main())
