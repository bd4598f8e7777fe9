"""A server node in this process, on a real socket, with keys for a person and for a machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx2
import trio

from understudy.config import Home, ServerConfig
from understudy.core.records import User, Workspace
from understudy.core.tree import Branch
from understudy.http.serve import open_listeners
from understudy.http.site import Site
from understudy.server import run_server
from understudy.store import people, tokens
from understudy.store.database import Database
from understudy.store.tokens import Owner


@dataclass(frozen=True)
class Node:
    """`person` and `machine` are HTTP clients that carry a key; `stranger` carries none."""

    site: Site
    address: str
    user: User
    workspace: Workspace
    personal_key: str
    daemon_key: str
    person: httpx2.AsyncClient
    machine: httpx2.AsyncClient
    stranger: httpx2.AsyncClient

    @property
    def database(self) -> Database:
        return self.site.database


@asynccontextmanager
async def open_node(dsn: str, database: Database) -> AsyncIterator[Node]:
    """`database` is another way to the same database, for keys and for a look behind the scenes."""
    listeners = await open_listeners("127.0.0.1", 0)
    config = ServerConfig(Home(Path("/nonexistent")), database_url=dsn, pool_size=4)
    user, workspace = await people.first_user(database, name="Ada", email="ada@example.org")
    owner = Owner(user_id=user.id, workspace_id=workspace.id)
    personal_key = await tokens.create(database, "personal", owner)
    daemon_key = await tokens.create(database, "daemon", owner)
    async with trio.open_nursery() as nursery:
        site = await nursery.start(partial(run_server, config, Branch("server"), listeners))
        address = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        async with (
            _client(address, personal_key) as person,
            _client(address, daemon_key) as machine,
            _client(address, None) as stranger,
        ):
            yield Node(
                site, address, user, workspace, personal_key, daemon_key, person, machine, stranger
            )
        nursery.cancel_scope.cancel()


def _client(address: str, key: str | None) -> httpx2.AsyncClient:
    headers = {"X-Client-Capabilities": "claim-lease, fenced-reports"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    return httpx2.AsyncClient(base_url=address, headers=headers, trust_env=False, timeout=30)
