"""What a program told of its failure, and what that means: fields first, prose last."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Final

from understudy.core.failures import FailureReason
from understudy.daemon.backends.backend import Failed

STATUS: Final = re.compile(r"\b(?:unexpected status|last status:|status|API Error:) (\d{3})\b")
WAIT: Final = re.compile(
    r"(?:try again|retry|retry-after|retry after)(?: in|:)? (\d+(?:\.\d+)?) ?(ms|m|s)?",
    re.IGNORECASE,
)
SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, None: 1.0}


@dataclass(frozen=True)
class Witness:
    """`slug` is the program's own name for it, `status` the HTTP status of the model's provider."""

    slug: str
    status: int | None
    text: str

    def with_told_status(self) -> Witness:
        found = STATUS.search(self.text)
        return replace(self, status=int(found[1])) if found and self.status is None else self

    def told_wait_s(self) -> float | None:
        found = WAIT.search(self.text)
        return float(found[1]) * SECONDS[found[2]] if found else None


@dataclass(frozen=True)
class Rule:
    """Every field that is given must match. `spoils`: the session would only fail again."""

    reason: FailureReason
    slug: Collection[str] = ()
    status: Collection[int] = ()
    text: str = ""
    spoils: bool = False

    def matches(self, witness: Witness) -> bool:
        return (
            (not self.slug or witness.slug in self.slug)
            and (not self.status or witness.status in self.status)
            and bool(re.search(self.text, witness.text, re.IGNORECASE))
        )


R = FailureReason
# What model providers say through any program; those of one program come before them.
COMMON: Final = (
    Rule(R.CONTEXT_OVERFLOW, text=r"context window|context.length|prompt is too long"),
    Rule(R.QUOTA_EXHAUSTED, text="usage limit|quota exceeded|insufficient_quota|credit balance"),
    Rule(R.AUTH, status={401, 403}),
    Rule(R.QUOTA_EXHAUSTED, status={402}),
    Rule(R.MODEL_UNAVAILABLE, status={404}),
    Rule(R.PROVIDER_OVERLOADED, status={408, 429, *range(500, 600)}),
    Rule(R.INVALID_REQUEST, status={400, 413, 422}, spoils=True),
    Rule(R.AUTH, text="invalid api key|authentication|please run /login|not logged in"),
    Rule(R.MODEL_UNAVAILABLE, text="does not exist or you do not have access|model.*not found"),
    Rule(R.PROVIDER_OVERLOADED, text="overloaded|rate.limit|high demand|too many requests"),
    Rule(
        R.PROVIDER_NETWORK,
        text="stream disconnected|error sending request|waiting for network|idle timeout"
        "|unable to connect|cannot connect|connection (was lost|refused|reset|error)"
        "|request timed out|econn|fetch failed",
    ),
)


def classify(rules: Iterable[Rule], witness: Witness, resets_at: float | None) -> Failed | None:
    """`resets_at`: when the provider's quota returns, in epoch seconds, where that was told."""
    witness = witness.with_told_status()
    for rule in (*rules, *COMMON):
        if rule.matches(witness):
            return Failed(
                rule.reason,
                witness.text,
                is_session_safe=not rule.spoils,
                resets_at=resets_at if rule.reason is R.QUOTA_EXHAUSTED else None,
                retry_after_s=witness.told_wait_s()
                if rule.reason is R.PROVIDER_OVERLOADED
                else None,
            )
    return None
