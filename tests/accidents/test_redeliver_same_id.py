"""redeliver_same_id: a task was delivered again while its first run was alive; the second delivery
wiped the directory under it."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from understudy.daemon.git import Git
from understudy.daemon.repositories import Repositories
from understudy.daemon.workspace import WorkDirBusy, prepare
from understudy.testing.desk import Desk


async def test_a_redelivered_task_leaves_its_live_run_alone(tmp_path: Path) -> None:
    """R3.5, R8.3: also by a new daemon, while the old one's keeper lives on."""
    desk = Desk(tmp_path)
    order = desk.order(desk.repository())
    work = await prepare(order, desk.repositories)
    (work.path / "edit").write_text("half")
    keeper = await trio.lowlevel.open_process(
        ["cat"], stdin=subprocess.PIPE, pass_fds=work.claim.descriptors
    )
    work.claim.close()
    new_daemon = Repositories(desk.repositories.root, Git(desk.env))
    for prior in (None, str(work.path)):
        with pytest.raises(WorkDirBusy):
            await prepare(replace(order, prior_work_dir=prior), new_daemon)
    assert (work.path / "edit").read_text() == "half"
    assert keeper.stdin is not None
    await keeper.stdin.aclose()
    await keeper.wait()
    again = await prepare(order, new_daemon)
    again.claim.close()
    assert again.path == work.path
    assert (again.path / "edit").read_text() == "half"
