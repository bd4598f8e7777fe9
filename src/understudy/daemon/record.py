"""What the daemon itself writes into a run's directory: the order, and what the server has heard.

The order is on disk before the server is told that the run starts, so a daemon that finds the
directory knows all that its predecessor knew.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Final
from uuid import UUID

import msgspec

from understudy.core.struct import Struct
from understudy.daemon.backends.backend import RunSpec, Usage
from understudy.daemon.files import replace_file
from understudy.daemon.rundir import sync_directory
from understudy.wire.daemon import ClaimedTask

FORMAT: Final = 1
ORDER: Final = "order.json"
HEARD: Final = "heard"
AFRESH: Final = "afresh"
"""Inside a run's directory, that of the second and last keeper of a task (R5.10)."""


class UnreadableOrder(Exception):
    """It is there, and no order this version knows."""


class RunOrder(Struct):
    """A claimed task with the place that was prepared for it."""

    format: int = FORMAT
    task: ClaimedTask
    spec: RunSpec
    branch: str | None = None
    base_commit: str | None = None
    refused: str | None = None
    """The session that the CLI would not continue: this is the fresh start in its place (R5.10)."""
    seq_first: int = 0
    spent: tuple[Usage, ...] = ()
    """What the try before it has told and cost."""


def write_order(run_dir: Path, order: RunOrder) -> None:
    """Durable on return."""
    run_dir.mkdir(mode=0o700, exist_ok=True)
    sync_directory(run_dir.parent)
    replace_file(run_dir / ORDER, msgspec.json.encode(order).decode())


def read_order(run_dir: Path) -> RunOrder | None:
    """None where a daemon died before the order was there: nothing has run. Raises
    `UnreadableOrder`: something may run, and we do not know what."""
    try:
        order = msgspec.json.decode((run_dir / ORDER).read_bytes(), type=RunOrder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UnreadableOrder(f"{run_dir / ORDER}: {error}") from None
    if order.format > FORMAT:
        raise UnreadableOrder(f"{run_dir / ORDER} has format {order.format}, we know {FORMAT}")
    return order


def runs_in(runs: Path) -> dict[UUID, Path]:
    """Without what was set aside, and what others have put there."""
    found = {}
    for entry in runs.iterdir():
        with suppress(ValueError):
            found[UUID(entry.name)] = entry
    return found


def read_orders(runs: Path) -> list[RunOrder]:
    """Of what is there and can be read; a run that cannot be says so itself."""
    orders = []
    for entry in runs_in(runs).values():
        with suppress(UnreadableOrder, OSError):
            orders.append(read_order(entry))
    return [order for order in orders if order is not None]


def set_aside(run_dir: Path) -> Path:
    """Out of the way of its task, for a person to look at."""
    names = (run_dir.with_name(f"{run_dir.name}.aside-{number}") for number in count(1))
    return run_dir.rename(next(name for name in names if not name.exists()))


def remove_run(run_dir: Path) -> None:
    """The order goes first: what is left of a removal cut short is no run any more."""
    (run_dir / ORDER).unlink(missing_ok=True)
    shutil.rmtree(run_dir, ignore_errors=True)


def heard(run_dir: Path) -> int:
    """The highest message seq that the server has acknowledged; -1 where nothing is known.

    A hint, not flushed: to send a message again changes nothing (R6.9).
    """
    try:
        return int((run_dir / HEARD).read_text())
    except (FileNotFoundError, ValueError):
        return -1


def note_heard(run_dir: Path, seq: int) -> None:
    with suppress(OSError):  # A full disk, say: it is a hint.
        (run_dir / HEARD).write_text(str(seq))
