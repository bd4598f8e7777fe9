"""A retry's checkout threw away uncommitted work.

Whoever begins a retry with a clean checkout throws away what the failed attempt had done. Here it
goes on in the same directory as it is, and nothing that prepares one can delete (R8.4, R8.6). The
world has no git: what git does is shown with a real one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import understudy.daemon
from understudy.daemon.changes import snapshot, snapshot_ref
from understudy.daemon.workspace import prepare
from understudy.testing.desk import Desk
from understudy.testing.plays import fails
from understudy.testing.scenario import Scenario
from understudy.testing.simulated_process import Agent


async def edits_and_fails(agent: Agent) -> int:
    agent.write("parser.py", "half of it")
    return await fails("provider_network", after_s=30)(agent)


async def goes_on(agent: Agent) -> int:
    agent.say("result", output=agent.read("parser.py"))
    return 0


def test_reset_hard(enact: Callable[..., None]) -> None:
    """R8.4"""

    async def story(world: Scenario) -> None:
        await world.machine("laptop")
        fix = await world.assign("Fix the parser", edits_and_fails, goes_on)
        await world.pass_(60)
        await fix.until("completed")
        assert await fix.outcome() == ["provider_network", "completed"]
        assert await fix.comments() == ["half of it"]

    enact(story)


DESTROYS = re.compile(r'"(reset|clean|restore|stash|checkout|remove|--force|-f)"|rmtree|--hard')


@pytest.mark.parametrize("is_told", [True, False], ids=["prior directory", "fresh directory"])
async def test_a_retry_throws_no_uncommitted_work_away(tmp_path: Path, is_told: bool) -> None:  # noqa: FBT001
    """R8.4, R8.6"""
    desk = Desk(tmp_path)
    user = desk.repository()
    failed = await prepare(desk.order(user), desk.repositories)
    failed.claim.close()
    tree = desk.clone(failed.path)
    (failed.path / "README").write_text("edited")
    (failed.path / "new").write_text("untracked")
    (failed.path / "staged").write_text("staged")
    tree.git("add", "staged")
    before = tree.git("status", "--porcelain")
    user.commit("upstream", "moved on")
    order = desk.order(user, prior=failed.path if is_told else None)
    retry = await prepare(order, desk.repositories)
    retry.claim.close()
    assert (retry.path == failed.path) == is_told
    assert tree.git("status", "--porcelain") == before
    assert (failed.path / "README").read_text() == "edited"


async def test_even_a_reset_by_the_agent_can_be_undone_from_the_snapshot(tmp_path: Path) -> None:
    """R8.6"""
    desk = Desk(tmp_path)
    order = desk.order(desk.repository())
    work = await prepare(order, desk.repositories)
    work.claim.close()
    (work.path / "README").write_text("edited")
    (work.path / "new").write_text("untracked")
    await snapshot(desk.git, work.path, str(order.task_id))
    tree = desk.clone(work.path)
    tree.git("reset", "--quiet", "--hard")
    tree.git("clean", "-fdq")
    tree.git("checkout", snapshot_ref(str(order.task_id)), "--", ".")
    assert (work.path / "README").read_text() == "edited"
    assert (work.path / "new").read_text() == "untracked"


def test_nothing_that_prepares_a_directory_can_destroy_one() -> None:
    """R8.6"""
    daemon = Path(next(iter(understudy.daemon.__path__)))
    for name in ("workspace", "repositories", "changes", "briefs", "files", "claims"):
        assert not DESTROYS.search((daemon / f"{name}.py").read_text()), name
