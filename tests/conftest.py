"""Every test runs under a schedule that a printed seed replays."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Iterator
from functools import partial
from random import Random

import pytest
import trio
from hypothesis import HealthCheck, settings

from understudy.store import schema
from understudy.store.connection import open_connection
from understudy.store.database import Database
from understudy.store.embedded import EmbeddedServer
from understudy.store.pool import Pool
from understudy.testing.node import Node, open_node
from understudy.testing.postgres import throwaway_database, throwaway_server
from understudy.testing.story import Story, open_story

# A busy machine is slow at drawing, too.
settings.register_profile("busy", suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

EMPTY = (
    "delete from understudy.workspaces; delete from understudy.users; delete from understudy.events"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    # By the environment: the processes of a run have one seed among them.
    fresh = int(os.environ.setdefault("PYTEST_SEED", str(random.SystemRandom().randrange(2**32))))
    parser.addoption("--seed", type=int, default=fresh, help="replay a run's schedule")
    parser.addoption("--write-docs", action="store_true", help="write what `make docs` writes")


def pytest_report_header(config: pytest.Config) -> str:
    return f"schedule: --seed={config.getoption('--seed')}"


@pytest.fixture(autouse=True)
def schedule(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order trio's tasks by the seed. The two names are private; trio's own test uses them."""
    monkeypatch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    trio._core._run._r.seed(request.config.getoption("--seed"))


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    """One PostgreSQL for the whole run. A test that stops it starts it again."""
    with throwaway_server() as server:
        yield server


@pytest.fixture(scope="module")
def dsn(server: EmbeddedServer) -> Iterator[str]:
    """An empty database of the module's own."""
    with throwaway_database(server) as dsn:
        yield dsn


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    """The module's database with our schema, and nothing in it."""
    pool = Pool(partial(open_connection, dsn), size=4)
    async with pool.connection() as connection:
        await schema.bring_up(connection)
        await connection.run_script(EMPTY)
    yield Database(pool, Random(7))
    await pool.aclose()


@pytest.fixture
async def story(dsn: str, database: Database) -> AsyncIterator[Story]:
    """A board in the module's database whose time the test tells."""
    async with open_story(dsn) as story:
        yield story


@pytest.fixture
async def node(dsn: str, database: Database, nursery: trio.Nursery) -> AsyncIterator[Node]:
    """A whole server node on an address of its own, with a person and a machine that may enter."""
    async with open_node(dsn, database) as node:
        yield node
