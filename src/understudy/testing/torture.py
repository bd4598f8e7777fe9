"""Seed after seed on all cores: who conducts the trials, and what is counted of them.

    async with open_torture(jobs=2) as lanes:
        await torture(lanes, count(7), tally)

A lane conducts one trial at a time, in a process and a database of its own; with `is_twice` in two
of each, under different hash seeds, and histories that differ are a violation.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import final

import msgspec
import trio

from understudy.store.embedded import EmbeddedServer
from understudy.testing import excerpt
from understudy.testing.ground import temporary_home
from understudy.testing.postgres import HASTY
from understudy.testing.trial import WORLD, Conduct, Outcome, Trial, kind
from understudy.testing.worker import LIMIT_S, Worker


@final
@dataclass
class Tally:
    """Counts outcomes as they come."""

    kinds: set[str] = field(default_factory=set)
    digests: dict[int, str] = field(default_factory=dict)
    failed: list[Outcome] = field(default_factory=list)
    faults: int = 0
    virtual_s: float = 0.0

    def add(self, outcome: Outcome) -> None:
        self.digests[outcome.seed] = outcome.digest
        self.kinds |= set(map(kind, outcome.faults))
        self.faults += len(outcome.faults)
        self.virtual_s += outcome.virtual_s
        if outcome.violations:
            self.failed.append(outcome)

    @property
    def seeds(self) -> int:
        return len(self.digests)

    @property
    def violations(self) -> int:
        return sum(len(outcome.violations) for outcome in self.failed)

    @property
    def history(self) -> str:
        """One hash for all that happened, whoever finished first."""
        digests = "\n".join(self.digests[seed] for seed in sorted(self.digests))
        return hashlib.sha256(digests.encode()).hexdigest()


async def torture(
    lanes: Sequence[Conduct], trials: Iterator[Trial], tally: Tally, *, is_patient: bool = False
) -> None:
    """Until the trials are over or, unless patient, one failed; what has begun is finished."""

    async def drive(conduct: Conduct) -> None:
        while is_patient or not tally.failed:
            if (trial := next(trials, None)) is None:
                return
            tally.add(await conduct(trial))

    async with trio.open_nursery() as nursery:
        for conduct in lanes:
            nursery.start_soon(drive, conduct)


@asynccontextmanager
async def open_torture(
    jobs: int, *, is_twice: bool = False, world: str = WORLD, limit_s: float = LIMIT_S
) -> AsyncIterator[list[Conduct]]:
    """The lanes of so many processes, and a PostgreSQL of our own in memory, gone afterwards."""
    with temporary_home("understudy-torture-") as directory:
        await trio.Path(directory).chmod(0o711)  # If we are root the server is somebody else.
        async with AsyncExitStack() as stack:
            workers: list[Worker] = []
            for number in range(1, jobs + 1):
                # Snapshots tell of all databases of a server: a world has one to itself.
                postgres = directory / f"postgres-{number}"
                server = await stack.enter_async_context(_open_server(postgres))
                server.ensure_database(f"world_{number}")
                dsn, stderr = server.dsn(f"world_{number}"), directory / f"worker-{number}"
                worker = Worker(dsn, number, stderr=stderr, world=world, limit_s=limit_s)
                stack.push_async_callback(worker.aclose)
                workers.append(worker)
            yield lanes(workers, is_twice=is_twice)


def lanes(workers: Sequence[Worker], *, is_twice: bool) -> list[Conduct]:
    if is_twice:
        pairs = zip(workers[::2], workers[1::2], strict=False)
        return [partial(conduct_twice, one, other) for one, other in pairs]
    return [worker.conduct for worker in workers]


async def conduct_twice(one: Worker, other: Worker, trial: Trial) -> Outcome:
    """The same trial in two processes; histories that differ are a violation."""
    with_log = msgspec.structs.replace(trial, with_log=True)
    outcomes: list[Outcome] = []

    async def conduct(worker: Worker) -> None:
        outcomes.append(await worker.conduct(with_log))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(conduct, one)
        nursery.start_soon(conduct, other)
    return compared(*outcomes)


def compared(one: Outcome, other: Outcome) -> Outcome:
    """The one history, which ends where the other differs."""
    if one == other:
        return one
    where, length = "the logs are the same, the digests are not", len(one.log)
    for number, (line, its) in enumerate(zip_longest(one.log, other.log, fillvalue=""), start=1):
        if line != its:
            where, length = f"line {number} is {excerpt.short(its)!r} in the other", number
            break
    violation = f"two histories of one seed: {where}"
    return msgspec.structs.replace(
        one, violations=[violation, *one.violations], log=one.log[:length]
    )


async def determinism(dsns: tuple[str, str], seeds: Sequence[int]) -> list[str]:
    """What differs when each seed is run in two processes with different hash seeds."""
    tally = Tally()
    with TemporaryDirectory(prefix="understudy-torture-") as directory:
        async with AsyncExitStack() as stack:
            workers = [
                Worker(dsn, number, stderr=Path(directory, f"worker-{number}"))
                for number, dsn in enumerate(dsns, start=1)
            ]
            for worker in workers:
                stack.push_async_callback(worker.aclose)
            trials = iter([Trial(seed=seed) for seed in seeds])
            await torture(lanes(workers, is_twice=True), trials, tally, is_patient=True)
    return [violation for outcome in tally.failed for violation in outcome.violations]


@asynccontextmanager
async def _open_server(directory: Path) -> AsyncIterator[EmbeddedServer]:
    """Not interrupted while it starts, nor while it stops: both have bounds of their own."""
    server = EmbeddedServer(directory, settings=HASTY)
    await trio.to_thread.run_sync(server.start)
    try:
        yield server
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(server.stop)
