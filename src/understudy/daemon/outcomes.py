"""How a call to the server ends that is not done: in one of three ways, told apart by their types.

`NotSent`: nothing of it has reached the server, so it may be sent again, or something else be done.
`LinkRefused`: a definite no. `Unknown`: it was sent, and may have been done; only the same call,
sent again, finds out.
"""

from __future__ import annotations

from understudy.wire.errors import Refusal


class LinkLost(Exception):
    """The connection broke; of a call it is always `NotSent` or `Unknown`."""


class NotSent(LinkLost):
    pass


class Unknown(LinkLost):
    pass


class LinkRefused(Exception):
    """The server has said no."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.error)
        self.refusal = refusal


def unanswered(sentence: str, *, is_sent: bool) -> LinkLost:
    return Unknown(sentence) if is_sent else NotSent(sentence)
