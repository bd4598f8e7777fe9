"""What a simulated keeper sees of its agent's spool: told by the agent, not read from the file."""

from __future__ import annotations

import re
from typing import final

from understudy.daemon.lines import Line, LineSplitter


@final
class SimulatedWatch:
    def __init__(self, done: str | None) -> None:
        self.out_bytes = self.err_bytes = 0
        self._done = re.compile(done.encode()) if done else None
        self._splitter = LineSplitter()

    @property
    def size(self) -> int:
        return self.out_bytes + self.err_bytes

    def see(self, out: bytes, err_bytes: int) -> bool:
        """Whether it brings the line that says the run is done: True once."""
        self.out_bytes += len(out)
        self.err_bytes += err_bytes
        if self._done is None:
            return False
        lines = [piece.text for piece in self._splitter.feed(out) if isinstance(piece, Line)]
        is_done = any(map(self._done.search, lines))
        if is_done:
            self._done = None
        return is_done
