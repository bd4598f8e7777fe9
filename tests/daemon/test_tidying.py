"""The daemon's own collection (R8.6)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest
import trio

from understudy.config import DaemonConfig
from understudy.core.leases import Leases
from understudy.core.limits import Limits
from understudy.daemon import link as link_module
from understudy.daemon import tidying
from understudy.daemon.link import Link
from understudy.daemon.outbox import Outbox
from understudy.daemon.outcomes import LinkLost, LinkRefused
from understudy.daemon.repositories import Repositories
from understudy.daemon.slots import Slots
from understudy.daemon.status import read_status
from understudy.daemon.tidying import tidy
from understudy.daemon.trust import Trust
from understudy.daemon.workshop import Workshop
from understudy.daemon.workspace import prepare
from understudy.testing.crossing import Crossing
from understudy.testing.desk import Clone, Desk
from understudy.testing.node import Node
from understudy.testing.workplace import RESULT, Workplace
from understudy.wire.errors import Refusal


class No:
    """A link on which every call ends in the same way."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def call(self, name: str, body: object, subject: UUID) -> Any:
        await trio.lowlevel.checkpoint()
        raise self.error


def refused(status: int) -> LinkRefused:
    return LinkRefused(Refusal(error="no", code="x", status=status))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    desk = Desk(tmp_path)
    desk.repositories = Repositories(tmp_path / "work", desk.git)
    return desk


@pytest.fixture
def shop(desk: Desk, tmp_path: Path) -> Iterator[Workshop]:
    (tmp_path / "runs").mkdir()
    with Outbox(tmp_path / "outbox.db") as outbox:
        yield Workshop(
            server="http://127.0.0.1:1",
            workspace_id=str(desk.ids["workspace"]),
            runs=tmp_path / "runs",
            link=cast(Link, No(LinkLost("away"))),
            outbox=outbox,
            repositories=desk.repositories,
            slots=Slots(1),
            leases=Leases(),
            trust=Trust(math.inf),
            environment=desk.env,
            limits=Limits(kept_s=0.0),
        )


@pytest.mark.parametrize(
    ("error", "is_gone"),
    [(LinkLost("away"), False), (refused(403), False), (refused(500), False), (refused(404), True)],
    ids=["away", "403", "500", "404"],
)
async def test_only_a_clear_answer_of_the_server_lets_a_directory_go(
    desk: Desk, shop: Workshop, error: Exception, *, is_gone: bool
) -> None:
    """R8.6: 404 says that the issue was deleted; nothing else says anything."""
    shop.link = cast(Link, No(error))
    work = await prepare(desk.order(), desk.repositories)
    work.claim.close()
    await tidy(desk.directory, shop)
    assert work.path.exists() != is_gone


async def test_what_the_disk_is_used_for_is_told(desk: Desk, shop: Workshop) -> None:
    told: list[object] = []
    shop.changed = lambda: told.append(shop.disk)
    await tidy(desk.directory, shop)
    (disk,) = told
    assert disk is not None


async def test_a_daemon_tidies_up_after_the_issues_that_are_closed(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R8.6: while they are open their directories stay, and its status says what is used."""
    monkeypatch.setattr(link_module, "RECONNECT_S_MIN", 0.002)
    monkeypatch.setattr(tidying, "FIRST_S", 0.0)
    monkeypatch.setattr(tidying, "EVERY_S", 0.05)
    path = tmp_path / "daemon"
    config = DaemonConfig(path, node.address, node.daemon_key, str(node.workspace.id))
    config = replace(config, limits=Limits(kept_s=0.0))
    workplace = Workplace(node, path, Crossing(link_module.dial(config)), config)
    async with workplace.open_daemon():
        task_id = await workplace.assign("command", "sh", "-c", f"echo hi > note; echo '{RESULT}'")
        await workplace.wait_status(task_id, "completed")
        await workplace.wait(lambda: (status := read_status(path)) and status.disk)
        (home,) = (each.parent for each in path.glob("work/*/*/work"))
        await node.person.patch("/api/issues/UND-1", json={"status": "done"})
        await workplace.wait(lambda: not home.exists())
    kept = Clone(path / "work/.repositories/without-repository.git", os.environ)
    assert "note" in kept.git("ls-tree", "--name-only", f"refs/understudy/{task_id}")
