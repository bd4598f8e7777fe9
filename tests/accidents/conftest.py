"""Worlds for stories; and a real daemon whose pauses between connections are short."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from understudy.config import DaemonConfig
from understudy.daemon import link
from understudy.testing.crossing import Crossing
from understudy.testing.node import Node
from understudy.testing.scenario import enact as enact_at
from understudy.testing.workplace import Workplace


@pytest.fixture
def enact(dsn: str) -> Callable[..., None]:
    """`understudy.testing.scenario.enact`, in the module's database."""
    return partial(enact_at, dsn)


@pytest.fixture
def workplace(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    monkeypatch.setattr(link, "RECONNECT_S_MIN", 0.002)
    monkeypatch.setattr(link, "RECONNECT_S_MAX", 0.02)
    path = tmp_path / "daemon"
    config = DaemonConfig(path, node.address, node.daemon_key, str(node.workspace.id))
    return Workplace(node, path, Crossing(link.dial(config)), config)
