"""A daemon that finds as many agent CLIs as it is told to, all in one directory.

python -m bench.wide_daemon DIRECTORY RUNTIMES
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from understudy.cli.main import cli
from understudy.daemon import probe
from understudy.daemon.probe import BUILT_IN, Cli

ANSWER = "#!/bin/sh\necho 1.0.0\n"


def main() -> None:
    directory, runtimes = Path(sys.argv[1]), int(sys.argv[2])
    directory.mkdir()
    clis = [_put(directory, f"agent-{n}") for n in range(runtimes - len(BUILT_IN))]
    vars(probe)["CLIS"] = tuple(clis)
    os.environ["PATH"] = f"{directory}{os.pathsep}{os.environ['PATH']}"
    cli(["daemon", "run"], prog_name="understudy")


def _put(directory: Path, program: str) -> Cli:
    path = directory / program
    path.write_text(ANSWER)
    path.chmod(0o700)
    return Cli(program, program, ("--version",), re.compile(r"^(\d+\.\d+\.\d+)$"), "")


if __name__ == "__main__":
    main()
