"""The agent's stdin: numbered frames, written down before they are sent, never waited for.

Run in the keeper, therefore standard library only.
"""

from __future__ import annotations

import json
import os
from typing import Final

from understudy.daemon.control import Refused
from understudy.daemon.rundir import FRAMES

UNREAD_MAX: Final = 64 << 20


class Stdin:
    """The number makes a write idempotent: who does not know whether it came sends it again."""

    def __init__(self) -> None:
        self.read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._log = os.open(FRAMES, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.next_number = 0
        self.is_open = True
        self._unread = bytearray()
        self._closing = False

    def write(self, number: int, frame: str) -> None:
        if number < self.next_number:
            return
        if number > self.next_number:
            raise Refused(f"frame {number} leaves a gap: the next is {self.next_number}")
        self.append(frame)

    def append(self, frame: str) -> None:
        self._send(frame, self.next_number)
        self.next_number += 1

    def interject(self, frame: str) -> None:
        """Beside the numbered frames: an interrupt must not take the number of one to come."""
        self._send(frame, None)

    def _send(self, frame: str, number: int | None) -> None:
        if self._closing or not self.is_open:
            raise Refused("stdin is closed")
        data = frame.encode()
        if len(self._unread) + len(data) > UNREAD_MAX:
            raise Refused(f"the agent leaves {len(self._unread)} bytes unread")
        self._log_frame(frame, number)
        self._unread += data
        self.flush()

    def close_when_read(self) -> None:
        self._closing = True
        self.flush()

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self._unread.clear()
            os.close(self._write_end)

    def waiting_end(self) -> list[int]:
        """The descriptor to wait for, as select wants it: the pipe, while it is full."""
        return [self._write_end] if self.is_open and self._unread else []

    def flush(self) -> None:
        try:
            while self.is_open and self._unread:
                del self._unread[: os.write(self._write_end, self._unread)]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.close()  # The agent reads no more. Whether it still works, its stdout will say.
        if self._closing:
            self.close()

    def _log_frame(self, frame: str, number: int | None) -> None:
        """All of the record or none of it: half of one would hide the next from its reader."""
        record = json.dumps({"n": number, "frame": frame}).encode() + b"\n"
        size = os.fstat(self._log).st_size
        try:
            written = os.write(self._log, record)
        except OSError as error:
            raise Refused(f"{FRAMES}: {error}") from error
        if written < len(record):
            os.ftruncate(self._log, size)
            raise Refused(f"{FRAMES}: no space left")
