"""The live supervision tree as data: what runs, since which crash, with how full a mailbox.

A `Branch` is passed down like any other dependency. Whoever runs a service grows the branch for
as long as it runs; ended children leave a count behind and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec


class State(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting to restart"
    STOPPED = "stopped"


class Kind(StrEnum):
    GROUP = "group"
    SERVICE = "service"
    ACTOR = "actor"


class Crash(msgspec.Struct, frozen=True):
    error: str
    message: str
    at: float
    """On trio's clock, which means something within one process only."""
    ago_s: float


class Mailbox(msgspec.Struct, frozen=True):
    depth: int
    size: int
    handled: int
    """Messages since the actor was spawned, over all incarnations."""
    busy_s: float | None
    """For how long the actor has been at its current message."""


class Node(msgspec.Struct, frozen=True):
    """A branch as it was at one moment."""

    name: str
    kind: Kind
    state: State
    incarnation: int
    restarts: int
    mailbox: Mailbox | None
    last_crash: Crash | None
    ended: int
    """Children that are gone."""
    children: tuple[Node, ...]


@dataclass(eq=False)
class Branch:
    """The place of one service in the tree. A branch with grown children shows as their group."""

    name: str
    parent: Branch | None = None
    kind: Kind = Kind.GROUP
    state: State = State.RUNNING
    incarnation: int = 0
    mailbox: Callable[[float], Mailbox] | None = None
    _last_crash: Crash | None = None
    _ended: int = 0
    _children: dict[Branch, None] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.parent}/{self.name}" if self.parent else self.name

    def child(self, name: str) -> Branch:
        """A place below this one; it shows in the tree once something grows there."""
        return Branch(name, parent=self)

    @contextmanager
    def grown(self, kind: Kind) -> Iterator[None]:
        """Show in the tree while the block runs."""
        self.kind, self.state = kind, State.STARTING
        self._show()
        try:
            yield
        finally:
            self.state = State.STOPPED
            self._hide()

    def starting(self) -> None:
        self.incarnation += 1
        self.state = State.STARTING

    def running(self) -> None:
        self.state = State.RUNNING

    def crashed(self, error: Exception, now: float) -> None:
        self.state = State.WAITING
        self._last_crash = Crash(type(error).__qualname__, str(error), at=now, ago_s=0.0)

    def snapshot(self, now: float) -> Node:
        crash = self._last_crash
        return Node(
            name=self.name,
            kind=self.kind,
            state=self.state,
            incarnation=self.incarnation,
            restarts=max(0, self.incarnation - 1),
            mailbox=self.mailbox(now) if self.mailbox else None,
            last_crash=crash and msgspec.structs.replace(crash, ago_s=now - crash.at),
            ended=self._ended,
            children=tuple(child.snapshot(now) for child in self._children),
        )

    def adopt(self, child: Branch) -> None:
        self._children[child] = None
        self._show()

    def lose(self, child: Branch) -> None:
        del self._children[child]
        self._ended += 1
        self._hide()

    def _show(self) -> None:
        if self.parent is not None:
            self.parent.adopt(self)

    def _hide(self) -> None:
        runs = self.kind is not Kind.GROUP and self.state is not State.STOPPED
        if self.parent is not None and not runs and not self._children:
            self.parent.lose(self)
