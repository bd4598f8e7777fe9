"""The request's body, raw or as its type."""

from __future__ import annotations

from typing import TypeVar

from quart import request

from understudy.wire.text import decode

T = TypeVar("T")


async def raw_body() -> bytes:
    data = await request.get_data()
    assert isinstance(data, bytes)
    return data


async def body(as_type: type[T]) -> T:
    """Raises `Refused` (400), naming the field."""
    return decode(await raw_body(), as_type)
