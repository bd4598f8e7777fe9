"""Where log lines go, and what never reaches them."""

from __future__ import annotations

import io
import logging
import os
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import final

from understudy.core.secrets import Secrets

FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
FILE_MAX = 10 * 1024 * 1024


@final
class Redacting(logging.Formatter):
    """The last to touch a line, its traceback too, whoever wrote it (R9.5)."""

    def __init__(self, secrets: Secrets) -> None:
        super().__init__(FORMAT)
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        return self._secrets.hide(super().format(record))


@final
class PrivateFile(RotatingFileHandler):
    """Each file it opens is its owner's alone to read."""

    def _open(self) -> io.TextIOWrapper:
        file = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        return io.TextIOWrapper(os.fdopen(file, "ab"), encoding="utf-8", errors="replace")


def log_to_stderr(level: str) -> None:
    _log(logging.StreamHandler(), level, Secrets())


def log_to_file(path: Path) -> Secrets:
    """Two files of 10 MiB. What is added to the answer is hidden in them."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    secrets = Secrets()
    _log(PrivateFile(path, maxBytes=FILE_MAX, backupCount=1), "INFO", secrets)
    return secrets


def _log(handler: logging.Handler, level: str, secrets: Secrets) -> None:
    handler.setFormatter(Redacting(secrets))
    logging.basicConfig(level=level, handlers=[handler])
    for chatty in ("httpx2", "httpcore2", "trio-websocket"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
