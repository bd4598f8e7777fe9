"""How long a claim, a renewal and a silence last (R3.4, R4.1); the defaults are the rules' own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Leases:
    claim_s: float = 60.0
    renew_every_s: float = 15.0
    renew_by_s: float = 45.0
    heartbeat_s: float = 15.0
    offline_after_s: float = 45.0

    def __post_init__(self) -> None:
        # One lost heartbeat must not take a machine off, and one lost renewal must not end a claim.
        assert 2 * self.heartbeat_s < self.offline_after_s
        assert 2 * self.renew_every_s < self.renew_by_s <= self.claim_s
