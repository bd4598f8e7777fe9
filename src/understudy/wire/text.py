"""Text at the boundary (R6.8): PostgreSQL stores no NUL, and one must not make a row immortal."""

from __future__ import annotations

import re
from typing import Any, Final, TypeVar

import msgspec

from understudy.wire.errors import invalid

T = TypeVar("T")
NUL: Final = b"\\u0000"
NESTING_MAX: Final = 100
"""Far below what Python's stack bears: what was let in is encoded again, deeper in the stack."""
TOO_DEEP: Final = "the body is nested too deeply"
BRACKETS: Final = re.compile(rb"[][{}]")


def decode(raw: bytes, as_type: type[T]) -> T:
    """What a person or script sent. Raises `Refused` (400), naming the field."""
    request = _decoded(raw, as_type)
    if NUL in raw and _cleaned(loose := msgspec.json.decode(raw)) != loose:
        raise invalid("text must not contain NUL characters")
    return request


def decode_cleaned(raw: bytes, as_type: type[T]) -> T:
    """What an agent's machine sent: NUL characters are taken out, nothing is refused for them."""
    if NUL not in raw:
        return _decoded(raw, as_type)
    return _converted(_cleaned(_decoded(raw, Any)), as_type)


def _decoded(raw: bytes, as_type: type[T]) -> T:
    try:
        found = msgspec.json.decode(raw or b"{}", type=as_type)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(_sentence(error)) from None
    if _is_deep(raw):
        raise invalid(TOO_DEEP)
    return found


def _is_deep(raw: bytes) -> bool:
    """Of valid JSON, where every string has its end."""
    if raw.count(b"[") + raw.count(b"{") <= NESTING_MAX:
        return False
    without_escapes = raw.replace(rb"\\", b"").replace(rb"\"", b"")
    outside_strings = b"".join(without_escapes.split(b'"')[::2])
    depth = 0
    for bracket in BRACKETS.findall(outside_strings):
        depth += 1 if bracket in b"[{" else -1
        if depth > NESTING_MAX:
            return True
    return False


def _converted(value: object, as_type: type[T]) -> T:
    try:
        return msgspec.convert(value, as_type)
    except msgspec.ValidationError as error:
        raise invalid(_sentence(error)) from None


def _sentence(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "the body is not UTF-8"
    if isinstance(error, RecursionError):
        return TOO_DEEP
    if not isinstance(error, msgspec.ValidationError):
        return f"the body is not JSON: {error}"
    return str(error).replace(" - at `$.", ", in `").replace("`$`", "the body")


def _cleaned(value: Any) -> Any:  # noqa: ANN401  # JSON
    match value:
        case str():
            return value.replace("\x00", "")
        case list():
            return [_cleaned(each) for each in value]
        case dict():
            return {_cleaned(key): _cleaned(each) for key, each in value.items()}
        case _:
            return value
