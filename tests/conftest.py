"""Every test runs under a schedule that a printed seed replays."""

from __future__ import annotations

import random

import pytest
import trio


def pytest_addoption(parser: pytest.Parser) -> None:
    fresh = random.SystemRandom().randrange(2**32)
    parser.addoption("--seed", type=int, default=fresh, help="replay a run's schedule")


def pytest_report_header(config: pytest.Config) -> str:
    return f"schedule: --seed={config.getoption('--seed')}"


@pytest.fixture(autouse=True)
def schedule(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order trio's tasks by the seed. The two names are private; trio's own test uses them."""
    monkeypatch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    trio._core._run._r.seed(request.config.getoption("--seed"))
