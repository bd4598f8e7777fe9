"""The backends by provider."""

from __future__ import annotations

import os
from typing import Final

from understudy.daemon.backends.acp import Acp
from understudy.daemon.backends.backend import Backend
from understudy.daemon.backends.claude import Claude
from understudy.daemon.backends.codex import Codex
from understudy.daemon.backends.command import Command
from understudy.daemon.backends.scripted import Scripted

BACKENDS: Final[dict[str, Backend]] = {
    backend.provider: backend
    for backend in (Claude(is_root=os.geteuid() == 0), Codex(), Acp(), Command(), Scripted())
}
