"""Two tasks within 65 s shared a directory named by the front of the id; one deleted the other's.

The front of an id that begins with the time is the same for all ids of a minute. Here a directory
is named by the id's end, and belongs to the task that is written in it (R8.3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from uuid import UUID

import pytest

from understudy.daemon.workspace import prepare
from understudy.testing.desk import Desk
from understudy.testing.scenario import Scenario
from understudy.testing.simulated_process import Agent


class SameFront(Random):
    """All ids begin with the same eight digits."""

    def randbytes(self, n: int) -> bytes:
        return b"\x01\x92\xf0\xc1" + super().randbytes(n)[4:]


async def leaves_a_file(agent: Agent) -> int:
    agent.write(f"of-{agent.run.task.id.hex}", "")
    await agent.sleep(30)
    agent.say("result", output=" ".join(agent.files("of-*")))
    return 0


def test_uuid_prefix(enact: Callable[..., None]) -> None:
    """R8.3: one after the other, and two at once."""

    async def story(world: Scenario) -> None:
        await world.machine("laptop", slots=2)
        issues = [await world.assign(f"Issue {n}", leaves_a_file) for n in range(4)]
        for issue in issues:
            task = await issue.until("completed")
            assert await issue.outcome() == ["completed"]
            assert task["id"].hex.startswith("0192f0c1")
            assert await issue.comments() == [f"of-{task['id'].hex}"]

    enact(story, dice=SameFront(1))


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
