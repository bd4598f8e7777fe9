"""What may follow a failure, by its reason (R5.1, R5.2)."""

from __future__ import annotations

import pytest

from understudy.core.failures import POLICIES, FailureReason, policy_sql, reason_of
from understudy.store.schema import schema_sql

RETRYABLE = (
    "timeout runtime_offline runtime_recovery runtime_shutdown agent_stalled provider_network"
    " provider_overloaded prepare_failed quota_exhausted keeper_lost agent_killed"
)
NEVER = (
    "agent_error auth context_overflow model_unavailable missing_config executable_missing"
    " invalid_request cancelled queued_expired iteration_limit no_result unknown poison superseded"
)


def test_every_reason_has_its_policy() -> None:
    """R5.1: the taxonomy is closed."""
    assert set(POLICIES) == set(FailureReason)
    assert set(FailureReason) == {*RETRYABLE.split(), *NEVER.split()}


def test_what_may_pass_is_tried_again_and_nothing_else() -> None:
    """R5.2"""
    assert {r for r, policy in POLICIES.items() if policy.is_retryable} == set(RETRYABLE.split())


def test_a_session_that_would_fail_again_is_not_continued() -> None:
    """R5.1, R5.9"""
    assert {reason for reason, policy in POLICIES.items() if not policy.resume} == {
        "agent_stalled",
        "context_overflow",
        "invalid_request",
        "iteration_limit",
    }


def test_the_waits_are_the_rules_own() -> None:
    """R5.2: at once, then 5 s, then 30 s; 30 s doubling; an hour where no reset was told."""
    network = POLICIES[FailureReason.PROVIDER_NETWORK]
    assert (network.attempts_max, network.delays_s) == (4, (0.0, 5.0, 30.0))
    overloaded = POLICIES[FailureReason.PROVIDER_OVERLOADED]
    assert (overloaded.delays_s, overloaded.doubling) == ((30.0,), True)
    assert POLICIES[FailureReason.QUOTA_EXHAUSTED].delays_s == (3600.0,)


def test_the_database_decides_by_the_same_policies() -> None:
    """R5.1: `schema.sql` holds what `policy_sql` makes."""
    assert policy_sql() in schema_sql()


@pytest.mark.parametrize(("slug", "reason"), [("auth", "auth"), ("of_its_own", "unknown")])
def test_a_reason_of_another_daemon_is_read_leniently(slug: str, reason: str) -> None:
    assert reason_of(slug) == reason
