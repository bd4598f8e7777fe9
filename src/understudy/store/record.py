"""A row of a result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, ClassVar, SupportsIndex, TypeAlias, cast, overload

Value: TypeAlias = Any  # What a column holds is the query's business.


class Record(tuple[Value, ...]):
    """Columns by position, by name and as attributes. Of two columns of one name the last wins."""

    __slots__ = ()
    _positions: ClassVar[dict[str, int]] = {}

    @overload
    def __getitem__(self, column: SupportsIndex | str) -> Value: ...
    @overload
    def __getitem__(self, column: slice) -> tuple[Value, ...]: ...
    def __getitem__(self, column: SupportsIndex | str | slice) -> Value:
        if isinstance(column, str):
            column = self._positions[column]
        return tuple.__getitem__(self, column)

    def __getattr__(self, column: str) -> Value:
        raise AttributeError(f"no column {column} among {', '.join(self._positions)}")

    def as_dict(self) -> dict[str, Value]:
        return dict(zip(self._positions, self, strict=True))


def record_maker(columns: Sequence[str]) -> Callable[[Sequence[Value]], Record]:
    """The subclass that one statement's rows are."""
    positions = {name: position for position, name in enumerate(columns)}
    attributes = {
        name: property(itemgetter(position))
        for name, position in positions.items()
        if name not in Record.__dict__
    }
    made = type("Record", (Record,), {**attributes, "__slots__": (), "_positions": positions})
    return cast("Callable[[Sequence[Value]], Record]", made)
