"""The people of a simulated world: they assign, comment, change their minds, cancel, run again.

They speak HTTP, and insist: what was not answered is asked again, whether it was done or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, final
from uuid import UUID

import httpx2
import trio

from understudy.core.lifecycle import TERMINAL
from understudy.core.records import Agent
from understudy.testing.auditor import Auditor
from understudy.testing.chance import Chance

T = TypeVar("T")

ISSUES: Final = 5
DEEDS: Final = 14
PAUSE_S: Final = (0.0, 0.0, 1.0, 10.0, 30.0)
DEED_S: Final = (0.0, 1.0, 5.0, 15.0, 30.0)
CROWDS: Final = (1, 2, 5, 5)
WONDERS: Final = 30
WONDER_S: Final = (0.0, 1.0, 10.0, 20.0)
AGAIN_S: Final = 2.0
PATIENCE_S: Final = 20.0
PASSING: Final = 500
POISON: Final = ("", "", "", "\x1b[2J\x07 ", "\u202e\U0001f916 ", "'); drop table tasks; -- ")


@final
@dataclass
class People:
    clients: list[httpx2.AsyncClient]
    """One for each node."""
    agents: list[Agent]
    chance: Chance
    auditor: Auditor
    issues: list[str] = field(default_factory=list)
    """Keys."""

    def __post_init__(self) -> None:
        """Whom they call in this world: where it is always the same one, many wait for him."""
        first, crowd = self._pick("first", range(len(self.agents))), self._pick("crowd", CROWDS)
        self.agents = (self.agents[first:] + self.agents[:first])[:crowd]

    async def live(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._make_issues)
            nursery.start_soon(self._meddle)
            nursery.start_soon(self._wonder)

    async def _make_issues(self) -> None:
        for number in range(ISSUES):
            await trio.sleep(self._pick("pause", PAUSE_S))
            made = await self._insist(
                "post",
                "/api/issues",
                {
                    "title": f"Issue {number}",
                    "description": self._pick("poison", POISON),
                    "priority": self._pick("priority", (0, 0, 1, 2, 3, 4)),
                },
            )
            key = made["issue"]["key"]
            self.issues.append(key)
            for _ in range(self._pick("agents", (1, 1, 2))):
                await self._assign(key, number)
                await trio.sleep(self._pick("change of mind", (0.0, 1.0, 20.0)))

    async def _meddle(self) -> None:
        deeds = (
            *[self._comment] * 4, self._assign, self._rerun, self._rerun, self._cancel,
            self._cancel_issue, self._move,
        )  # fmt: skip
        for number in range(DEEDS):
            await trio.sleep(self._pick("deed_s", DEED_S))
            if self.issues:
                await self._pick("deed", deeds)(self._pick("issue", self.issues), number)

    async def _wonder(self) -> None:
        """R10.4: whatever has not ended is explained, at any moment."""
        for number in range(WONDERS):
            await trio.sleep(self._pick("wonder", WONDER_S))
            if self.issues:
                await self._ask_why(self._pick("strange", self.issues), number)

    def _pick(self, site: str, options: Sequence[T]) -> T:
        return self.chance.pick(f"people/{site}", options)

    def _agent(self) -> Agent:
        return self._pick("agent", self.agents)

    async def _insist(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401  # JSON.
        """At least once; None for what was refused."""
        while True:
            client = self._pick("node", self.clients)
            try:
                with trio.fail_after(PATIENCE_S):
                    answer = await client.request(method, path, json=body)
            except (httpx2.HTTPError, trio.TooSlowError):
                await trio.sleep(AGAIN_S)
                continue
            if answer.is_success:
                return answer.json()
            if answer.status_code == 500:  # noqa: PLR2004
                self.auditor.note(f"{method} {path}: 500 {answer.text[:200]}")
            elif answer.status_code < PASSING and answer.status_code != 429:  # noqa: PLR2004
                self.auditor.note(f"{method} {path}: {answer.status_code} {answer.text[:100]}")
                return None
            await trio.sleep(AGAIN_S)

    # Their deeds

    async def _assign(self, key: str, _: int) -> None:
        await self._insist("post", f"/api/issues/{key}/assign", {"agent": self._agent().name})

    async def _comment(self, key: str, number: int) -> None:
        body = f"{self._pick('poison', POISON)}comment {number}"
        for _ in range(self._pick("mentions", (0, 1, 1, 2))):
            body += f" @{self._agent().name}."
        done = await self._insist("post", f"/api/issues/{key}/comments", {"body": body})
        if done is not None:
            self.auditor.machines.posted.append(done["id"])

    async def _rerun(self, key: str, _: int) -> None:
        wanted = {
            "fresh": self._pick("fresh", (True, False)),
            "after": self._pick("after", (True, False)),
        }
        asked_at = trio.current_time()
        try:
            done = await self._insist("post", f"/api/issues/{key}/rerun", wanted)
        finally:
            self.auditor.machines.reruns.append((asked_at, trio.current_time()))
        if done is not None and not wanted["after"]:
            self.auditor.machines.replacing.append(UUID(done["id"]))

    async def _cancel(self, key: str, _: int) -> None:
        if task := await self._active(key):
            await self._insist("post", f"/api/tasks/{task['id']}/cancel")

    async def _cancel_issue(self, key: str, _: int) -> None:
        await self._insist("post", f"/api/issues/{key}/cancel")

    async def _move(self, key: str, _: int) -> None:
        status = self._pick("status", ("todo", "backlog", "done", "todo"))
        await self._insist("patch", f"/api/issues/{key}", {"status": status})

    async def _ask_why(self, key: str, _: int) -> None:
        if task := await self._active(key):
            client, asked_at = self._pick("strange node", self.clients), trio.current_time()
            with suppress(httpx2.HTTPError), trio.move_on_after(PATIENCE_S):
                answer = await client.get(f"/api/tasks/{task['id']}/why")
                if answer.status_code < PASSING and answer.status_code != 429:  # noqa: PLR2004
                    said = answer.json() if answer.is_success else None
                    self.auditor.explained(task["id"], asked_at, said)

    async def _active(self, key: str) -> Any:  # noqa: ANN401  # JSON.
        shown = await self._insist("get", f"/api/issues/{key}")
        active = [each for each in shown["tasks"] if each["status"] not in TERMINAL]
        return self._pick("task", active) if active else None
