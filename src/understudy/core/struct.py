"""The base of records and wire messages: a msgspec struct that is frozen and keyword-only."""

from __future__ import annotations

from typing import Any, dataclass_transform

import msgspec


class _FrozenMeta(msgspec.StructMeta):
    """Makes `frozen` and `kw_only` the default, so that no subclass can forget them."""

    def __new__(
        mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **config: Any
    ) -> Any:
        return super().__new__(
            mcls, name, bases, namespace, **{"frozen": True, "kw_only": True} | config
        )


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Struct(msgspec.Struct, metaclass=_FrozenMeta, frozen=True, kw_only=True):
    """Equality and encoding by fields; mutable defaults are copied by msgspec."""
