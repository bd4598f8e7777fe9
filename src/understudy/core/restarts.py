"""Restart intensity: how many crashes are too many. Pure; the time is an argument."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


class CannotStart(Exception):
    """An expected failure to start; its message is a sentence that says what to do next."""


class ChildEnded(Exception):
    """A process that should run for ever has ended. Where we noticed says nothing about why."""


@dataclass(frozen=True)
class RestartPolicy:
    restarts_max: int = 3
    period_s: float = 60.0
    delay_s: float = 1.0


@dataclass
class RestartLog:
    policy: RestartPolicy
    _crashes: deque[float] = field(default_factory=deque, init=False)

    def admits(self, now: float) -> bool:
        """Record a crash; false once more than `restarts_max` fall within the period."""
        self._crashes.append(now)
        while self._crashes[0] < now - self.policy.period_s:
            self._crashes.popleft()
        return len(self._crashes) <= self.policy.restarts_max
