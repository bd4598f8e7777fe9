from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from understudy.store.database import Database
from understudy.testing.story import Story, open_story


@pytest.fixture
async def story(dsn: str, database: Database) -> AsyncIterator[Story]:
    """In the module's database, emptied."""
    async with open_story(dsn) as story:
        yield story
