"""The people of a simulated world: they assign, comment, change their minds, cancel, run again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar, final
from uuid import UUID

import trio

from understudy.actors.mailbox import ActorGone
from understudy.actors.task import Cancel
from understudy.core.records import Agent, Issue
from understudy.store import issues, tasks
from understudy.store.errors import DatabaseUnavailable
from understudy.store.issues import Author
from understudy.store.tasks import Moved, Outcome
from understudy.testing.auditor import Auditor
from understudy.testing.chance import Chance
from understudy.testing.line import InjectedCrash
from understudy.testing.simulated_node import Node
from understudy.wire.board import CreateIssue, RerunIssue

T = TypeVar("T")

ISSUES: Final = 12
DEEDS: Final = 40
DEED_S: Final = (0.0, 1.0, 5.0, 20.0, 40.0)
PASSING: Final = (DatabaseUnavailable, InjectedCrash, ActorGone)


class NobodyThere(Exception):
    """No node is up."""


@final
@dataclass
class People:
    user_id: UUID
    workspace_id: UUID
    agents: list[Agent]
    chance: Chance
    auditor: Auditor
    nodes: Callable[[], list[Node]]
    issues: list[Issue] = field(default_factory=list)

    async def live(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._make_issues)
            nursery.start_soon(self._meddle)

    async def _make_issues(self) -> None:
        for number in range(ISSUES):
            await trio.sleep(self._pick("pause", (0.0, 0.0, 1.0, 10.0, 30.0)))
            issue = await self._insist(partial(self._create, f"Issue {number}"))
            self.issues.append(issue)
            for _ in range(self._pick("agents", (1, 1, 2))):
                await self._insist(partial(self._assign, issue, self._agent()))
                await trio.sleep(self._pick("change of mind", (0.0, 1.0, 20.0)))

    async def _meddle(self) -> None:
        for number in range(DEEDS):
            await trio.sleep(self._pick("deed_s", DEED_S))
            if self.issues:
                issue = self._pick("issue", self.issues)
                deed = self._pick("deed", (*[self._comment] * 4, self._assign_any, self._rerun,
                                           self._rerun, self._cancel, self._cancel_issue,
                                           self._move))  # fmt: skip
                await self._insist(partial(deed, issue, number))

    def _pick(self, site: str, options: Sequence[T]) -> T:
        return self.chance.pick(f"people/{site}", options)

    def _agent(self) -> Agent:
        return self._pick("agent", self.agents)

    def _node(self) -> Node:
        if not (up := self.nodes()):
            raise NobodyThere
        return self._pick("node", up)

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """At least once: an answer that was lost is no reason to stop."""
        while True:
            try:
                return await ask()
            except (NobodyThere, *PASSING):
                await trio.sleep(1)

    # Their deeds

    async def _create(self, title: str) -> Issue:
        wanted = CreateIssue(title=title)
        return await issues.create(self._node().database, self.workspace_id, self.user_id, wanted)

    async def _assign(self, issue: Issue, agent: Agent) -> None:
        node = self._node()
        done = await issues.assign(node.database, self.workspace_id, issue.id, agent.id)
        if done.task is not None and not self.chance.strikes("lost wake", 0.1):
            node.cast.committed(Moved(Outcome.MOVED, done.task))

    async def _assign_any(self, issue: Issue, _: int) -> None:
        await self._assign(issue, self._agent())

    async def _comment(self, issue: Issue, number: int) -> None:
        body = f"comment {number}"
        for _ in range(self._pick("mentions", (0, 1, 1, 2))):
            body += f" @{self._agent().name}."
        node = self._node()
        await issues.add_comment(node.database, issue, body, Author(user_id=self.user_id))
        node.cast.committed(None)

    async def _rerun(self, issue: Issue, _: int) -> None:
        node = self._node()
        wanted = RerunIssue(
            fresh=self._pick("fresh", (True, False)), after=self._pick("after", (True, False))
        )
        asked_at = trio.current_time()
        try:
            done = await issues.rerun(node.database, issue, wanted, user_id=self.user_id)
        finally:
            self.auditor.machines.reruns.append((asked_at, trio.current_time()))
        for moved in done.cancelled:
            node.cast.committed(moved)
        if done.task is not None:
            node.cast.committed(Moved(Outcome.MOVED, done.task))

    async def _cancel(self, issue: Issue, _: int) -> None:
        node = self._node()
        active = [
            row for row in await tasks.of_issue(node.database, issue.id) if row.completed_at is None
        ]
        if active:
            row = self._pick("task", active)
            await node.cast.report(row.id, partial(Cancel, self.workspace_id, row.id, self.user_id))

    async def _cancel_issue(self, issue: Issue, _: int) -> None:
        node = self._node()
        done = await tasks.cancel_issue(node.database, self.workspace_id, issue.id, by=self.user_id)
        for moved in done:
            node.cast.committed(moved)

    async def _move(self, issue: Issue, _: int) -> None:
        node = self._node()
        status = self._pick("status", ("todo", "backlog", "done", "todo"))
        await issues.set_status(node.database, self.workspace_id, issue.id, status)
        node.cast.committed(None)
