"""What a run is only interrupted by: it passes, and the run goes on from what is on disk."""

from __future__ import annotations

import errno
import sqlite3
from typing import Final

from understudy.daemon.hold import Unreported
from understudy.daemon.outbox import OutboxFull

AGAIN_S: Final = 10.0
TROUBLE: Final = (OSError, sqlite3.OperationalError, OutboxFull, Unreported)
FULL: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)


def passes(error: BaseException) -> bool:
    """For one of `TROUBLE`: a file that is missing will not come by itself."""
    return not isinstance(error, OSError) or error.errno in FULL
