"""What `understudy torture` does: runs the seeds, shortens what fails, and says how it went."""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from collections.abc import Collection, Iterator, Sequence
from itertools import count, islice, takewhile
from pathlib import Path
from random import SystemRandom
from typing import Any, Final, final

import click
import trio

from understudy.cli.client import FAILED
from understudy.cli.progress import show_progress
from understudy.cli.torture import Options
from understudy.supervisor import EXIT_INTERRUPTED
from understudy.testing import faults
from understudy.testing.auditor import LAWS
from understudy.testing.excerpt import excerpt, whole
from understudy.testing.shrinking import BOUND_S, Shrunk, shrink
from understudy.testing.torture import Tally, open_torture, torture
from understudy.testing.trial import (
    WORLD,
    Conduct,
    Outcome,
    Regression,
    Trial,
    law,
    read_regression,
)

SEEDS_BELOW: Final = 2**32
FAULTS_SHOWN: Final = 30
REGRESSIONS: Final = Path("tests", "simulation", "seeds")


@final
class Torturer:
    def __init__(self, options: Options) -> None:
        if options.kinds and options.world is None:
            check_kinds(options.kinds)
        self._options = options
        self._jobs = _jobs(options)
        self._first = _first(options)
        self._tally = Tally()
        self._shrunk: dict[int, Shrunk] = {}
        self._seconds = 0.0

    async def run(self) -> int:
        """The exit code."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as scope:
                    nursery.start_soon(_cancel_at, signals, scope)
                    await self._torture()
                nursery.cancel_scope.cancel()
        self._show_summary()
        if self._tally.failed:
            return FAILED
        return EXIT_INTERRUPTED if scope.cancelled_caught else 0

    async def _torture(self) -> None:
        options = self._options
        one = self._only_trial()
        if one is None:
            self._tell(f"from seed {self._first}; repeat with --first {self._first}")
        async with open_torture(
            self._jobs, is_twice=options.is_twice, world=options.world or WORLD
        ) as lanes:
            if one is not None and one.with_log:
                await self._replay(one, lanes[0])
            else:
                await self._run_seeds(lanes)

    async def _replay(self, trial: Trial, conduct: Conduct) -> None:
        outcome = await self._timed(conduct, trial)
        for line in whole(outcome):
            self._tell(line)
        for violation in outcome.violations:
            self._tell(f"violated: {violation}", fg="red")

    async def _timed(self, conduct: Conduct, trial: Trial) -> Outcome:
        began = time.monotonic()
        outcome = await conduct(trial)
        self._tally.add(outcome)
        self._seconds = time.monotonic() - began
        return outcome

    def _only_trial(self) -> Trial | None:
        options = self._options
        if options.replay is not None:
            return read_regression(options.replay).trial
        if options.seed is not None:
            return Trial(seed=options.seed, kinds=options.kinds, with_log=options.with_trace)
        return None

    async def _run_seeds(self, lanes: Sequence[Conduct]) -> None:
        began = time.monotonic()
        try:
            async with show_progress(self._tally, self._jobs, began):
                await torture(
                    lanes, self._trials(began), self._tally, is_patient=self._options.is_patient
                )
        finally:
            self._seconds = time.monotonic() - began
        await self._explain_failures(lanes)

    def _trials(self, began: float) -> Iterator[Trial]:
        options = self._options
        if options.seed is not None:
            return iter([Trial(seed=options.seed, kinds=options.kinds)])
        trials = (Trial(seed=seed, kinds=options.kinds) for seed in count(self._first))
        if options.minutes is None:
            return islice(trials, options.seeds)
        until = began + options.minutes * 60
        return takewhile(lambda _: time.monotonic() < until, trials)

    async def _explain_failures(self, lanes: Sequence[Conduct]) -> None:
        """One of each law: the rest would be the same bug."""
        explained: set[str] = set()
        for outcome in sorted(self._tally.failed, key=lambda outcome: outcome.seed):
            self._tell(f"\nseed {outcome.seed} violates:", fg="red")
            for violation in outcome.violations:
                self._tell(f"  {violation}")
            if (broken := law(outcome.violations[0])) not in explained:
                explained.add(broken)
                await self._shorten(outcome, lanes)

    async def _shorten(self, found: Outcome, lanes: Sequence[Conduct]) -> None:
        self._tell(f"shortening, for {BOUND_S:.0f} s at most…", dim=True)
        trial = Trial(seed=found.seed, kinds=self._options.kinds)
        shrunk = self._shrunk[found.seed] = await shrink(trial, found, lanes)
        self._show_shrunk(found, shrunk)
        path = self._write(found, shrunk)
        self._tell(f"\nreplay: understudy torture --replay {shlex.quote(str(path))}", bold=True)

    def _show_shrunk(self, found: Outcome, shrunk: Shrunk) -> None:
        outcome = shrunk.outcome
        for line in excerpt(outcome):
            self._tell(line)
        if not shrunk.repeats:
            self._tell("It did not happen again with the same faults.", fg="yellow")
        self._tell(f"{len(outcome.faults)} of {len(found.faults)} faults are left:", bold=True)
        for fault in outcome.faults[-FAULTS_SHOWN:]:
            self._tell(f"  {fault}")
        self._tell(f"and then: {outcome.violations[0]}", fg="red")
        if sentence := LAWS.get(law(outcome.violations[0])):
            self._tell(f"the law: {sentence}")

    def _write(self, found: Outcome, shrunk: Shrunk) -> Path:
        """What does not fail with its few faults is kept with all."""
        is_kept = self._options.keep and REGRESSIONS.is_dir()
        path = REGRESSIONS / f"{found.seed}.json" if is_kept else Path(f"torture-{found.seed}.json")
        only = tuple(shrunk.outcome.faults) if shrunk.repeats else None
        Regression(
            seed=found.seed, only=only, kinds=self._options.kinds, bug=found.violations[0]
        ).write(path)
        return path

    def _show_summary(self) -> None:
        tally, found = self._tally, self.findings()
        self._tell(
            f"\n{tally.seeds} seeds, {tally.violations} violations;"
            f" {found['faults']} faults of {found['kinds']} kinds;"
            f" {found['seconds']:.0f} s, in the worlds {found['virtual_seconds']:.0f} s;"
            f" {found['seeds_per_hour_per_core']:.0f} seeds per hour and core",
            fg="red" if tally.failed else "green",
            bold=True,
        )
        if self._options.as_json:
            click.echo(json.dumps(found))

    def findings(self) -> dict[str, Any]:
        tally = self._tally
        rate = tally.seeds / self._seconds * 3600 / self._jobs if self._seconds else 0.0
        return {
            "seeds": tally.seeds,
            "violations": tally.violations,
            "history": tally.history,
            "faults": tally.faults,
            "kinds": len(tally.kinds),
            "seconds": round(self._seconds, 1),
            "virtual_seconds": round(tally.virtual_s, 1),
            "seeds_per_hour_per_core": round(rate),
            "first": self._first,
            "failed": [self._failure(outcome) for outcome in tally.failed],
        }

    def _failure(self, outcome: Outcome) -> dict[str, Any]:
        shrunk = self._shrunk.get(outcome.seed)
        return {
            "seed": outcome.seed,
            "violations": outcome.violations,
            "shrunk": shrunk.outcome.faults if shrunk else outcome.faults,
        }

    def _tell(self, line: str, **style: Any) -> None:
        click.secho(line, err=self._options.as_json, **style)


def check_kinds(kinds: Collection[str]) -> None:
    if unknown := set(kinds) - faults.ALL.keys():
        known = "\n".join(f"  {kind.name:22} {kind.about}" for kind in faults.ALL.values())
        raise click.UsageError(f"no such faults: {', '.join(sorted(unknown))}. There are:\n{known}")


async def _cancel_at(signals: Any, scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()


def _jobs(options: Options) -> int:
    jobs = options.jobs or len(os.sched_getaffinity(0))
    return max(2, jobs) if options.is_twice else jobs


def _first(options: Options) -> int:
    if options.replay is not None:
        return read_regression(options.replay).seed
    for given in (options.seed, options.first):
        if given is not None:
            return given
    return SystemRandom().randrange(SEEDS_BELOW)
