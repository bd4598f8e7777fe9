"""What must become of a scripted agent's words: the world's own model of the `scripted` protocol.

From the same bytes as the daemon's reader, and without a look at it. What an agent has concluded
stands, however its process ends.
"""

from __future__ import annotations

import json
from typing import Any, Final, final

from understudy.core.failures import FailureReason
from understudy.testing.evidence import Run

SILENT: Final = frozenset({"session", "usage", "result"})
AS_SHELLS_TELL_SIGNALS: Final = frozenset({129, 130, 137, 143})
REASONS: Final = frozenset(FailureReason)


@final
class Said:
    """Keeps a `Run` up to date with the bytes that its agent prints."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._torn = b""

    def hear(self, data: bytes) -> None:
        """What follows the last newline counts, too: it may be the last there is."""
        before = _weight(self._torn)
        *lines, self._torn = (self._torn + data).split(b"\n")
        self._run.messages += sum(map(self._line, lines)) + _weight(self._torn) - before

    def _line(self, line: bytes) -> int:
        fields = _object(line)
        match fields.get("type"):
            case "usage":
                self._run.tokens += _tokens(fields)
            case "result" if not self._run.has_concluded:
                self._conclude(fields)
        return _weight_of(line, fields)

    def _conclude(self, fields: dict[str, Any]) -> None:
        run = self._run
        if "usage" in fields:
            run.tokens = _tokens(fields["usage"])
        run.has_refused = run.offered is not None and fields.get("reason") == "resume_refused"
        run.has_finished = not run.has_refused
        if run.has_refused:
            return
        run.output = as_stored(fields.get("output", ""))
        if fields.get("is_error"):
            told = fields.get("reason", "")
            run.reason = told if told in REASONS else FailureReason.AGENT_ERROR.value
            run.retry_after_s = fields.get("retry_after_s")


def conclude_from_status(run: Run, status: int) -> None:
    """Of an agent that has ended without a word about it, unstopped; negative: by that signal."""
    if not run.has_concluded:
        run.has_finished = True
        if status < 0 or status in AS_SHELLS_TELL_SIGNALS:
            run.reason = "agent_killed"
        else:
            run.reason = "agent_error" if status else "no_result"


def as_stored(text: str) -> str:
    """PostgreSQL takes neither NUL nor half a surrogate pair."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def _weight(line: bytes) -> int:
    """The messages it makes: a line that is no frame of the protocol is text."""
    return bool(line) and _weight_of(line, _object(line))


def _weight_of(line: bytes, fields: dict[str, Any]) -> int:
    return fields.get("type") not in SILENT if fields else bool(line.strip())


def _object(line: bytes) -> dict[str, Any]:
    if not line.lstrip().startswith(b"{"):
        return {}
    try:
        found = json.loads(line.decode("utf-8", "replace"), strict=False)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _tokens(usage: dict[str, Any]) -> int:
    tokens: int = usage.get("output_tokens", 0)
    return tokens
