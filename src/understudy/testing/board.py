"""A workspace with one machine and one agent, made through the store: where tests begin."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from understudy.core.records import Agent, Issue, Runtime, Task
from understudy.store import agents, claims, issues, people, runtimes
from understudy.store.database import Database
from understudy.store.issues import Assignment
from understudy.wire.board import CreateAgent, CreateIssue

PROVIDER = "scripted"


@dataclass(frozen=True)
class Claim:
    """A task with the lease that was just taken on it."""

    task: Task
    claim_token: UUID | None


@dataclass(frozen=True)
class Board:
    database: Database
    user_id: UUID
    workspace_id: UUID
    runtime_id: UUID
    nia: Agent

    @classmethod
    async def set_up(cls, database: Database) -> Board:
        user, workspace = await people.first_user(database, name="Ada", email="ada@example.org")
        first = await _register(database, workspace.id, "first-daemon")
        nia = await agents.create(
            database, workspace.id, CreateAgent(name="Nia", provider=PROVIDER)
        )
        return cls(database, user.id, workspace.id, first.id, nia)

    def on(self, database: Database) -> Board:
        return replace(self, database=database)

    async def runtime(self, daemon_id: str) -> Runtime:
        return await _register(self.database, self.workspace_id, daemon_id)

    async def agent(self, name: str, **fields: Any) -> Agent:  # noqa: ANN401  # CreateAgent's
        wanted = CreateAgent(name=name, **{"provider": PROVIDER} | fields)
        return await agents.create(self.database, self.workspace_id, wanted)

    async def issue(self, title: str, **fields: Any) -> Issue:  # noqa: ANN401  # CreateIssue's
        wanted = CreateIssue(title=title, **fields)
        return await issues.create(self.database, self.workspace_id, self.user_id, wanted)

    async def assign(self, issue: Issue, agent: Agent | None = None) -> Assignment:
        chosen = agent or self.nia
        return await issues.assign(self.database, self.workspace_id, issue.id, chosen.id)

    async def claim(
        self, *, runtime_id: UUID | None = None, slots: int = 1, claim_s: float = 60.0
    ) -> list[Claim]:
        found = await claims.claim(
            self.database,
            runtime_id or self.runtime_id,
            slots=slots,
            fence="full",
            claim_s=claim_s,
        )
        return [Claim(each, each.claim_token) for each in found.tasks]

    async def dispatched(self, title: str, *, claim_s: float = 60.0) -> list[Claim]:
        """A fresh issue, assigned to Nia and claimed."""
        await self.assign(await self.issue(title))
        return await self.claim(claim_s=claim_s)


async def _register(database: Database, workspace_id: UUID, daemon_id: str) -> Runtime:
    machine = runtimes.Machine(workspace_id, daemon_id, "laptop", None)
    offer = runtimes.Offer(PROVIDER, f"{PROVIDER} (laptop)", "laptop", "1", "online", None)
    (runtime,) = (await runtimes.register(database, machine, [offer])).runtimes
    return runtime
