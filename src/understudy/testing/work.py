"""An issue as a story knows it: asked about in the database, changed as people change it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias, final
from uuid import UUID

import trio

from understudy.store.connection import Record
from understudy.store.database import Database

Ask: TypeAlias = Callable[..., Awaitable[Any]]
"""`ask(method, path, body)`: a request of a person, answered."""
AGAIN_S: Final = 1.0
PATIENCE_S: Final = 3600.0


@final
class Work:
    """An issue that an agent was assigned to. `starts`: how often an agent process began on it."""

    def __init__(
        self, title: str, told: dict[str, Any], database: Database, ask: Ask, begun: Counter[str]
    ) -> None:
        self._title = title
        self._database = database
        self._ask = ask
        self._begun = begun
        self.key: str = told["issue"]["key"]
        self.issue_id = UUID(told["issue"]["id"])

    @property
    def starts(self) -> int:
        return self._begun[self._title]

    async def tasks(self) -> list[Record]:
        """The oldest first."""
        return await self._database.pool.fetch(
            "select * from understudy.tasks where issue_id = $1 order by created_at, attempt",
            self.issue_id,
        )

    async def newest(self) -> Record:
        return (await self.tasks())[-1]

    async def until(self, *statuses: str) -> Record:
        """That its newest task is so. Raises AssertionError after an hour."""
        with trio.move_on_after(PATIENCE_S):
            while (row := await self.newest())["status"] not in statuses:  # noqa: ASYNC110
                await trio.sleep(AGAIN_S)
            return row
        raise AssertionError(f"{self._title} is never {statuses}: {await self.outcome()}")

    async def outcome(self) -> list[str]:
        """Of each of its tasks: its status, or what it failed with."""
        return [row["failure_reason"] or row["status"] for row in await self.tasks()]

    async def comments(self) -> list[str]:
        rows = await self._database.pool.fetch(
            "select body from understudy.comments where issue_id = $1 order by created_at",
            self.issue_id,
        )
        return [row["body"] for row in rows]

    async def status(self) -> str:
        status: str = await self._database.pool.fetchval(
            "select status from understudy.issues where id = $1", self.issue_id
        )
        return status

    async def assign(self, agent: str) -> None:
        await self._ask("post", f"/api/issues/{self.key}/assign", {"agent": agent})

    async def comment(self, body: str) -> None:
        await self._ask("post", f"/api/issues/{self.key}/comments", {"body": body})

    async def cancel(self) -> None:
        await self._ask("post", f"/api/tasks/{(await self.newest())['id']}/cancel")

    async def why(self) -> str:
        said = await self._ask("get", f"/api/tasks/{(await self.newest())['id']}/why")
        return str(said["sentence"])
