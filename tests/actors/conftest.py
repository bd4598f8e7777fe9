from __future__ import annotations

from functools import partial
from random import Random

import pytest

from understudy.testing import stage


@pytest.fixture
def perform(dsn: str, request: pytest.FixtureRequest) -> stage.Perform:
    seed = request.config.getoption("--seed")
    return partial(stage.perform, dsn, Random(seed), seed)
