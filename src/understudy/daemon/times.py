"""When which part of an agent's output was there: for a daemon that reads it again (R4.10).

Events bear no times, and a daemon that adopts a run reads hours of them in a second. So each
daemon notes, every half minute while there is output, how far it has read. The times are those of
`time.monotonic`, which all processes of one boot share; no run outlives a boot. What was printed
while no daemon was there is as old as the file's last change.
"""

from __future__ import annotations

from bisect import bisect_left
from contextlib import suppress
from pathlib import Path
from typing import Final, final

from understudy.daemon.machine import here
from understudy.daemon.rundir import OUT

TIMES: Final = "times"
NOTE_EVERY_S: Final = 30.0


@final
class Times:
    """`now` is always `time.monotonic()`'s; an offset is that of a byte of the output."""

    def __init__(self, run_dir: Path, now: float) -> None:
        self._path = run_dir / TIMES
        self._notes = _read(self._path, now)
        if not self._notes:
            self._append(0, now)
        out = (run_dir / OUT).stat()
        if out.st_size > self._notes[-1][0]:
            self._append(out.st_size, self._changed_at(out.st_mtime, now))

    def _changed_at(self, mtime: float, now: float) -> float:
        """A wall clock may be set, to the epoch too: what nobody saw came after what was seen."""
        age_s = here().epoch_s() - mtime  # A file's time is that of the wall clock.
        return min(max(now - age_s, self._notes[-1][1]), now)

    def began_ago_s(self, now: float) -> float:
        return now - self._notes[0][1]

    def ago_s(self, offset: int, now: float) -> float:
        """For how long at least the output has reached this far."""
        later = bisect_left(self._notes, (offset, 0.0))
        return now - self._notes[later][1] if later < len(self._notes) else 0.0

    def note(self, offset: int, now: float) -> None:
        """The output has been read this far."""
        last_offset, last_at = self._notes[-1]
        if offset > last_offset and now >= last_at + NOTE_EVERY_S:
            self._append(offset, now)

    def _append(self, offset: int, at: float) -> None:
        self._notes.append((offset, at))
        with suppress(OSError), self._path.open("a") as file:  # A full disk, say: it is a hint.
            file.write(f"{offset} {at}\n")


def _read(path: Path, now: float) -> list[tuple[int, float]]:
    """In order, whatever became of the file: a torn line is left out."""
    notes = list[tuple[int, float]]()
    with suppress(FileNotFoundError):
        for line in path.read_text(errors="replace").splitlines():
            with suppress(ValueError):
                offset, at = line.split()
                notes.append((int(offset), min(float(at), now)))
    return sorted(notes)
