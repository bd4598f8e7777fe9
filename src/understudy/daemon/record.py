"""What the daemon itself writes into a run's directory: the order, and what the server has heard.

The order is on disk before the server is told that the run starts, so a daemon that finds the
directory knows all that its predecessor knew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from understudy.core.struct import Struct
from understudy.daemon.backends.backend import RunSpec
from understudy.daemon.files import replace_file
from understudy.wire.daemon import ClaimedTask

FORMAT: Final = 1
ORDER: Final = "order.json"
HEARD: Final = "heard"


class RunOrder(Struct):
    """A claimed task with the place that was prepared for it."""

    format: int = FORMAT
    task: ClaimedTask
    spec: RunSpec
    branch: str | None = None
    base_commit: str | None = None


def write_order(run_dir: Path, order: RunOrder) -> None:
    """Durable on return."""
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_file(run_dir / ORDER, msgspec.json.encode(order).decode())


def read_order(run_dir: Path) -> RunOrder | None:
    """None where a daemon died before the order was whole: nothing has run there."""
    try:
        return msgspec.json.decode((run_dir / ORDER).read_bytes(), type=RunOrder)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def heard(run_dir: Path) -> int:
    """The highest message seq that the server has acknowledged; -1 where nothing is known.

    A hint, not flushed: to send a message again changes nothing (R6.9).
    """
    try:
        return int((run_dir / HEARD).read_text())
    except (FileNotFoundError, ValueError):
        return -1


def note_heard(run_dir: Path, seq: int) -> None:
    (run_dir / HEARD).write_text(str(seq))
