"""Why a run failed, and what may follow: one closed taxonomy (R5.1, R5.2).

Daemons report these reasons and pages put them into words. Whether and when a failed task is tried
again is decided in the transaction that fails it, so `schema.sql` holds this table too
(`understudy.failure_policy`), made by `policy_sql()` below; a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class FailureReason(StrEnum):
    # The machine or the connection, not the agent.
    TIMEOUT = "timeout"
    RUNTIME_OFFLINE = "runtime_offline"
    RUNTIME_RECOVERY = "runtime_recovery"
    RUNTIME_SHUTDOWN = "runtime_shutdown"
    KEEPER_LOST = "keeper_lost"
    AGENT_KILLED = "agent_killed"  # By a signal that was not ours; its keeper lived to tell.
    PREPARE_FAILED = "prepare_failed"
    POISON = "poison"
    QUEUED_EXPIRED = "queued_expired"
    # The model's provider.
    PROVIDER_NETWORK = "provider_network"
    PROVIDER_OVERLOADED = "provider_overloaded"
    QUOTA_EXHAUSTED = "quota_exhausted"
    AUTH = "auth"
    MODEL_UNAVAILABLE = "model_unavailable"
    INVALID_REQUEST = "invalid_request"
    CONTEXT_OVERFLOW = "context_overflow"
    # The agent and how it was set up.
    AGENT_ERROR = "agent_error"
    AGENT_STALLED = "agent_stalled"
    ITERATION_LIMIT = "iteration_limit"
    NO_RESULT = "no_result"
    MISSING_CONFIG = "missing_config"
    EXECUTABLE_MISSING = "executable_missing"
    # People.
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class FailurePolicy:
    """What may follow a failure for one reason.

    `attempts_max` stands for the task's own `max_attempts` (of more than 1); None leaves that.
    `delays_s` is the wait before each further attempt, the last one repeating, doubled each time
    when `doubling`; `resume` tells whether the next attempt may continue the agent's session.
    """

    is_retryable: bool = False
    attempts_max: int | None = None
    delays_s: tuple[float, ...] = (0.0,)
    doubling: bool = False
    resume: bool = True


R = FailureReason
AT_ONCE: Final = FailurePolicy(is_retryable=True)
NEVER: Final = FailurePolicy()
NEVER_FRESH: Final = FailurePolicy(resume=False)

POLICIES: Final[dict[FailureReason, FailurePolicy]] = {
    R.TIMEOUT: AT_ONCE,
    R.RUNTIME_OFFLINE: AT_ONCE,
    R.RUNTIME_RECOVERY: AT_ONCE,
    R.RUNTIME_SHUTDOWN: AT_ONCE,
    R.KEEPER_LOST: AT_ONCE,
    R.AGENT_KILLED: AT_ONCE,
    R.PREPARE_FAILED: AT_ONCE,
    R.AGENT_STALLED: FailurePolicy(is_retryable=True, resume=False),
    R.PROVIDER_NETWORK: FailurePolicy(is_retryable=True, attempts_max=4, delays_s=(0.0, 5.0, 30.0)),
    R.PROVIDER_OVERLOADED: FailurePolicy(is_retryable=True, delays_s=(30.0,), doubling=True),
    R.QUOTA_EXHAUSTED: FailurePolicy(is_retryable=True, attempts_max=5, delays_s=(3600.0,)),
    R.POISON: NEVER,
    R.QUEUED_EXPIRED: NEVER,
    R.AUTH: NEVER,
    R.MODEL_UNAVAILABLE: NEVER,
    R.INVALID_REQUEST: NEVER_FRESH,
    R.CONTEXT_OVERFLOW: NEVER_FRESH,
    R.AGENT_ERROR: NEVER,
    R.ITERATION_LIMIT: NEVER_FRESH,
    R.NO_RESULT: NEVER,
    R.MISSING_CONFIG: NEVER,
    R.EXECUTABLE_MISSING: NEVER,
    R.CANCELLED: NEVER,
    R.SUPERSEDED: NEVER,
    R.UNKNOWN: NEVER,
}


def policy_sql() -> str:
    """The rows of `understudy.failure_policy`, as `schema.sql` must have them."""
    return ",\n    ".join(
        f"('{reason}', {_sql(policy.is_retryable)}, {policy.attempts_max or 'null::int'},"
        f" '{{{','.join(f'{delay_s:g}' for delay_s in policy.delays_s)}}}',"
        f" {_sql(policy.doubling)}, {_sql(policy.resume)})"
        for reason, policy in POLICIES.items()
    )


def policies_markdown() -> str:
    """The table of `docs/lifecycle.md`."""
    rows = [
        f"| `{reason}` | {_retried(policy)} | {'continues' if policy.resume else 'a fresh one'} |"
        for reason, policy in POLICIES.items()
    ]
    return "\n".join(["| reason | tried again | session |", "| --- | --- | --- |", *rows])


def _retried(policy: FailurePolicy) -> str:
    if not policy.is_retryable:
        return "no"
    delays_s = policy.delays_s[: (policy.attempts_max or 2) - 1]
    waits = ", then ".join(f"after {each:g} s" if each else "at once" for each in delays_s)
    doubled = ", doubling" if policy.doubling else ""
    attempts = f"; {policy.attempts_max} attempts" if policy.attempts_max else ""
    return f"{waits}{doubled}{attempts}"


def _sql(flag: bool) -> str:  # noqa: FBT001  # One letter of a row.
    return "true" if flag else "false"


def reason_of(slug: str) -> FailureReason:
    """Of what another daemon reported: a slug of its own must not keep its run from ending."""
    return FailureReason(slug) if slug in set(FailureReason) else FailureReason.UNKNOWN
