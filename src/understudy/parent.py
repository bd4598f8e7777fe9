"""A process that ends with the one that started it, however that one ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from typing import Final

import trio

VARIABLE: Final = "UNDERSTUDY_PARENT"
"""Set where stdin is a pipe that the parent holds open for as long as it lives."""


def has_parent() -> bool:
    return VARIABLE in os.environ


async def until_parent_ends(main: Callable[[], Awaitable[None]]) -> None:
    if not has_parent():
        await main()
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_at_end_of_file, nursery.cancel_scope)
        await main()
        nursery.cancel_scope.cancel()


async def _cancel_at_end_of_file(scope: trio.CancelScope) -> None:
    stdin = sys.stdin.fileno()
    while True:
        await trio.lowlevel.wait_readable(stdin)
        if not os.read(stdin, 1024):
            scope.cancel()
            return
