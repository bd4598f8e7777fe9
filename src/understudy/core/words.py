"""Times and names in sentences for people, the same on every machine: UTC, in one order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Final

MINUTE_S: Final = 60
HOUR_MIN: Final = 60
TWO_DAYS_MIN: Final = 2 * 24 * 60
NAMED_MAX: Final = 2


def span(seconds: float, whole: Callable[[float], int]) -> str:
    """`31 s`, `3 min`, `2 h 5 min`, `3 d 4 h`; `whole` says which way it is rounded."""
    if (count := whole(seconds)) < MINUTE_S:
        return f"{count} s"
    if (minutes := whole(count / MINUTE_S)) < HOUR_MIN:
        return f"{minutes} min"
    if minutes < TWO_DAYS_MIN:
        return _pair(divmod(minutes, 60), "h", "min")
    return _pair(divmod(whole(minutes / 60), 24), "d", "h")


def _pair(counts: tuple[int, int], unit: str, part: str) -> str:
    return f"{counts[0]} {unit}" + (f" {counts[1]} {part}" if counts[1] else "")


def time_of_day(moment: datetime, *, today: datetime) -> str:
    """`14:02 UTC`, with the date on another day."""
    moment = moment.astimezone(UTC)
    is_today = moment.date() == today.astimezone(UTC).date()
    return f"{moment:%H:%M} UTC" if is_today else f"{moment:%Y-%m-%d %H:%M} UTC"


def names_of(names: Iterable[str], conjunction: str) -> str:
    """`mac, linux and 3 more`, in one order: what is the same is said in the same words."""
    found = sorted(names)
    if rest := found[NAMED_MAX:]:
        return f"{', '.join(found[:NAMED_MAX])} {conjunction} {len(rest)} more"
    return f" {conjunction} ".join(found)


def runtimes(names: Iterable[str]) -> str:
    """With their verb: `runtime mac is`, `runtimes linux and mac are`."""
    found = list(names)
    noun, verb = ("runtime", "is") if len(found) == 1 else ("runtimes", "are")
    return f"{noun} {names_of(found, 'and')} {verb}"


def one_line(text: str) -> str:
    return " ".join(text.split())
