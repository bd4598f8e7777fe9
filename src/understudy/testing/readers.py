"""Who follows the board of a simulated world over server-sent events (R11.4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, final

import httpx2
import trio

from understudy.testing.chance import Chance

PATIENCE_S: Final = (2.0, 5.0, 60.0)
AGAIN_S: Final = 1.0
SILENCE_S: Final = 40.0
"""The server pings after 15."""


@final
@dataclass
class Reader:
    """Loses its connection, comes back with the last id it has, to whichever node."""

    name: str
    clients: list[httpx2.AsyncClient]
    chance: Chance
    last: int
    heard: list[int] = field(default_factory=list)

    async def live(self) -> None:
        while True:
            with trio.move_on_after(self.chance.pick(f"{self.name}/patience", PATIENCE_S)):
                try:
                    await self._read(self.chance.pick(f"{self.name}/node", self.clients))
                except httpx2.HTTPError:
                    pass
            await trio.sleep(AGAIN_S)

    async def _read(self, client: httpx2.AsyncClient) -> None:
        headers = {"Last-Event-ID": str(self.last)}
        events = client.stream("GET", "/api/events", headers=headers, timeout=SILENCE_S)
        async with events as answer:
            if not answer.is_success:
                return
            async for line in answer.aiter_lines():
                if line.startswith("id: "):
                    self.last = int(line.removeprefix("id: "))
                    self.heard.append(self.last)
