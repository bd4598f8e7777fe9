"""What must not be read in a log (R9.5)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, final

KEY: Final = re.compile(r"(us[ladps]_)[\w-]{8,}")
"""Any key of ours; its prefix says which kind it was."""
HIDDEN: Final = "***"
LENGTH_MIN: Final = 6
"""What is shorter is no secret (`1`, `true`), and to hide it everywhere would spoil the log."""
CONFIDED: Final = frozenset({"env", "headers", "http_headers", "bearer_token"})
"""Fields of an MCP server whose values are keys more often than not."""
IN_ADDRESS: Final = re.compile(r"[?&][^=&#]*=([^&#]+)|//[^/@:]*:([^/@]+)@")
"""Values in the query of a URL, and its password."""


@final
class Secrets:
    """Values to hide beside our keys: what agents and their MCP servers are given."""

    def __init__(self) -> None:
        self._values: set[str] = set()
        self._pattern = KEY

    def add(self, values: Iterable[str]) -> None:
        """Of more than one line, each: that is how a traceback would show them."""
        fresh = {line.strip() for value in values for line in value.splitlines()}
        fresh = {line for line in fresh if len(line) >= LENGTH_MIN} - self._values
        if fresh:
            self._values |= fresh
            longest_first = sorted(map(re.escape, self._values), key=len, reverse=True)
            self._pattern = re.compile("|".join([*longest_first, KEY.pattern]))

    def hide(self, text: str) -> str:
        return self._pattern.sub(_hidden, text)


def _hidden(found: re.Match[str]) -> str:
    return (found[1] or "") + HIDDEN


def confided(config: object, *, is_secret: bool = False) -> Iterator[str]:
    """The values in an agent's `mcp_config` that are for its servers alone (R9.5)."""
    match config:
        case dict():
            for name, value in config.items():
                yield from confided(value, is_secret=is_secret or name in CONFIDED)
        case list():
            for value in config:
                yield from confided(value, is_secret=is_secret)
        case str() if is_secret:
            yield config
            yield config.partition(" ")[2]  # Of `Bearer KEY`, the key.
        case str():
            yield from map("".join, IN_ADDRESS.findall(config))
        case _:
            pass  # A number, a flag.
