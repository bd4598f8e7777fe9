"""An agent's stdin in a simulated world: the rules of `daemon/stdin.py`, and a pipe in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, final

import trio

from understudy.daemon.control import Refused
from understudy.daemon.rundir import FRAMES
from understudy.daemon.stdin import UNREAD_MAX

PIPE_MAX: Final = 65_536


@final
class SimulatedStdin:
    """The keeper's end."""

    def __init__(self, run_dir: Path) -> None:
        self._log = run_dir / FRAMES
        self._log.touch(0o600)
        self._unread = bytearray()
        self._closing = False
        self.pipe = AgentsEnd(self)
        self.next_number = 0
        self.is_open = True

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
        self._send(frame, None)

    def close_when_read(self) -> None:
        self._closing = True
        self.flush()

    def close(self) -> None:
        self.is_open = False
        self._unread.clear()
        self.pipe.end()

    def flush(self) -> None:
        if self.is_open:
            room = PIPE_MAX - len(self.pipe.unread)
            self.pipe.put(self._unread[:room])
            del self._unread[:room]
            if self._closing and not self._unread:
                self.close()

    def _send(self, frame: str, number: int | None) -> None:
        if self._closing or not self.is_open:
            raise Refused("stdin is closed")
        data = frame.encode()
        if len(self._unread) + len(data) > UNREAD_MAX:
            raise Refused(f"the agent leaves {len(self._unread)} bytes unread")
        self._log_frame(frame, number)
        self._unread += data
        self.flush()

    def _log_frame(self, frame: str, number: int | None) -> None:
        try:
            with self._log.open("a") as log:
                log.write(json.dumps({"n": number, "frame": frame}) + "\n")
        except OSError as error:
            raise Refused(f"{FRAMES}: {error}") from error


@final
class AgentsEnd:
    def __init__(self, keepers_end: SimulatedStdin) -> None:
        self._keepers_end = keepers_end
        self._changed = trio.Event()
        self._is_ended = False
        self.unread = bytearray()

    def put(self, data: bytearray) -> None:
        self.unread += data
        self._tell()

    def end(self) -> None:
        """What is in the pipe can still be read."""
        self._is_ended = True
        self._tell()

    async def read_line(self) -> bytes:
        """What there is where no newline comes; empty at the end."""
        while b"\n" not in self.unread and len(self.unread) < PIPE_MAX and not self._is_ended:
            await self._changed.wait()
        size = self.unread.find(b"\n") + 1 or len(self.unread)
        line = bytes(self.unread[:size])
        del self.unread[:size]
        self._keepers_end.flush()
        return line

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
