"""The live supervision tree as the rows of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from understudy.core.tree import Crash, Kind, Node, State
from understudy.store import board, runtimes
from understudy.store.database import Database

DEPTH_MAX: Final = 6
CHILDREN_MAX: Final = 50
"""A thousand idle runtimes are a number, not a thousand rows."""
BUSY_LONG_S: Final = 1.0


@dataclass(frozen=True)
class Row:
    node: Node
    name: str
    depth: int
    hidden: int
    """Children that are not shown."""

    @property
    def is_stuck(self) -> bool:
        mailbox = self.node.mailbox
        return mailbox is not None and (mailbox.busy_s or 0.0) > BUSY_LONG_S


@dataclass(frozen=True)
class TreeView:
    rows: Sequence[Row]
    services: int
    actors: int
    restarts: int
    queued: int
    last_crash: Crash | None


async def view(database: Database, workspace_id: UUID, root: Node) -> TreeView:
    return laid_out(root, await _names(database, workspace_id))


def laid_out(root: Node, names: Mapping[str, str]) -> TreeView:
    """`names` are those of actors, which the tree knows only by the id of their row."""
    nodes = list(_nodes(root))
    crashes = [node.last_crash for node in nodes if node.last_crash is not None]
    return TreeView(
        rows=list(_rows(root, 0, names)),
        services=sum(node.kind is Kind.SERVICE for node in nodes),
        actors=sum(node.kind is Kind.ACTOR for node in nodes),
        restarts=sum(node.restarts for node in nodes),
        queued=sum(node.mailbox.depth for node in nodes if node.mailbox),
        last_crash=min(crashes, key=lambda crash: crash.ago_s, default=None),
    )


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from _nodes(child)


def _rows(node: Node, depth: int, names: Mapping[str, str]) -> Iterator[Row]:
    hidden = max(0, len(node.children) - CHILDREN_MAX)
    yield Row(node, names.get(node.name) or _short(node.name), min(depth, DEPTH_MAX), hidden)
    for child in sorted(node.children, key=_trouble)[:CHILDREN_MAX] if hidden else node.children:
        yield from _rows(child, depth + 1, names)


def _trouble(node: Node) -> tuple[bool, bool, int]:
    """What deserves a look comes first where not all fit."""
    depth = node.mailbox.depth if node.mailbox else 0
    return (node.state is State.RUNNING, node.last_crash is None, -depth)


async def _names(database: Database, workspace_id: UUID) -> dict[str, str]:
    runs = await board.active_runs(database, workspace_id)
    machines = await runtimes.of_workspace(database, workspace_id)
    return {
        **{str(run.task.id): f"{run.issue_key} {run.agent_name}" for run in runs},
        **{str(each.id): f"{each.provider} {each.device_name}" for each in machines},
    }


def _short(name: str) -> str:
    try:
        UUID(name)
    except ValueError:
        return name
    return name[:8]
