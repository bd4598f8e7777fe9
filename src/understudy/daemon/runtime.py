"""Which agent CLIs are here: asked at start and again every few minutes (R9.4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import trio

from understudy.actors.actor import Actor
from understudy.daemon.probe import Found, find_clis

PROBE_EVERY_S: Final = 300.0


@dataclass(frozen=True)
class ProbeNow:
    pass


Message: TypeAlias = ProbeNow


class ProbeActor(Actor[Message]):
    """Each probe has its own deadline; none of them delays a heartbeat (R4.8)."""

    def __init__(self, search_path: str, found: Callable[[list[Found]], None]) -> None:
        self._search_path = search_path
        self._found = found

    async def start(self) -> None:
        await self._probe()

    async def receive(self, message: Message) -> None:
        await self._probe()

    async def wake(self) -> None:
        await self._probe()

    async def _probe(self) -> None:
        self._found(await find_clis(self._search_path))
        self.deadline = trio.current_time() + PROBE_EVERY_S
