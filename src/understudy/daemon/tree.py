"""Every process of one run, as its keeper finds and signals them (R7.2).

Run in the keeper, therefore standard library only.
"""

from __future__ import annotations

import os

from understudy.daemon import processes
from understudy.daemon.processes import Process


class Tree:
    def __init__(self, run: str) -> None:
        self._run = run
        self.swept: list[str] = []

    def alive(self) -> list[Process]:
        """Nothing escapes a subreaper; the marker is for what an earlier, killed one has lost."""
        found = [*processes.descendants(os.getpid()), *processes.marked(self._run)]
        return list(dict.fromkeys(found))

    def names(self) -> list[str]:
        return [processes.name(process) for process in self.alive()]

    def signal(self, leader: int, number: int) -> None:
        # Listed before the first signal: who loses its parent in between stays listed.
        processes.send(self.alive(), number)
        processes.send_group(leader, number)

    def note_swept(self) -> None:
        """Remember what outlived the agent, for the record."""
        self.swept = list(dict.fromkeys(self.swept + self.names()))
