"""Machines that are cloned in worlds and stories."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from understudy.testing import faults, world
from understudy.testing.disk_copies import copy_disk


def test_a_copied_disk_names_its_own_paths_and_no_process_of_the_other(tmp_path: Path) -> None:
    disk = tmp_path / "one"
    (disk / "runs" / "r").mkdir(parents=True)
    (disk / "runs" / "r" / "order.json").write_text(f'{{"run_dir": "{disk}/runs/r"}}')
    (disk / "daemon_id").write_text("one")
    (disk / "lock").touch()
    (disk / "status.json").write_text("{}")
    copy = copy_disk(disk, tmp_path / "another")
    assert (copy / "daemon_id").read_text() == "one"
    order = msgspec.json.decode((copy / "runs" / "r" / "order.json").read_bytes())
    assert order == {"run_dir": f"{copy}/runs/r"}
    assert sorted(path.name for path in copy.iterdir()) == ["daemon_id", "runs"]


def test_a_world_whose_machines_are_all_cloned_holds_to_the_laws(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R6.2"""
    always = faults.Kind(faults.CLONED.name, 1.0, faults.CLONED.about)
    monkeypatch.setattr(faults, "CLONED", always)
    story = world.simulate(dsn, 3, kinds=frozenset({always.name}))
    assert story.violations == []
    assert sum("is cloned" in line for line in story.log) == world.MACHINES
