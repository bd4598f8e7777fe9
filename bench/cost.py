"""What a stretch of work cost, and whom."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Final, final

from bench import machine

MILLI: Final = 1000


@dataclass(frozen=True)
class Run:
    """Lifecycles a second, how long one took, and the CPU of each party per lifecycle."""

    per_s: float
    p50_ms: float
    p99_ms: float
    postgres_ms: float
    server_ms: float
    driver_ms: float

    @property
    def cpu_ms(self) -> float:
        return self.postgres_ms + self.server_ms + self.driver_ms


@final
class Bill:
    """Opened when the work begins. The driver is this process with the children it waits for."""

    def __init__(self, postmaster: int, server: int | None) -> None:
        self._postmaster = postmaster
        self._server = server
        self._began = time.perf_counter()
        self._before = self._read()

    def settle(self, took_s: Sequence[float]) -> Run:
        wall_s, count = time.perf_counter() - self._began, len(took_s)
        spent = [after - before for after, before in zip(self._read(), self._before, strict=True)]
        postgres_ms, server_ms, driver_ms = (each * MILLI / count for each in spent)
        return Run(
            per_s=count / wall_s,
            p50_ms=median(took_s) * MILLI,
            p99_ms=percentile_99(took_s) * MILLI,
            postgres_ms=postgres_ms,
            server_ms=server_ms,
            driver_ms=driver_ms,
        )

    def _read(self) -> tuple[float, float, float]:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (
            machine.family_cpu_s(self._postmaster),
            machine.cpu_s(self._server) if self._server else 0.0,
            time.process_time() + children.ru_utime + children.ru_stime,
        )


def percentile_99(values: Sequence[float]) -> float:
    return quantiles(values, n=100, method="inclusive")[98]


def typical(runs: Sequence[Run]) -> Run:
    """The median of each figure."""
    return Run(*(median(getattr(run, name) for run in runs) for name in Run.__dataclass_fields__))
