"""The limits of runs as options of the daemon's commands, and as variables (R4.10)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final, TypeVar

import click

from understudy.core.limits import SILENCE_S_MIN, Limits

F = TypeVar("F", bound=Callable[..., Any])
DAY_S: Final = 86400.0
MIB: Final = 1 << 20
DEFAULTS: Final = Limits()


@dataclass(frozen=True)
class Setting:
    """`unit`: how much of the field's own unit one of the option is."""

    field: str
    flag: str
    unit: float
    kind: click.IntRange | click.FloatRange
    help: str

    @property
    def variable(self) -> str:
        return f"UNDERSTUDY_DAEMON_{self.flag.removeprefix('--').replace('-', '_').upper()}"

    def shown(self, limits: Limits) -> str:
        return f"{getattr(limits, self.field) / self.unit:.15g}"

    def value(self, given: float) -> float:
        whole = isinstance(getattr(DEFAULTS, self.field), int)
        return int(given * self.unit) if whole else given * self.unit


SETTINGS: Final = (
    Setting("silence_s", "--stalled-after", 1, click.FloatRange(SILENCE_S_MIN, clamp=True),
            "Stop an agent that makes no progress for so many seconds; 360 at least."),
    Setting("tool_s", "--tool-stalled-after", 1, click.FloatRange(1),
            "The same while one of its tools is at work."),
    Setting("retries_s", "--retries-stalled-after", 1, click.FloatRange(1),
            "Stop an agent that only asks its provider again for so many seconds."),
    Setting("requests_max", "--max-requests", 1, click.IntRange(1),
            "How often a run may ask its model."),
    Setting("spool_bytes_max", "--max-output", MIB, click.FloatRange(1),
            "How many MiB a run may print."),
    Setting("kept_s", "--keep-days", DAY_S, click.FloatRange(0),
            "Keep the directory of a closed issue for so many days."),
)  # fmt: skip


def limit_options(command: F) -> F:
    """The command gets them as `limits`."""

    @wraps(command)
    def with_limits(**given: Any) -> Any:
        values = {each.field: each.value(given.pop(each.field)) for each in SETTINGS}
        return command(**given, limits=Limits(**values))  # type: ignore[arg-type]  # By their types.

    decorated: Any = with_limits
    for each in SETTINGS:
        decorated = click.option(
            each.flag,
            each.field,
            type=each.kind,
            default=each.shown(DEFAULTS),
            show_default=True,
            envvar=each.variable,
            help=each.help,
        )(decorated)
    result: F = decorated
    return result


def limit_arguments(limits: Limits) -> list[str]:
    """Those that differ from the defaults, for another process."""
    differing = [each for each in SETTINGS if each.shown(limits) != each.shown(DEFAULTS)]
    return [word for each in differing for word in (each.flag, each.shown(limits))]
