"""What every simulated world stands on: files in memory, and silence about what goes wrong."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

MEMORY: Final = Path("/dev/shm")  # noqa: S108  # A directory of ours in it, by mkdtemp.


@contextmanager
def temporary_home(prefix: str = "understudy-") -> Iterator[Path]:
    """A directory, in memory where that can be had."""
    memory = MEMORY if os.access(MEMORY, os.W_OK) else None
    with TemporaryDirectory(prefix=prefix, dir=memory, ignore_cleanup_errors=True) as home:
        yield Path(home)


@contextmanager
def quiet() -> Iterator[None]:
    """What production code logs of faults is no news in a world."""
    was = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(was)
