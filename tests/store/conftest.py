from __future__ import annotations

from collections.abc import Iterator

import pytest

from understudy.store.embedded import EmbeddedServer
from understudy.testing.postgres import throwaway_database, throwaway_server


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
