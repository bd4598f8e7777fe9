"""Of a long history, what a person reads first."""

from __future__ import annotations

import re
from ast import literal_eval
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from understudy.testing.trial import Outcome

LAST_LINES: Final = 25
LINES_MAX: Final = 60
WIDTH: Final = 180
_ID: Final = re.compile(r"\b([0-9a-f]{8})-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")
_EVENT: Final = re.compile(r"( *[0-9.]+ [a-z_]+:[a-z_]+) (\S+) (\{.*\})")
_PLACE: Final = re.compile(r" *[0-9.]+ ((node|machine)-[0-9]|the database)")
_MACHINES: Final = re.compile(r" *[0-9.]+ daemon:")
_IDLE: Final = {"task_id", "status", "provider"}
"""What an event says twice, or always."""


def excerpt(outcome: Outcome) -> Iterator[str]:
    """The faults, what befell the machines and nodes, and the lines about whatever the violations
    name; the end, if they name nothing."""
    subjects = {match[0] for violation in outcome.violations for match in _ID.finditer(violation)}
    end = len(outcome.log) - (0 if subjects else LAST_LINES)
    told = [
        number
        for number, line in enumerate(outcome.log)
        if number >= end
        or is_fault(line, outcome.faults)
        or any(map(line.__contains__, subjects))
        or _befell_a_place(line)
    ]
    lines = list(whole(outcome))
    told = [-1, *told[-LINES_MAX:]]
    for before, number in pairwise(told):
        if (left_out := number - before - 1) > 0:
            yield f"      … {left_out} line{'s' if left_out > 1 else ''}"
        yield lines[number]


def whole(outcome: Outcome) -> Iterator[str]:
    """All of it, in words; the faults are marked."""
    names: dict[str, str] = {}
    for line in outcome.log:
        mark = "!!" if is_fault(line, outcome.faults) else "  "
        yield f"{mark} {short(_in_words(line, names))}"


def short(line: str) -> str:
    """Ids cut to what tells them apart, and no more than fits a wide terminal."""
    line = _ID.sub(r"\1", line)
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…"


def is_fault(line: str, faults: Sequence[str]) -> bool:
    return "#" in line and any(re.search(rf"{re.escape(name)}(?!\d)", line) for name in faults)


def _befell_a_place(line: str) -> bool:
    """A machine that comes or goes, or what has no task."""
    is_of_a_task = _ID.search(line) is not None
    return bool(_MACHINES.match(line) or (_PLACE.match(line) and not is_of_a_task))


def _in_words(line: str, names: dict[str, str]) -> str:
    """An event by what it alone says. `names` are of machines and issues, as far as events told."""
    if (event := _EVENT.fullmatch(line)) is None:
        return line
    head, subject, body = event[1], event[2], literal_eval(event[3])
    names |= _named(body)
    said = [f"{name.removesuffix('_id')} {_value(value, names)}" for name, value in _news(body)]
    return f"{head} {'' if subject == 'None' else f'{subject} '}{', '.join(said)}"


def _named(body: Mapping[str, Any]) -> dict[str, str]:
    issue = {body["issue_id"]: body["title"]} if "title" in body else {}
    return issue | {each["id"]: each["daemon_id"] for each in body.get("runtimes", ())}


def _news(body: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    idle = _IDLE if "move" in body else _IDLE - {"status"}
    return ((name, value) for name, value in body.items() if value and name not in idle)


def _value(value: Any, names: Mapping[str, str]) -> str:  # noqa: ANN401  # JSON.
    match value:
        case list():
            return " ".join(_value(each, names) for each in value)
        case {"id": str(id_)}:
            return _value(id_, names)
        case _:
            return names.get(str(value), str(value))
