"""What every store function is given: connections, and where new ids come from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import TypeVar
from uuid import UUID

import msgspec

from understudy.store.connection import Record
from understudy.store.pool import Pool

T = TypeVar("T")


@dataclass(frozen=True)
class Database:
    """`dice` is the system's in production and seeded in a simulation."""

    pool: Pool
    dice: Random

    def new_id(self) -> UUID:
        return UUID(bytes=self.dice.randbytes(16), version=4)


def read(row: Record, as_type: type[T]) -> T:
    """A row as its record; columns the record does not have are left out."""
    return msgspec.convert(row.as_dict(), as_type)


def read_all(rows: Iterable[Record], as_type: type[T]) -> list[T]:
    return [read(row, as_type) for row in rows]
