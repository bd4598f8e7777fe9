"""The demo's verdict: it must be able to turn red."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from understudy.cli.evidence import MESSAGES, STEPS, TOKENS, Evidence, Outcome
from understudy.daemon.backends.scripted_agent import PLAN

GOOD = Evidence(
    key="UND-1",
    statuses=("completed",),
    comments=1,
    messages=tuple(range(MESSAGES)),
    said=("Process 7 is at work: it has a plan of 6 steps.", *(f"{step}." for step in PLAN)),
    commits=tuple(f"UND-1: {step.lower()} ({n}/{STEPS})" for n, step in enumerate(PLAN, start=1)),
    tokens=TOKENS,
    agents=1,
)


def verdict(**changes: Any) -> tuple[int, int, int]:
    outcome = Outcome((GOOD, replace(GOOD, **changes)), adopted=1)
    assert outcome.is_good == (outcome.lost + outcome.doubled + outcome.agent_restarts == 0)
    assert bool(list(outcome.sentences())) == (outcome.lost + outcome.doubled > 0)
    return outcome.lost, outcome.doubled, outcome.agent_restarts


def test_a_whole_run_is_neither_lost_nor_doubled() -> None:
    assert verdict() == (0, 0, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"statuses": ("failed",)},
        {"statuses": ("running",)},
        {"comments": 0},
        {"messages": GOOD.messages[:-1]},
        {"said": GOOD.said[:-1]},
        {"commits": GOOD.commits[1:]},
        {"tokens": TOKENS - 160},
    ],
)
def test_what_is_missing_is_lost(changes: dict[str, Any]) -> None:
    assert verdict(**changes) == (1, 0, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"statuses": ("completed", "completed")},
        {"comments": 2},
        {"said": (*GOOD.said, GOOD.said[-1])},
        {"commits": (*GOOD.commits, GOOD.commits[0])},
        {"tokens": TOKENS + 160},
    ],
)
def test_what_is_there_twice_is_doubled(changes: dict[str, Any]) -> None:
    assert verdict(**changes) == (0, 1, 0)


def test_one_step_in_anothers_place_is_both() -> None:
    assert verdict(commits=(GOOD.commits[1], *GOOD.commits[1:])) == (1, 1, 0)


def test_a_hole_in_the_messages_is_lost_even_if_their_number_is_right() -> None:
    assert verdict(messages=(*GOOD.messages[:-1], MESSAGES)) == (1, 0, 0)


def test_a_second_agent_on_a_run_is_a_restart() -> None:
    assert verdict(agents=2) == (0, 0, 1)
