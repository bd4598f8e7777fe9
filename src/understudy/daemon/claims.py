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
    """None when somebody alive holds it. The lock file stays: to unlink it would break the lock."""
    lock = directory.with_name(directory.name + ".lock")
    claim = Claim(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, MODE))
    try:
        fcntl.flock(claim.descriptors[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        claim.close()
        return None
    except BaseException:
        claim.close()
        raise
    return claim
