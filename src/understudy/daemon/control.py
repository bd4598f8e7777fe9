"""The keeper's socket: one JSON request per line, one JSON answer per line.

It belongs to the run directory (0700) and trusts who can open it; a bad request is refused and ends
nothing. Shared with nobody, run in the keeper, therefore standard library only.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

from understudy.daemon.rundir import CONTROL

CLIENTS_MAX: Final = 32
REQUEST_MAX: Final = 64 << 20
CHUNK: Final = 1 << 16

Request: TypeAlias = dict[str, Any]
Answer: TypeAlias = dict[str, Any]


class Refused(Exception):
    """The request is understood and not granted; the message goes to who asked."""


class Control:
    """Never blocks. `answer` turns a request into an answer, or raises `Refused`."""

    def __init__(self, answer: Callable[[Request], Answer]) -> None:
        self._answer = answer
        self._unread: dict[socket.socket, bytearray] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)  # noqa: FBT003  The standard library's signature.
        Path(CONTROL).unlink(missing_ok=True)  # Of a keeper that died before anything ran.
        self._listener.bind(CONTROL)  # Relative: the 108 bytes of a socket's address never bite.
        Path(CONTROL).chmod(0o600)
        self._listener.listen(CLIENTS_MAX)

    def sockets(self) -> list[socket.socket]:
        return [self._listener, *self._unread]

    def serve(self, ready: socket.socket) -> None:
        if ready is self._listener:
            self._accept()
            return
        try:
            data = ready.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or not self._answer_lines(ready, data):
            del self._unread[ready]
            ready.close()

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # It hung up before we looked.
        if len(self._unread) >= CLIENTS_MAX:
            client.close()
            return
        client.setblocking(False)  # noqa: FBT003  The standard library's signature.
        self._unread[client] = bytearray()

    def _answer_lines(self, client: socket.socket, data: bytes) -> bool:
        """False when the client is to be dropped: it sends without end, or does not read."""
        unread = self._unread[client]
        unread += data
        *lines, rest = unread.split(b"\n") if b"\n" in data else [unread]
        self._unread[client] = rest
        try:
            for line in lines:
                client.sendall(json.dumps(self._answer_line(line)).encode() + b"\n")
        except OSError:
            return False
        return len(rest) <= REQUEST_MAX

    def _answer_line(self, line: bytearray) -> Answer:
        try:
            return {"ok": True, **self._answer(json.loads(line))}
        except Refused as refusal:
            return {"ok": False, "error": str(refusal)}
        except Exception as error:  # noqa: BLE001  Whatever a client sends, the run goes on.
            return {"ok": False, "error": repr(error)}
