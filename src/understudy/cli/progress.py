"""How a torture goes, while it goes."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import click
import trio

from understudy.testing.torture import Tally

TTY_S = 0.5
LINE_S = 10.0


@asynccontextmanager
async def show_progress(tally: Tally, jobs: int, began: float) -> AsyncIterator[None]:
    """On a terminal a line that changes, else a line every 10 s; on stderr."""

    def now() -> str:
        return line(tally, jobs, time.monotonic() - began)

    async with trio.open_nursery() as nursery:
        if sys.stderr.isatty():
            from rich.console import Console

            with Console(stderr=True, highlight=False).status("starting") as status:
                nursery.start_soon(_every, TTY_S, lambda: status.update(now()))
                yield
        else:
            nursery.start_soon(_every, LINE_S, lambda: click.echo(now(), err=True))
            yield
        nursery.cancel_scope.cancel()


async def _every(seconds: float, show: Callable[[], object]) -> None:
    while True:
        await trio.sleep(seconds)
        show()


def line(tally: Tally, jobs: int, seconds: float) -> str:
    seeds = max(1, tally.seeds)
    return (
        f"{tally.seeds} seeds, {tally.seeds / seconds * 3600 / jobs:.0f}/h/core;"
        f" {tally.faults / seeds:.0f} faults a seed; time x {tally.virtual_s / seconds:.0f};"
        f" {tally.violations} violations"
    )
