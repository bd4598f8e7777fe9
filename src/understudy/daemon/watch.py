"""What the keeper sees of the spool: its size, and the line that says the run is done.

`out` is looked at every 0.25 s while it grows and less and less often, down to every 2 s, while it
does not. A file cannot be waited for without inotify, which wakes per write and is Linux's alone.
Nothing hangs on the delay: the daemon reads the spool itself, `done` only starts a linger of ten
seconds, and `spool_max` guards a disk, not a quota. An idle keeper takes 4 ms of CPU in 20 s.

Run in the keeper, therefore standard library only.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from understudy.daemon.lines import Line, LineSplitter
from understudy.daemon.rundir import ERR, OUT

PAUSE_S_MIN: Final = 0.25
PAUSE_S_MAX: Final = 2.0
CHUNK: Final = 1 << 20


class Watch:
    def __init__(self, done: str | None) -> None:
        self.pause_s = PAUSE_S_MIN  # until the next look
        self.size = 0
        self._done = re.compile(done.encode()) if done else None
        self._splitter = LineSplitter()
        self._read = 0

    def look(self) -> None:
        size = sum(sizes())
        self.pause_s = PAUSE_S_MIN if size > self.size else min(2 * self.pause_s, PAUSE_S_MAX)
        self.size = size

    def finds_done(self) -> bool:
        """True once; later lines are not searched."""
        if self._done is None:
            return False
        with Path(OUT).open("rb", buffering=0) as out:
            out.seek(self._read)
            while data := out.read(CHUNK):
                self._read += len(data)
                lines = (line for line in self._splitter.feed(data) if isinstance(line, Line))
                if any(self._done.search(line.text) for line in lines):
                    self._done = None
                    return True
        return False


def sizes() -> tuple[int, int]:
    """Bytes of out and err."""
    return Path(OUT).stat().st_size, Path(ERR).stat().st_size
