"""What the handlers are given: this node's actors, its database, and the sign that it stops."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from understudy.actors.cast import Cast
from understudy.actors.sweepers import Sweepers
from understudy.core.tree import Branch
from understudy.store.database import Database


@dataclass(frozen=True)
class Site:
    """`stopping` ends websockets and streams: Hypercorn does not."""

    database: Database
    cast: Cast
    sweepers: Sweepers
    tree: Branch
    stopping: trio.Event
    version: str
