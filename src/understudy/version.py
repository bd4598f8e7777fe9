"""The version that is installed."""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

VERSION: Final = version("understudy")
