"""Why a run failed, in a few words: the same on every page and in the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from understudy.core.failures import FailureReason

R = FailureReason
REASONS: Final[Mapping[FailureReason, str]] = {
    R.TIMEOUT: "Timed out",
    R.RUNTIME_OFFLINE: "Machine went offline",
    R.RUNTIME_RECOVERY: "Lost when its daemon restarted",
    R.RUNTIME_SHUTDOWN: "Daemon was stopped",
    R.KEEPER_LOST: "Killed from outside",
    R.AGENT_KILLED: "Agent was killed",
    R.PREPARE_FAILED: "Could not prepare",
    R.POISON: "Took its machine down twice",
    R.QUEUED_EXPIRED: "Waited too long",
    R.PROVIDER_NETWORK: "Could not reach the model",
    R.PROVIDER_OVERLOADED: "Model is overloaded",
    R.QUOTA_EXHAUSTED: "Quota is used up",
    R.AUTH: "Not signed in",
    R.MODEL_UNAVAILABLE: "Model is not available",
    R.INVALID_REQUEST: "Model refused the request",
    R.CONTEXT_OVERFLOW: "Ran out of context",
    R.AGENT_ERROR: "Agent failed",
    R.AGENT_STALLED: "Agent stalled",
    R.ITERATION_LIMIT: "Hit its turn limit",
    R.NO_RESULT: "Ended without a result",
    R.MISSING_CONFIG: "Set-up is incomplete",
    R.EXECUTABLE_MISSING: "CLI not found",
    R.CANCELLED: "Cancelled",
    R.SUPERSEDED: "Superseded",
    R.UNKNOWN: "Failed",
}
