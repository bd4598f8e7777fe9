"""Which way the next connection to the server goes: over a websocket, or over HTTP.

A proxy may reject websockets, or let them open and carry nothing. An outage looks much the same,
so HTTP has to prove itself: where it does not work either, a websocket is tried next.
"""

from __future__ import annotations

from typing import Final, final

from trio_websocket import ConnectionClosed, ConnectionRejected

from understudy.config import Transport
from understudy.daemon.outcomes import LinkLost
from understudy.daemon.proxies import ProxyTrouble
from understudy.daemon.upgrade import UpgradeFailed
from understudy.wire.errors import RemoteProtocolError

REJECTED_MAX: Final = 2
"""Websockets in a row, before HTTP has its turn."""
WEBSOCKET_AGAIN_S: Final = (30.0, 300.0)
"""Over HTTP, until a websocket is tried; the last one repeats."""


@final
class Ways:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._rejected = 0

    @property
    def is_over_http(self) -> bool:
        if self._transport == "auto":
            return self._rejected >= REJECTED_MAX
        return self._transport == "http"

    @property
    def may_return(self) -> bool:
        """To a websocket, when one works again."""
        return self._transport == "auto"

    def broke(self, error: Exception, *, was_linked: bool) -> None:
        has_worked = was_linked and not self.is_over_http
        if has_worked or (self.is_over_http and not was_linked):
            self._rejected = 0
        elif not was_linked and _is_of_the_way(error):
            self._rejected += 1

    def websocket_works(self) -> None:
        self._rejected = 0


def _is_of_the_way(error: Exception) -> bool:
    """Something answers, and it is not the server: that one would say why (`LinkRefused`)."""
    return isinstance(
        error,
        ConnectionRejected | ConnectionClosed | UpgradeFailed | ProxyTrouble
        | RemoteProtocolError | LinkLost,
    )  # fmt: skip
