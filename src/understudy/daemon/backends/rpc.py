"""JSON-RPC 2.0, an object a line, as Codex and the Agent Client Protocol speak it.

Our requests are named by words, not numbers: there is one of each kind in a run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from understudy.daemon.backends import frames
from understudy.daemon.backends.frames import Frame

METHOD_NOT_FOUND: Final = -32601


@dataclass(frozen=True)
class Call:
    """What the program asks for or, without an `id`, tells."""

    id: str | int | None
    method: str
    params: Frame


@dataclass(frozen=True)
class Answer:
    """To a request of ours; `error` is None where it was granted."""

    id: str
    result: Frame
    error: Frame | None


Incoming: TypeAlias = Call | Answer


def decode(line: bytes) -> Incoming | None:
    frame = frames.decode(line)
    if frame is None:
        return None
    method, id_ = frame.text("method"), frame.fields.get("id")
    if method:
        asked = id_ if isinstance(id_, str | int) else None
        return Call(asked, method, frame.frame("params"))
    if isinstance(id_, str | int) and frame.fields.keys() & {"result", "error"}:
        error = frame.frame("error") if frame.fields.get("error") is not None else None
        return Answer(str(id_), frame.frame("result"), error)
    return None


def request(id_: str, method: str, params: Mapping[str, Any]) -> str:
    return _line(id=id_, method=method, params=params)


def notification(method: str, params: Mapping[str, Any]) -> str:
    return _line(method=method, params=params)


def granted(call: Call, result: Mapping[str, Any]) -> str:
    return _line(id=call.id, result=result)


def refused(call: Call) -> str:
    error = {"code": METHOD_NOT_FOUND, "message": f"{call.method}: nobody is there to do it"}
    return _line(id=call.id, error=error)


def _line(**fields: Any) -> str:  # noqa: ANN401  They are JSON.
    return json.dumps({"jsonrpc": "2.0", **fields}) + "\n"
