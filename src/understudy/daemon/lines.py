"""Bytes in, whole lines out, each with its place in the file. No I/O.

Shared with the keeper, therefore standard library only.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

LINE_MAX: Final = 32 << 20


class Line(NamedTuple):
    start: int
    end: int  # just after the newline: the offset to acknowledge, and to go on from
    text: bytes


class Oversized(NamedTuple):
    """A line longer than `line_max`, skipped up to and with its newline (R9.2)."""

    start: int
    end: int


class Torn(NamedTuple):
    """What followed the last newline when the writer was gone; empty where it was oversized."""

    start: int
    end: int
    text: bytes


Piece: TypeAlias = Line | Oversized | Torn


class LineSplitter:
    """Holds at most `line_max` bytes, whatever it is fed."""

    def __init__(self, offset: int = 0, line_max: int = LINE_MAX) -> None:
        self.start = offset  # of the line that is not whole yet
        self._end = offset
        self._line_max = line_max
        self._text = bytearray()

    def feed(self, data: bytes) -> list[Line | Oversized]:
        *ends, rest = data.split(b"\n")
        lines = [self._end_line(end) for end in ends]
        self._grow(rest)
        return lines

    def finish(self) -> Torn | None:
        if self._end == self.start:
            return None
        return Torn(self.start, self._end, bytes(self._text))

    def _grow(self, data: bytes) -> None:
        self._end += len(data)
        if self._end - self.start <= self._line_max:
            self._text += data
        else:
            self._text = bytearray()

    def _end_line(self, end: bytes) -> Line | Oversized:
        start, size = self.start, self._end - self.start + len(end)
        self.start = self._end = start + size + 1
        begin, self._text = self._text, bytearray()
        if size > self._line_max:
            return Oversized(start, self._end)
        return Line(start, self._end, bytes(begin + end) if begin else end)
