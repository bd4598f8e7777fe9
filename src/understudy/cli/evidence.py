"""What a run left behind, counted: too little is lost, too much is doubled.

Nothing here asks the books of the daemon. The steps are counted where the work is (commits in the
user's repository), what was said and billed where people read it, agents as processes of this
machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from understudy.daemon.backends.scripted_agent import PLAN

STEPS: Final = len(PLAN)
# The scripted agent thinks, writes a plan and tells so; each step is told, edited and committed.
MESSAGES: Final = 4 + 5 * STEPS
TOKENS: Final = 160 * STEPS


@dataclass(frozen=True)
class Evidence:
    """Of one issue that was assigned once."""

    key: str
    statuses: tuple[str, ...]
    """Of all its tasks."""
    comments: int
    messages: tuple[int, ...]
    """Their numbers."""
    said: tuple[str, ...]
    commits: tuple[str, ...]
    """Their subjects, in the user's repository."""
    tokens: int
    agents: int
    """Processes that were seen at work on it."""


class Count(NamedTuple):
    what: str
    expected: int
    found: int


def counts(run: Evidence) -> Iterator[Count]:
    yield Count("tasks", 1, len(run.statuses))
    yield Count("completed runs", 1, run.statuses.count("completed"))
    yield Count("comments", 1, run.comments)
    yield Count("messages", MESSAGES, len(run.messages))
    yield Count("message numbers in use", MESSAGES, len(set(run.messages) & set(range(MESSAGES))))
    yield Count("tokens", TOKENS, run.tokens)
    yield Count("commits", STEPS, len(run.commits))
    for number, step in enumerate(PLAN, start=1):
        subject = f"{run.key}: {step.lower()} ({number}/{STEPS})"
        yield Count(f"commits of “{step}”", 1, run.commits.count(subject))
        yield Count(f"reports of “{step}”", 1, run.said.count(f"{step}."))


def lost(run: Evidence) -> list[Count]:
    return [each for each in counts(run) if each.found < each.expected]


def doubled(run: Evidence) -> list[Count]:
    return [each for each in counts(run) if each.found > each.expected]


@dataclass(frozen=True)
class Outcome:
    runs: tuple[Evidence, ...]
    adopted: int
    """Runs that the second daemon found and took over."""

    @property
    def completed(self) -> int:
        return sum("completed" in run.statuses for run in self.runs)

    @property
    def lost(self) -> int:
        return sum(bool(lost(run)) for run in self.runs)

    @property
    def doubled(self) -> int:
        return sum(bool(doubled(run)) for run in self.runs)

    @property
    def agent_restarts(self) -> int:
        return sum(max(0, run.agents - 1) for run in self.runs)

    @property
    def is_good(self) -> bool:
        return self.lost == self.doubled == self.agent_restarts == 0

    def sentences(self) -> Iterator[str]:
        for run in self.runs:
            for word, found in (("lost", lost(run)), ("doubled", doubled(run))):
                for each in found:
                    yield f"{run.key}, {word}: {each.found} of {each.expected} {each.what}"
