"""For how long a machine may trust that its work stays its own (R4.11)."""

from __future__ import annotations

import pytest

from understudy.core.leases import Leases

HOUR_S = 3600.0


@pytest.mark.parametrize(
    ("may_be_replaced", "oldest_s", "trust_s"),
    [
        (True, 0, 45 + 45),
        (True, 3 * HOUR_S, 45 + 45),
        (False, 0, 9000),
        (False, 1000, 8000),
        (False, 8950, 45 + 45),
        (False, 5 * HOUR_S, 45 + 45),
    ],
)
def test_the_promise_ends_before_the_server_gives_anything_up(
    *, may_be_replaced: bool, oldest_s: float, trust_s: float
) -> None:
    """R4.2, R4.10, R4.11: lost 45 s after it is offline where another can take over, else after
    3 h; a run of 9000 s is timed out once its machine is silent."""
    assert Leases().trust_s(may_be_replaced=may_be_replaced, oldest_s=oldest_s) == trust_s


def test_a_grace_of_0_is_the_strict_rule() -> None:
    """R4.2: lost in the tick that marks the runtime offline."""
    strict = Leases(takeover_grace_s=0, alone_grace_s=0)
    assert strict.trust_s(may_be_replaced=False, oldest_s=0) == 45


def test_with_a_longer_run_allowed_the_grace_ends_the_promise() -> None:
    patient = Leases(running_max_s=24 * HOUR_S)
    assert patient.trust_s(may_be_replaced=False, oldest_s=0) == 45 + 3 * HOUR_S
