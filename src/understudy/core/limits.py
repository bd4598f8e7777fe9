"""How long a run may go on without progress, how much it may do and say, and for how long what it
leaves is kept (R4.10, R8.6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SILENCE_S_MIN: Final = 360.0
"""Agent CLIs are legitimately silent for five minutes."""


@dataclass(frozen=True)
class Limits:
    """Progress is text, what tools do, and new usage: no heartbeat, status or retry is."""

    silence_s: float = 1800.0
    """Never less than `SILENCE_S_MIN`, whatever is set."""
    tool_s: float = 2 * 3600.0
    """Without progress while a tool is at work."""
    retries_s: float = 600.0
    """Of nothing but retries."""
    requests_max: int = 1000
    """To the model."""
    spool_bytes_max: int = 1 << 30
    """Of what the agent prints, on both its outputs together."""

    kept_s: float = 7 * 86400.0
    """For so long nobody has touched the directory of a closed issue before it goes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "silence_s", max(self.silence_s, SILENCE_S_MIN))
