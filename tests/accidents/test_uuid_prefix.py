"""uuid_prefix: two tasks within 65 s shared a directory named by the front of the id; one deleted
the directory of the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from understudy.daemon.workspace import prepare
from understudy.testing.desk import Desk

SAME_FRONT = ("0192f0c1-aaaa-7000-8000-000000000001", "0192f0c1-aaab-7000-8000-000000000002")
SAME_END = ("0192f0c1-aaaa-7000-8000-0123456789ab", "0192f0c2-aaaa-7000-8000-0123456789ab")


@pytest.mark.parametrize("ids", [SAME_FRONT, SAME_END])
async def test_ids_that_look_alike_do_not_share_a_directory(
    tmp_path: Path, ids: tuple[str, str]
) -> None:
    """R8.3"""
    desk = Desk(tmp_path)
    first, second = (replace(desk.order(), task_id=UUID(text)) for text in ids)
    work = await prepare(first, desk.repositories)
    (work.path / "mine").write_text("x")
    work.claim.close()
    other = await prepare(second, desk.repositories)
    other.claim.close()
    assert other.path != work.path
    assert [*other.path.glob("mine")] == []
    assert (work.path / "mine").read_text() == "x"
    for order, made in ((first, work), (second, other)):
        again = await prepare(order, desk.repositories)
        again.claim.close()
        assert again.path == made.path
