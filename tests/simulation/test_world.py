"""Whole installations under faults: nothing lost, nothing twice, and it always comes to rest."""

from __future__ import annotations

import pytest

from understudy.testing.world import simulate


def test_no_run_is_lost_or_doubled_whatever_fails(dsn: str, world_seed: int) -> None:
    """R2.3, R2.4, R3.3 to R3.8, R3.10, R4.2 to R4.4, R4.11, R5.2 to R5.6, R6.1 to R6.9, R7.1,
    R10.2, R10.3, R11.4
    """
    story = simulate(dsn, world_seed)
    if story.violations:
        tail = "\n".join(story.log[-40:])
        pytest.fail(
            f"{len(story.violations)} violations, the first: {story.violations[:5]}\n"
            f"{len(story.faults)} faults\n{tail}\n"
            f"replay: pytest tests/simulation --seeds=1 --first-seed={world_seed}"
        )
    assert story.runs > 0


def test_a_seed_replays_its_history_and_another_differs(dsn: str) -> None:
    first, again, other = (simulate(dsn, seed) for seed in (11, 11, 12))
    assert first.log == again.log
    assert first.digest == again.digest != other.digest
