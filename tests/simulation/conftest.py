from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", type=int, default=4, help="how many worlds are simulated")
    parser.addoption("--first-seed", type=int, help="replay: the first of them; else --seed")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "world_seed" in metafunc.fixturenames:
        first = metafunc.config.getoption("--first-seed")
        if first is None:  # Of all processes of this run the same.
            first = metafunc.config.getoption("--seed")
        count = metafunc.config.getoption("--seeds")
        metafunc.parametrize("world_seed", range(first, first + count))
