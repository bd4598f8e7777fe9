"""Facts in the words of a page."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256
from typing import Any, Final

from understudy.core.records import Message

MINUTE_S: Final = 60
HOUR_S: Final = 3600
DAY_S: Final = 86_400
TINTS: Final = 8
LINE_MAX: Final = 200

# What of a tool's input says most, in this order.
TELLING: Final = (
    "command",
    "file_path",
    "path",
    "pattern",
    "query",
    "url",
    "description",
    "prompt",
)


def duration(seconds: float) -> str:
    """`8s`, `2m 13s`, `1h 04m`, `3d 2h`. `static/clock.js` says the same."""
    whole = max(0, int(seconds))
    if whole < MINUTE_S:
        return f"{whole}s"
    if whole < HOUR_S:
        return f"{whole // MINUTE_S}m {whole % MINUTE_S:02}s"
    if whole < DAY_S:
        return f"{whole // HOUR_S}h {whole % HOUR_S // MINUTE_S:02}m"
    return f"{whole // DAY_S}d {whole % DAY_S // HOUR_S}h"


def age(seconds: float) -> str:
    """`just now`, `5 min ago`, `3 h ago`, `12 d ago`. `static/clock.js` says the same."""
    whole = max(0, int(seconds))
    if whole < MINUTE_S:
        return "just now"
    if whole < HOUR_S:
        return f"{whole // MINUTE_S} min ago"
    if whole < DAY_S:
        return f"{whole // HOUR_S} h ago"
    return f"{whole // DAY_S} d ago"


def between(since: datetime, until: datetime) -> str:
    return duration((until - since).total_seconds())


def tokens(number: int) -> str:
    """`812`, `4.2k`, `1.3M`."""
    for size, unit in ((1_000_000, "M"), (1000, "k")):
        if number >= size:
            return f"{number / size:.1f}".removesuffix(".0") + unit
    return str(number)


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def opening(sentence: str) -> str:
    """As it begins a line; `str.capitalize` would lower the rest."""
    return sentence[:1].upper() + sentence[1:]


def initials(name: str) -> str:
    words = name.replace("-", " ").replace("_", " ").replace(".", " ").split()
    return "".join(word[0] for word in words[:2]).upper() or "?"


def tint(name: str) -> int:
    """Which of the avatar colours is whose; the same on every page and in every process."""
    return sha256(name.encode()).digest()[0] % TINTS


def said(message: Message) -> str:
    """The last line of a text, or a tool with what it is used on."""
    if message.type == "tool_use":
        return f"{message.tool or 'Tool'}: {telling(message.input)}".removesuffix(": ")[:LINE_MAX]
    lines = (message.content or "").strip().splitlines()
    return lines[-1].strip()[:LINE_MAX] if lines else ""


def telling(tool_input: object) -> str:
    if not isinstance(tool_input, dict):
        return ""
    for name in TELLING:
        if isinstance(value := tool_input.get(name), str):
            return " ".join(value.split())
    return ""


def changes(told: Mapping[str, Any]) -> str:
    """`2 commits, 3 files, +40 -2`: the parts of a task's `changes` that are not zero."""
    parts = [count(told[f"{noun}s"], noun) for noun in ("commit", "file") if told.get(f"{noun}s")]
    plus, minus = told.get("insertions", 0), told.get("deletions", 0)
    if plus or minus:
        parts.append(f"+{plus} \N{MINUS SIGN}{minus}")
    if left := told.get("uncommitted"):
        parts.append(f"{count(left, 'file')} uncommitted")
    return ", ".join(parts)
