from __future__ import annotations

import random

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    fresh = random.SystemRandom().randrange(2**32)
    parser.addoption("--seeds", type=int, default=4, help="how many worlds are simulated")
    parser.addoption("--first-seed", type=int, default=fresh, help="replay: the first of them")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "world_seed" in metafunc.fixturenames:
        first = metafunc.config.getoption("--first-seed")
        count = metafunc.config.getoption("--seeds")
        metafunc.parametrize("world_seed", range(first, first + count))
