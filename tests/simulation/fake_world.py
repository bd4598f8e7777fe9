"""A world without a world: what the torture does with its outcomes, in milliseconds.

Imported by the workers' processes, which find it by PYTHONPATH.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SITES: Final = 40
VIOLATED, RAISES, DIES, HANGS, HASHES = 7, 8, 9, 10, 11
CULPRITS: Final = {"machine-1/kill#3", "machine-0/lost_answer#8"}


@dataclass(frozen=True)
class Story:
    violations: list[str]
    faults: list[str]
    log: list[str]
    digest: str
    runs: int
    virtual_s: float


def simulate(
    dsn: str, seed: int, *, muted: frozenset[str] = frozenset(), kinds: frozenset[str] | None = None
) -> Story:
    Path("seen").write_text(f"{os.getpid()} {dsn}")
    if seed == RAISES:
        raise RuntimeError("no such world")
    if seed == DIES:
        os.kill(os.getpid(), signal.SIGKILL)
    if seed == HANGS:
        time.sleep(600)
    faults = [fault for fault in _faults(kinds) if fault not in muted]
    log = [f"{number:9.3f} fault {fault}" for number, fault in enumerate(faults)]
    if seed == HASHES:
        log.append(f"   99.000 {hash('a word')}")
    broken = seed % 100 == VIOLATED and set(faults) >= CULPRITS
    violations = [f"{seed} is done twice"] if broken else []
    return Story(violations, faults, log, f"{seed}/{len(log)}", 3, 60.0)


def _faults(kinds: frozenset[str] | None) -> list[str]:
    names = ("lost_answer", "kill")
    return [
        f"machine-{number % 2}/{names[number % 2]}#{number // 2 if number % 2 == 0 else number}"
        for number in range(SITES)
        if kinds is None or names[number % 2] in kinds
    ]
