"""A repository as the server needs it: an address that means the same elsewhere."""

from __future__ import annotations

from pathlib import Path


def as_repository(given: str | None) -> str | None:
    """A path becomes absolute; a URL, or what looks like one, stays."""
    if given is None or "://" in given or (":" in given and not given.startswith(("/", "."))):
        return given
    return str(Path(given).expanduser().absolute())
