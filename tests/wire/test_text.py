"""Text at the boundary: what is refused, what is cleaned, and that nothing else happens to it."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.core.struct import Struct
from understudy.wire.errors import Refused
from understudy.wire.text import NESTING_MAX, decode, decode_cleaned

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
JSON = st.recursive(SCALARS, lambda each: st.lists(each) | st.dictionaries(st.text(), each))


class Body(Struct):
    title: str = ""
    extra: Any = None


def nested(depth: int, core: bytes = b"0") -> bytes:
    return b'{"extra": ' + b"[" * depth + core + b"]" * depth + b"}"


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (b"{", "JSON"),
        (b"[]", "Expected `object`"),
        (b'"x"', "Expected `object`"),
        (b"\xff", "JSON"),
        (b'{"title": "\xff"}', "UTF-8"),
        (b'{"title": 5}', "`title`"),
        (b'{"title": "\\ud800"}', "JSON"),
        (b'{"title": "\\udc00 "}', "JSON"),
        (b'{"title": "\xed\xa0\x80"}', "UTF-8"),
        (b'{"extra": NaN}', "JSON"),
        (b'{"extra": Infinity}', "JSON"),
        (b'{"extra": 1e999}', "range"),
        (b'{"extra": ' + b"9" * 5000 + b"}", "range"),
        (nested(NESTING_MAX), "nested too deeply"),
        (nested(500), "nested too deeply"),
        (nested(100_000), "nested too deeply"),
        (nested(900, b'"\\u0000"'), "nested too deeply"),
    ],
)
@pytest.mark.parametrize("read", [decode, decode_cleaned])
def test_what_is_no_message_is_refused_with_a_sentence(read: Any, raw: bytes, named: str) -> None:
    """R11.3"""
    with pytest.raises(Refused) as refused:
        read(raw, Body)
    assert refused.value.refusal.status == 400
    assert named in refused.value.refusal.error


def test_nesting_up_to_the_limit_is_let_in() -> None:
    assert decode(nested(NESTING_MAX - 1), Body).extra != 0
    assert decode_cleaned(nested(NESTING_MAX - 1, b'"\\u0000"'), Body).extra != 0


def test_brackets_in_text_are_not_nesting() -> None:
    raw = json.dumps({"title": '[{"\\' * 1000, "extra": [[], []] * 100}).encode()
    assert decode(raw, Body).title == '[{"\\' * 1000


def test_people_are_told_of_nul_and_machines_have_it_taken_out() -> None:
    """R6.8"""
    raw = b'{"title": "a\\u0000b", "extra": {"k\\u0000": ["\\u0000"]}}'
    with pytest.raises(Refused, match="NUL"):
        decode(raw, Body)
    assert decode_cleaned(raw, Body) == Body(title="ab", extra={"k": [""]})


def test_an_escaped_backslash_before_u0000_is_text() -> None:
    """R6.8: agents speak about NUL, too."""
    raw = json.dumps({"title": "write \\u0000"}).encode()
    assert b"\\u0000" in raw
    assert decode(raw, Body).title == decode_cleaned(raw, Body).title == "write \\u0000"


@given(JSON)
def test_what_has_no_nul_comes_through_unchanged(value: Any) -> None:
    raw = json.dumps({"extra": value}).encode()
    cleaned = decode_cleaned(raw, Body)
    assert "\x00" not in json.dumps(cleaned.extra, ensure_ascii=False)
    if b"u0000" not in raw:
        assert cleaned.extra == value


@given(st.binary() | st.text().map(str.encode))
def test_no_bytes_do_more_than_be_refused(raw: bytes) -> None:
    for read in (decode, decode_cleaned):
        with suppress(Refused):
            read(raw, Body)
