"""What Codex's failures mean."""

from __future__ import annotations

from typing import Final

from understudy.core.failures import FailureReason
from understudy.daemon.backends import witness
from understudy.daemon.backends.backend import Failed
from understudy.daemon.backends.frames import Frame
from understudy.daemon.backends.witness import Rule, Witness

R = FailureReason
NETWORK: Final = {
    "httpConnectionFailed",
    "responseStreamConnectionFailed",
    "responseStreamDisconnected",
    "responseTooManyFailedAttempts",
}
RULES: Final = (
    Rule(R.CONTEXT_OVERFLOW, slug={"contextWindowExceeded"}),
    Rule(R.ITERATION_LIMIT, slug={"sessionBudgetExceeded"}),
    Rule(R.QUOTA_EXHAUSTED, slug={"usageLimitExceeded"}),
    Rule(R.MODEL_UNAVAILABLE, slug={"modelNotFound"}),
    Rule(R.AUTH, slug={"unauthorized"}),
    Rule(
        R.AGENT_ERROR,
        slug={"cyberPolicy", "misalignmentPolicyViolation", "tooManyDenials"},
        spoils=True,
    ),
    Rule(
        R.PROVIDER_OVERLOADED,
        slug={"rateLimitExceeded", "serverOverloaded", "internalServerError", "flexUnavailable"},
    ),
    Rule(R.MISSING_CONFIG, text="missing environment variable|error loading config|config.toml"),
    Rule(R.MISSING_CONFIG, text="model provider .* not found|unexpected argument|invalid value"),
)
AFTER: Final = (
    Rule(R.PROVIDER_NETWORK, slug=NETWORK),
    Rule(R.INVALID_REQUEST, slug={"badRequest"}, spoils=True),
    Rule(R.INVALID_REQUEST, text="invalid_request_error", spoils=True),
)


def classify(error: Frame, told: str, resets_at: float | None) -> Failed:
    """`told`: how the process ended, where it said nothing better."""
    said = _witness(error)
    failed = witness.classify(RULES, said, resets_at) or witness.classify(AFTER, said, resets_at)
    return failed or Failed(R.AGENT_ERROR, said.text or told)


def _witness(error: Frame) -> Witness:
    """`codexErrorInfo` is a word, or an object of one with the status in it."""
    info = error.frame("codexErrorInfo")
    slug = error.text("codexErrorInfo") or next(iter(info.fields), "")
    said = [error.text("message"), error.text("additionalDetails")]
    text = "\n".join(dict.fromkeys(filter(None, said)))
    return Witness(slug, info.frame(slug).number_or_none("httpStatusCode"), text)
