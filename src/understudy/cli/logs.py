"""Where log lines go."""

from __future__ import annotations

import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path

FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
FILE_MAX = 10 * 1024 * 1024


def log_to_stderr(level: str) -> None:
    logging.basicConfig(level=level, format=FORMAT)
    _quieten()


def log_to_file(path: Path) -> None:
    """Two files of 10 MiB."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handler = RotatingFileHandler(path, maxBytes=FILE_MAX, backupCount=1)
    handler.setFormatter(logging.Formatter(FORMAT))
    logging.basicConfig(level="INFO", handlers=[handler])
    _quieten()


def _quieten() -> None:
    for chatty in ("httpx2", "httpcore2", "trio-websocket"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
