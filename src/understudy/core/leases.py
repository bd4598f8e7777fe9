"""How long claims, silences and waits last; the defaults are the rules' own (R3.4, R4)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Leases:
    claim_s: float = 60.0
    renew_every_s: float = 15.0
    renew_by_s: float = 45.0
    heartbeat_s: float = 15.0
    offline_after_s: float = 45.0
    sweep_every_s: float = 30.0
    takeover_grace_s: float = 45.0
    """From offline to lost, where another runtime can take over (R4.2)."""
    alone_grace_s: float = 3 * 3600.0
    dispatched_max_s: float = 300.0
    running_max_s: float = 9000.0
    """R4.10; only of a runtime that is silent, too."""
    queued_max_s: float = 2 * 3600.0
    cancel_unconfirmed_s: float = 300.0
    """Then a cancelled run is over even if no machine says that its process is gone."""
    retire_after_s: float = 7 * 86400.0
    history_kept_s: float = 90 * 86400.0
    node_lease_s: float = 30.0
    node_renew_s: float = 10.0

    def __post_init__(self) -> None:
        # One lost heartbeat must not take a machine off, and one lost renewal must not end a claim.
        assert 2 * self.heartbeat_s < self.offline_after_s
        assert 2 * self.renew_every_s < self.renew_by_s <= self.claim_s
        assert 2 * self.node_renew_s < self.node_lease_s

    def trust_s(self, *, may_be_replaced: bool, oldest_s: float) -> float:
        """For how long after a sign of life its work is not given to another (R4.11): until it is
        lost (R4.2), or the oldest of its runs, of that age, has run for too long (R4.10)."""
        soonest_s = self.offline_after_s + min(self.takeover_grace_s, self.alone_grace_s)
        if may_be_replaced:
            return soonest_s
        too_long_s = max(soonest_s, self.running_max_s - oldest_s)
        return min(self.offline_after_s + self.alone_grace_s, too_long_s)
