"""Refusals as they travel (R11.3), and what the other side did wrong."""

from __future__ import annotations

from typing import Final

from understudy.core.struct import Struct


class RemoteProtocolError(Exception):
    """The other side sent what no version of the protocol allows."""


class Refusal(Struct, omit_defaults=True):
    """`{"error": "<sentence>", "code": "<slug>"}`; `status` is HTTP's, for both transports."""

    error: str
    code: str
    status: int = 400
    retry_after_s: float | None = None


class Refused(Exception):
    """A request that cannot be done; carries what the asker is told."""

    def __init__(
        self, status: int, code: str, sentence: str, *, retry_after_s: float | None = None
    ) -> None:
        super().__init__(sentence)
        self.refusal: Final = Refusal(
            error=sentence, code=code, status=status, retry_after_s=retry_after_s
        )


def invalid(sentence: str) -> Refused:
    """400; the sentence names the field."""
    return Refused(400, "invalid_request", sentence)


def not_found(what: str) -> Refused:
    """404: proven absence and nothing else, because a daemon stops an agent on it (R4.6)."""
    return Refused(404, "not_found", f"{what} not found")


def fenced(sentence: str) -> Refused:
    """409: another claim holds the task, or this one has expired (R3.5)."""
    return Refused(409, "fenced", sentence)


def unavailable(sentence: str = "the database is away; ask again") -> Refused:
    """503: try again."""
    return Refused(503, "unavailable", sentence, retry_after_s=2.0)
