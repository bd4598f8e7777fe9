"""Replace a file as a whole: who reads it finds the old text or the new one."""

from __future__ import annotations

import os
from pathlib import Path

from understudy.daemon.rundir import sync_directory


def replace_file(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Durable before it returns. A symbolic link is replaced, never followed."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_directory(path.parent)
