"""The daemon's websocket (R11.2): its frames, and the daemon's book of its calls, without I/O.

Each websocket message is one JSON frame `{"type", "payload"}`. Calls carry ids and travel in
batches; answers come in any order. Dispatch is pushed under credit: the daemon states how many
tasks it has had room for on this connection so far (those it has taken and the slots that are
free), the server counts what it has pushed on it. Both only grow, so a frame that crosses another
on the way cannot be counted twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final
from uuid import UUID

import msgspec

from understudy.core.struct import Struct
from understudy.wire.daemon import CALLS, ClaimedTask, HeldTask, Ping, Request
from understudy.wire.errors import Refusal, RemoteProtocolError

CALLS_MAX: Final = 100
"""Calls or answers in one frame."""
CALLS_BYTES_MAX: Final = 4 * 1024 * 1024
"""Of their bodies together: the server takes 16 MiB, and a body alone may have 8."""


class Call(Struct, omit_defaults=True):
    id: int
    call: str
    subject: UUID | None = None
    body: msgspec.Raw = msgspec.Raw(b"{}")


class Answer(Struct, omit_defaults=True):
    """`body` where the call was done, `refusal` where it was not."""

    id: int
    body: msgspec.Raw = msgspec.Raw(b"null")
    refusal: Refusal | None = None


# From the daemon.


class Calls(Struct, tag_field="type", tag="calls"):
    payload: list[Call]


class Credit(Struct):
    total: int
    """Slots granted since this connection was opened; never falls."""
    runtime_ids: list[UUID] = []
    """The runtimes that take tasks over this connection."""


class CreditGranted(Struct, tag_field="type", tag="credit"):
    payload: Credit


class Beat(Request):
    runtime_id: str = ""


class Beating(Struct, tag_field="type", tag="daemon:heartbeat"):
    """A compatible daemon, for one runtime; it hears of tasks (`TaskAvailable`) and claims them."""

    payload: Beat


# From the server.


class Beaten(Struct):
    runtime_id: str
    status: str = "ok"
    runtime_gone: bool = False
    server_capabilities: list[str] = []


class BeatHeard(Struct, tag_field="type", tag="daemon:heartbeat_ack"):
    payload: Beaten


class Available(Struct, omit_defaults=True):
    runtime_id: UUID
    task_id: UUID | None = None


class TaskAvailable(Struct, tag_field="type", tag="daemon:task_available"):
    """A hint, for a daemon that grants no credit: claim."""

    payload: Available


class Answers(Struct, tag_field="type", tag="answers"):
    payload: list[Answer]


class TasksPushed(Struct, tag_field="type", tag="daemon:tasks"):
    payload: list[ClaimedTask]


class Cancel(Struct, tag_field="type", tag="cancel"):
    """Somebody wants these runs stopped: stop the process tree, then call `stopped` (R7.1)."""

    payload: list[HeldTask]


class RuntimesGone(Struct, tag_field="type", tag="runtime_gone"):
    """The server knows these runtimes no longer: register again (R4.7)."""

    payload: list[UUID]


class Pinged(Struct, tag_field="type", tag="ping"):
    payload: Ping


class Bye(Struct, tag_field="type", tag="bye"):
    """The server stops; the daemon connects again, with jitter."""


FromDaemon = Calls | CreditGranted | Beating
FromServer = (
    Answers | TasksPushed | Cancel | RuntimesGone | Pinged | BeatHeard | TaskAvailable | Bye
)

_encoder = msgspec.json.Encoder()
_from_daemon = msgspec.json.Decoder(FromDaemon)
_from_server = msgspec.json.Decoder(FromServer)


def encode(frame: FromDaemon | FromServer) -> str:
    return _encoder.encode(frame).decode()


def decode_from_daemon(text: str | bytes) -> FromDaemon:
    """Raise `RemoteProtocolError` for what is not a frame of a daemon."""
    try:
        frame: FromDaemon = _from_daemon.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(str(error)) from None
    return frame


def decode_from_server(text: str | bytes) -> FromServer:
    """Raise `RemoteProtocolError` for what is not a frame of a server."""
    try:
        frame: FromServer = _from_server.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(str(error)) from None
    return frame


class CallBook:
    """The daemon's side: numbers its calls, and finds each answer's call again."""

    def __init__(self) -> None:
        self._last_id = 0
        self._open: dict[int, str] = {}

    def call(self, name: str, body: Struct, subject: UUID | None = None) -> Call:
        assert name in CALLS, name
        self._last_id += 1
        self._open[self._last_id] = name
        return Call(
            id=self._last_id, call=name, subject=subject, body=msgspec.Raw(_encoder.encode(body))
        )

    def answered(self, answer: Answer) -> object:
        """The answer's body as its call's type, or the `Refusal`.

        Raises `RemoteProtocolError` for an answer to no call, or of another shape.
        """
        try:
            name = self._open.pop(answer.id)
        except KeyError:
            raise RemoteProtocolError(f"answer to no call: {answer.id}") from None
        if answer.refusal is not None:
            return answer.refusal
        try:
            return msgspec.json.decode(answer.body, type=CALLS[name].answer)
        except msgspec.MsgspecError as error:
            raise RemoteProtocolError(f"answer to {name}: {error}") from None


def batches(calls: Iterable[Call]) -> Iterator[Calls]:
    """Frames within `CALLS_MAX` and `CALLS_BYTES_MAX`, in order; a larger call travels alone."""
    batch, size = list[Call](), 0
    for call in calls:
        if batch and (len(batch) == CALLS_MAX or size + len(call.body) > CALLS_BYTES_MAX):
            yield Calls(payload=batch)
            batch, size = [], 0
        batch.append(call)
        size += len(call.body)
    if batch:
        yield Calls(payload=batch)
