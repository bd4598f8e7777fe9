"""What Claude Code's ends mean: structured fields first, its prose last, first match wins."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from understudy.core.failures import FailureReason
from understudy.daemon.backends.backend import Failed

NO_SESSION: Final = re.compile(
    r"no conversation found|requires a valid session id|already in use", re.IGNORECASE
)

RESET: Final = re.compile(r"limit reached\|(\d{10})\b")


@dataclass(frozen=True)
class Witness:
    """What the CLI said about its end; `status` is the HTTP status of the model's provider."""

    error: str
    status: int | None
    subtype: str
    terminal_reason: str
    stop_reason: str
    text: str

    def tells_no_session(self) -> bool:
        return bool(NO_SESSION.search(self.text))

    def told_reset(self) -> float | None:
        """In epoch seconds, where the CLI's words name it: "usage limit reached|1900000000"."""
        found = RESET.search(self.text)
        return float(found[1]) if found else None


@dataclass(frozen=True)
class Rule:
    """Every field that is given must match. `spoils`: the session would only fail again."""

    reason: FailureReason
    error: Collection[str] = ()
    status: Collection[int] = ()
    subtype: Collection[str] = ()
    terminal_reason: Collection[str] = ()
    stop_reason: Collection[str] = ()
    text: str = ""
    spoils: bool = False

    def matches(self, witness: Witness) -> bool:
        return (
            (not self.error or witness.error in self.error)
            and (not self.status or witness.status in self.status)
            and (not self.subtype or witness.subtype in self.subtype)
            and (not self.terminal_reason or witness.terminal_reason in self.terminal_reason)
            and (not self.stop_reason or witness.stop_reason in self.stop_reason)
            and bool(re.search(self.text, witness.text, re.IGNORECASE))
        )


R = FailureReason
RULES: Final = (
    # A signal that was not ours: ours are recognised by the keeper's record.
    Rule(R.CANCELLED, terminal_reason={"aborted_tools", "aborted_streaming"}),
    Rule(R.ITERATION_LIMIT, subtype={"error_max_turns", "error_max_budget_usd"}),
    Rule(R.CONTEXT_OVERFLOW, terminal_reason={"prompt_too_long"}),
    Rule(R.CONTEXT_OVERFLOW, error={"max_output_tokens"}, text="context window limit"),
    Rule(R.INVALID_REQUEST, terminal_reason={"image_error"}, spoils=True),
    Rule(R.AGENT_ERROR, stop_reason={"refusal"}, spoils=True),
    Rule(R.AGENT_ERROR, error={"max_output_tokens"}),
    Rule(R.MODEL_UNAVAILABLE, error={"model_not_found"}),
    Rule(R.MODEL_UNAVAILABLE, status={404}),
    Rule(R.QUOTA_EXHAUSTED, error={"billing_error"}),
    Rule(R.QUOTA_EXHAUSTED, status={402}),
    Rule(R.QUOTA_EXHAUSTED, status={429}, text="usage limit|hit your .*limit|limit reached"),
    Rule(R.AUTH, error={"authentication_failed", "oauth_org_not_allowed"}),
    Rule(R.AUTH, status={401, 403}),
    Rule(R.PROVIDER_OVERLOADED, error={"rate_limit", "overloaded"}),
    Rule(R.PROVIDER_OVERLOADED, status={408, 429, *range(500, 600)}),
    Rule(R.PROVIDER_NETWORK, error={"server_error"}),  # No status: nobody answered.
    Rule(R.CONTEXT_OVERFLOW, text="prompt is too long|context window limit"),
    Rule(R.INVALID_REQUEST, error={"invalid_request"}, spoils=True),
    Rule(R.INVALID_REQUEST, status={400, 413}, spoils=True),
    Rule(R.AUTH, text="please run /login|invalid api key|api error: 40[13]"),
    Rule(R.QUOTA_EXHAUSTED, text="credit balance is too low|usage limit reached|hit your .*limit"),
    Rule(R.PROVIDER_OVERLOADED, text=r"overloaded|api error: (429|5\d\d)"),
    Rule(
        R.PROVIDER_NETWORK,
        text="unable to connect to api|connection to the api was lost|request timed out|econn",
    ),
    Rule(R.INVALID_REQUEST, text="api error: 4(00|13)", spoils=True),
    Rule(
        R.MISSING_CONFIG,
        text="cannot be used with root|invalid mcp config|mcp config file not found|"
        "unknown option|argument .* is invalid|when using --print",
    ),
    Rule(R.AGENT_ERROR, subtype={"error_during_execution"}),
)


def classify(witness: Witness, told: str, resets_at: float | None) -> Failed:
    """`told`: how the process ended, for a CLI that printed no result at all."""
    is_crash = not witness.subtype
    error = told if is_crash else witness.text or told
    resets_at = witness.told_reset() if resets_at is None else resets_at
    for rule in RULES:
        if rule.matches(witness):
            return _failed(rule, error, resets_at)
    return Failed(R.AGENT_ERROR if is_crash else R.UNKNOWN, error)


def _failed(rule: Rule, error: str, resets_at: float | None) -> Failed:
    """A limit that the provider has announced with its reset is a quota, not a rush."""
    if rule.reason is R.PROVIDER_OVERLOADED and resets_at is not None:
        return Failed(R.QUOTA_EXHAUSTED, error, resets_at=resets_at)
    return Failed(
        rule.reason,
        error,
        is_session_safe=not rule.spoils,
        resets_at=resets_at if rule.reason is R.QUOTA_EXHAUSTED else None,
    )
