from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import trio

from understudy.store import tokens
from understudy.store.database import Database
from understudy.store.tokens import Owner
from understudy.testing.browser import Page, find_chromium, open_page, running_chromium
from understudy.testing.node import Node, open_node

LINK_S = 60.0


@pytest.fixture(scope="session")
def devtools() -> Iterator[str]:
    """One Chromium for the whole run; each test has a tab with cookies of its own."""
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium on this machine: install the package `chromium`")
    with running_chromium(executable) as devtools:
        yield devtools


@pytest.fixture
async def node(dsn: str, database: Database, nursery: trio.Nursery) -> AsyncIterator[Node]:
    async with open_node(dsn, database) as node:
        yield node


@pytest.fixture
async def page(devtools: str, node: Node, nursery: trio.Nursery) -> AsyncIterator[Page]:
    """A tab whose user has followed a one-time link. Nothing may turn red in its console."""
    async with open_page(devtools) as page:
        await page.look_like()
        await follow_link(page, node)
        yield page
        assert not page.troubles


async def follow_link(page: Page, node: Node) -> None:
    owner = Owner(user_id=node.user.id)
    code = await tokens.create(node.database, "login", owner, valid_s=LINK_S)
    await page.goto(f"{node.address}/login/{code}")
    await page.wait("document.querySelector('#connection').dataset.state === 'live'")
