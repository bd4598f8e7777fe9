"""Whole installations under faults: nothing lost, nothing twice, and it always comes to rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from understudy.testing.excerpt import excerpt
from understudy.testing.postgres import throwaway_database, throwaway_server
from understudy.testing.torture import determinism
from understudy.testing.trial import Outcome, Trial, conduct, read_regression

SEEDS = sorted(Path(__file__).parent.joinpath("seeds").glob("*.json"))


def told(outcome: Outcome) -> str:
    lines = [*excerpt(outcome), *outcome.violations, f"{len(outcome.faults)} faults"]
    return "\n".join([*lines, f"shorten it: understudy torture --seed {outcome.seed}"])


def test_no_run_is_lost_or_doubled_whatever_fails(dsn: str, world_seed: int) -> None:
    """R2.3, R2.4, R3.3 to R3.8, R3.10, R4.2 to R4.4, R4.11, R5.2 to R5.6, R6.1 to R6.9, R7.1,
    R10.2, R10.3, R11.4
    """
    outcome = conduct(dsn, Trial(seed=world_seed))
    assert not outcome.violations, told(outcome)
    assert outcome.runs > 0


@pytest.mark.parametrize("path", SEEDS, ids=lambda path: path.stem)
def test_a_seed_that_once_found_a_bug_finds_it_no_more(dsn: str, path: Path) -> None:
    regression = read_regression(path)
    outcome = conduct(dsn, regression.trial)
    named = len(regression.only or outcome.faults)
    print(f"{path.name}: {len(outcome.faults)} of {named} faults strike: {regression.bug}")  # noqa: T201
    assert not outcome.violations, told(outcome)


async def test_a_seed_has_one_history_in_all_processes() -> None:
    """Under different hash seeds; `understudy torture --twice` compares as many as wanted."""
    with (
        throwaway_server() as one,
        throwaway_database(one) as first,
        throwaway_server() as other,
        throwaway_database(other) as second,
    ):
        assert await determinism((first, second), [11, 12]) == []


def test_seeds_have_different_histories(dsn: str) -> None:
    one, other = (conduct(dsn, Trial(seed=seed)) for seed in (11, 12))
    assert one.digest != other.digest
