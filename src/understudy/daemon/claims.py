"""Who may use a directory: an exclusive lock on a file beside it.

A claim belongs to open files, not to a process. The daemon takes it, the keeper inherits the
descriptors, and the directory stays claimed until the last of the two has gone, however it went.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final, final

MODE: Final = 0o600


@final
class Claim:
    """To let a child hold it as well: `pass_fds=claim.descriptors`."""

    def __init__(self, *descriptors: int) -> None:
        self.descriptors = descriptors

    def absorb(self, other: Claim) -> None:
        self.descriptors, other.descriptors = self.descriptors + other.descriptors, ()

    def close(self) -> None:
        """Let go of our hold; a child's stays."""
        descriptors, self.descriptors = self.descriptors, ()
        for descriptor in descriptors:
            os.close(descriptor)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def claim_nowait(directory: Path) -> Claim | None:
    """None when somebody alive holds it."""
    while (claim := _claim(directory)) is not None:
        if _is_at(_lock(directory), claim):
            return claim
        claim.close()  # `forget` came between: whoever asks next would lock another file.
    return None


def forget(directory: Path, claim: Claim) -> None:
    """Remove the lock file of a directory that is gone, and let go of it."""
    with claim:
        _lock(directory).unlink(missing_ok=True)


def _lock(directory: Path) -> Path:
    return directory.with_name(directory.name + ".lock")


def _is_at(lock: Path, claim: Claim) -> bool:
    try:
        return os.path.samestat(lock.stat(), os.fstat(claim.descriptors[0]))
    except FileNotFoundError:
        return False


def _claim(directory: Path) -> Claim | None:
    claim = Claim(os.open(_lock(directory), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, MODE))
    try:
        fcntl.flock(claim.descriptors[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        claim.close()
        return None
    except BaseException:
        claim.close()
        raise
    return claim
