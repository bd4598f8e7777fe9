"""The request's body as its type."""

from __future__ import annotations

from typing import TypeVar

from quart import request

from understudy.wire.text import decode

T = TypeVar("T")


async def body(as_type: type[T]) -> T:
    """Raises `Refused` (400), naming the field."""
    return decode(await request.get_data(), as_type)
