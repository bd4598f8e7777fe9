"""An agent's output, read from its file while it grows, from any offset, to the very end."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Self, final

import trio

from understudy.daemon import rundir
from understudy.daemon.lines import LINE_MAX, LineSplitter, Piece
from understudy.daemon.rundir import Standing

CHUNK: Final = 1 << 18
PAUSE_S_MIN: Final = 0.05
PAUSE_S_MAX: Final = 0.5


@final
class Spool:
    """Iterate for batches of pieces; the iteration ends when the run has and all is read.

        with Spool(run_dir) as spool:
            async for pieces in spool: ...

    `offset` is the end of a piece seen before, or 0. A batch is what one read of 256 KiB brought,
    in trio's thread: the file lies in the page cache. An empty batch says that there is no more for
    now. For runs that were born; a run that is lost ends like one that is over.
    """

    def __init__(self, run_dir: Path, offset: int = 0, *, line_max: int = LINE_MAX) -> None:
        self._run_dir = run_dir
        self._splitter = LineSplitter(offset, line_max)
        self._file = (run_dir / rundir.OUT).open("rb", buffering=0)
        self._file.seek(offset)
        self._ended = self._told_dry = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Piece]:
        if self._ended:
            raise StopAsyncIteration
        pause_s = PAUSE_S_MIN
        while True:
            # Looked at before the read: what is read after the end was written before it.
            is_over = rundir.look(self._run_dir) is not Standing.KEPT
            if data := self._file.read(CHUNK):
                pause_s, self._told_dry = PAUSE_S_MIN, False
                pieces = self._splitter.feed(data)
                await trio.lowlevel.checkpoint()
                if pieces:
                    return [*pieces]
            elif is_over:
                return self._end()
            elif not self._told_dry:
                self._told_dry = True
                return []
            else:
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_S_MAX)

    def _end(self) -> list[Piece]:
        self._ended = True
        if torn := self._splitter.finish():
            return [torn]
        raise StopAsyncIteration
