"""Lines of JSON from programs that nobody controls: read leniently, cleaned at once (R6.8)."""

from __future__ import annotations

import json
import math
from typing import Any, Final, final

from understudy.daemon.backends.backend import Unparsed

TEXT_MAX: Final = 200_000  # Characters of one string.
NUMBER_MAX: Final = 2**53
UNPARSED_MAX: Final = 500

# A line that begins an object whose own `type` (not that of something inside) is `result`.
RESULT_LINE: Final = (
    r'^\s*\{\s*(?:"\w+"\s*:\s*(?:"[^"\\]*"|[-\d.]+|true|false|null)\s*,\s*)*'
    r'"type"\s*:\s*"result"\s*[,}]'
)

_json: Final = json.JSONDecoder(strict=False)


@final
class Frame:
    """A JSON object; what is absent or of another type reads as empty."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields

    def text(self, name: str) -> str:
        value = self.fields.get(name)
        return value if isinstance(value, str) else ""

    def number(self, name: str) -> int:
        return self.number_or_none(name) or 0

    def number_or_none(self, name: str) -> int | None:
        value = self.fields.get(name)
        return max(0, min(int(value), NUMBER_MAX)) if isinstance(value, int | float) else None

    def flag(self, name: str) -> bool:
        return self.fields.get(name) is True

    def frame(self, name: str) -> Frame:
        value = self.fields.get(name)
        return Frame(value if isinstance(value, dict) else {})

    def frames(self, name: str) -> list[Frame]:
        value = self.fields.get(name)
        return [Frame(item) for item in _items(value) if isinstance(item, dict)]

    def texts(self, name: str) -> list[str]:
        value = self.fields.get(name)
        return [item for item in _items(value) if isinstance(item, str)]


def decode(line: bytes) -> Frame | None:
    """The JSON object on the line, its strings cleaned and cut; None if there is none."""
    if not line.lstrip().startswith(b"{"):
        return None
    try:
        fields = _clean(_json.decode(_utf8(line)))
    except (ValueError, RecursionError):
        return None
    return Frame(fields) if isinstance(fields, dict) else None


def clean(text: str) -> str:
    """Without NUL and lone surrogates, which PostgreSQL refuses, and not longer than the limit."""
    text = text.replace("\0", "")
    if len(text) > TEXT_MAX:
        text = f"{text[:TEXT_MAX]}… [{len(text) - TEXT_MAX} characters cut]"
    return encodable(text)


def encodable(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def plain(line: bytes) -> str:
    return clean(_utf8(line))


def unparsed(line: bytes) -> Unparsed:
    return Unparsed(clean(_utf8(line[:UNPARSED_MAX])), len(line))


def _utf8(line: bytes) -> str:
    return line.decode("utf-8", "replace")


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _clean(value: object) -> object:
    match value:
        case str():
            return clean(value)
        case list():
            return [_clean(item) for item in value]
        case dict():
            return {clean(name): _clean(item) for name, item in value.items()}
        case float() if not math.isfinite(value):
            return None
        case int() if abs(value) > NUMBER_MAX:
            return str(value)  # The wire's integers have 64 bits.
        case _:
            return value
