"""What an agent's failures mean. The protocol has few words for them; most say it in prose."""

from __future__ import annotations

import json
from typing import Final

from understudy.core.failures import FailureReason
from understudy.daemon.backends import witness
from understudy.daemon.backends.backend import Failed
from understudy.daemon.backends.frames import Frame, clean
from understudy.daemon.backends.witness import Rule, Witness

R = FailureReason
HTTP: Final = range(400, 600)
RULES: Final = (
    Rule(R.AUTH, slug={"-32000"}),
    Rule(R.CONTEXT_OVERFLOW, slug={"ContextOverflowError"}),
)
STOPS: Final = {
    "cancelled": R.CANCELLED,
    "max_turn_requests": R.ITERATION_LIMIT,
    "max_tokens": R.AGENT_ERROR,
    "refusal": R.AGENT_ERROR,
}


def classify(error: Frame, told: str) -> Failed:
    """`told`: how the process ended, where it said nothing better."""
    code = error.number_or_none("code") or 0
    named = error.frame("data").text("errorName")
    said = Witness(
        slug=named or str(error.fields.get("code", "")),
        status=code if code in HTTP else None,
        text=error_text(error),
    )
    return witness.classify(RULES, said, None) or Failed(R.AGENT_ERROR, said.text or told)


def error_text(error: Frame) -> str:
    data = error.fields.get("data")
    beside = data if isinstance(data, str) else json.dumps(data) if data else ""
    return clean("\n".join(filter(None, [error.text("message"), beside])))


def stop_failure(result: Frame, answer: str) -> Failed | None:
    """None where the agent has come to its own end, and with words of its own (R5.11)."""
    reason = result.text("stopReason")
    if reason == "end_turn":
        return classify(Frame({"message": answer}), answer) if _is_error(answer) else None
    known = STOPS.get(reason, R.UNKNOWN)
    return Failed(known, f"it stopped: {reason}", is_session_safe=reason != "refusal")


def _is_error(answer: str) -> bool:
    """Claude's adapters print what no model wrote as if one had."""
    return answer.startswith("API Error")
