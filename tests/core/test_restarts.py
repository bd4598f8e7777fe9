from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from understudy.core.restarts import RestartLog, RestartPolicy

gaps_s = st.lists(st.integers(0, 40), min_size=1, max_size=40)


@given(gaps_s=gaps_s, restarts_max=st.integers(0, 6), period_s=st.integers(1, 100))
def test_intensity_counts_exactly_the_crashes_within_the_period(
    gaps_s: list[int], restarts_max: int, period_s: int
) -> None:
    log = RestartLog(RestartPolicy(restarts_max=restarts_max, period_s=period_s))
    crashes: list[int] = []
    for gap_s in gaps_s:
        now = (crashes[-1] if crashes else 0) + gap_s
        crashes.append(now)
        recent = [crash for crash in crashes if now - crash <= period_s]
        assert log.admits(now) == (len(recent) <= restarts_max)


def test_without_restarts_the_first_crash_is_one_too_many() -> None:
    assert not RestartLog(RestartPolicy(restarts_max=0)).admits(0.0)


def test_a_log_remembers_no_more_than_a_period() -> None:
    log = RestartLog(RestartPolicy(restarts_max=3, period_s=60))
    assert all(log.admits(now * 30.0) for now in range(1000))
    assert len(log._crashes) == 3
