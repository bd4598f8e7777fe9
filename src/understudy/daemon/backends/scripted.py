"""The built-in agent for demos and tests: a real process, no model (see `scripted_agent.py`)."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from understudy.daemon.backends import scripted_agent
from understudy.daemon.backends.backend import Launch, RunSpec
from understudy.daemon.backends.command import CommandReader, launch_program

PROVIDER: Final = "scripted"
PROGRAM: Final = Path(scripted_agent.__file__)


@final
@dataclass(frozen=True)
class Scripted:
    provider: str = PROVIDER

    def launch(self, spec: RunSpec) -> Launch:
        """`custom_args` go to the program: `--steps`, `--step-s`, `--fail`."""
        return launch_program((sys.executable, "-I", str(PROGRAM), *spec.custom_args), spec)

    def reader(self, spec: RunSpec) -> CommandReader:
        return CommandReader("the scripted agent", PROVIDER, resume=spec.resume, must_conclude=True)
