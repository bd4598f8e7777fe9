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
from understudy.testing.tenants import Tenant

T = TypeVar("T")

PAUSE_S: Final = (0.0, 0.0, 1.0, 10.0, 30.0)
DEED_S: Final = (0.0, 1.0, 5.0, 15.0, 30.0)
CROWDS: Final = (1, 2, 5, 5)
PRIES: Final = 2
PRY_S: Final = (5.0, 20.0, 40.0)
WONDER_S: Final = (0.0, 1.0, 10.0, 20.0)
AGAIN_S: Final = 2.0
PATIENCE_S: Final = 20.0
PASSING: Final = 500
POISON: Final = ("", "", "", "\x1b[2J\x07 ", "\u202e\U0001f916 ", "'); drop table tasks; -- ")


@dataclass(frozen=True)
class Habits:
    """Of the people of a workspace: how much they do, and how much each of their agents may."""

    name: str
    agents: Sequence[int]
    issues: int
    deeds: int
    wonders: int


@dataclass(frozen=True)
class Door:
    """A request that makes sense in one workspace only."""

    method: str
    path: str
    body: object = None


@final
@dataclass
class People:
    tenant: Tenant
    habits: Habits
    clients: list[httpx2.AsyncClient]
    """One for each node."""
    chance: Chance
    auditor: Auditor
    issues: list[str] = field(default_factory=list)
    """Keys."""
    doors: list[Door] = field(default_factory=list)
    """What others might try."""

    def __post_init__(self) -> None:
        """Whom they call in this world: where it is always the same one, many wait for him."""
        agents = self.tenant.agents
        first, crowd = self._pick("first", range(len(agents))), self._pick("crowd", CROWDS)
        self._called = (agents[first:] + agents[:first])[:crowd]

    async def live(self, others: Sequence[Door]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._make_issues)
            nursery.start_soon(self._meddle)
            nursery.start_soon(self._wonder)
            nursery.start_soon(self._pry, others)

    async def _make_issues(self) -> None:
        for number in range(self.habits.issues):
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
            self.doors += _doors_of_issue(made["issue"]["id"])
            for _ in range(self._pick("agents", (1, 1, 2))):
                await self._assign(key, number)
                await trio.sleep(self._pick("change of mind", (0.0, 1.0, 20.0)))

    async def _meddle(self) -> None:
        deeds = (
            *[self._comment] * 4, self._assign, self._rerun, self._rerun, self._cancel,
            self._cancel_issue, self._move,
        )  # fmt: skip
        for number in range(self.habits.deeds):
            await trio.sleep(self._pick("deed_s", DEED_S))
            if self.issues:
                await self._pick("deed", deeds)(self._pick("issue", self.issues), number)

    async def _wonder(self) -> None:
        """R10.4: whatever has not ended is explained, at any moment."""
        for number in range(self.habits.wonders):
            await trio.sleep(self._pick("wonder", WONDER_S))
            if self.issues:
                await self._ask_why(self._pick("strange", self.issues), number)

    async def _pry(self, others: Sequence[Door]) -> None:
        """In what is not theirs."""
        for _ in range(PRIES):
            await trio.sleep(self._pick("pry", PRY_S))
            if others:
                await self._try(self._pick("door", others))

    def _pick(self, site: str, options: Sequence[T]) -> T:
        return self.chance.pick(f"people of {self.tenant.name}/{site}", options)

    def _agent(self) -> Agent:
        return self._pick("agent", self._called)

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
            elif _is_final(answer):
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
                if _is_final(answer):
                    said = answer.json() if answer.is_success else None
                    self.auditor.explained(task["id"], asked_at, said)

    async def _try(self, door: Door) -> None:
        client = self._pick("strange node", self.clients)
        with suppress(httpx2.HTTPError), trio.move_on_after(PATIENCE_S):
            answer = await client.request(door.method, door.path, json=door.body)
            if _is_final(answer):
                request = f"{door.method} {door.path}"
                self.auditor.machines.pried.append((request, answer.status_code))

    async def _active(self, key: str) -> Any:  # noqa: ANN401  # JSON.
        shown = await self._insist("get", f"/api/issues/{key}")
        self.auditor.machines.shown += [
            (self.tenant.board.workspace_id, UUID(each["id"]))
            for each in (shown["issue"], *shown["tasks"], *shown["comments"])
        ]
        active = [each for each in shown["tasks"] if each["status"] not in TERMINAL]
        if not active:
            return None
        task = self._pick("task", active)
        self.doors += _doors_of_task(task["id"])
        return task


def _is_final(answer: httpx2.Response) -> bool:
    return answer.status_code < PASSING and answer.status_code != 429  # noqa: PLR2004


def _doors_of_issue(issue_id: str) -> list[Door]:
    path = f"/api/issues/{issue_id}"
    return [
        Door("get", path),
        Door("patch", path, {"status": "done"}),
        Door("post", f"{path}/comments", {"body": "Who are you? @Agent 0."}),
        Door("post", f"{path}/assign", {"agent": "Agent 0"}),
        Door("post", f"{path}/rerun", {}),
        Door("post", f"{path}/cancel"),
    ]


def _doors_of_task(task_id: str) -> list[Door]:
    path = f"/api/tasks/{task_id}"
    return [
        Door("get", f"{path}/why"),
        Door("get", f"{path}/messages"),
        Door("post", f"{path}/cancel"),
    ]
