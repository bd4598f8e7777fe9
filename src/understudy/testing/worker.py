"""One process that conducts trials for us; it may die of any of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, final

import msgspec
import trio

from understudy.testing.trial import WORLD, Outcome, Trial

LIMIT_S: Final = 120.0
GRACE_S: Final = 10.0
STDERR_LINES: Final = 60
ANSWER_BYTES: Final = 65536


@final
class Worker:
    """A process that conducts one trial after the other; when it dies, the next gets a new one.

    `source`: the directory whose `understudy` it imports, else ours.
    """

    def __init__(
        self,
        dsn: str,
        hash_seed: int,
        *,
        stderr: Path,
        world: str = WORLD,
        limit_s: float = LIMIT_S,
        source: Path | None = None,
    ) -> None:
        self._dsn = dsn
        self._hash_seed = hash_seed
        self._stderr = stderr
        self._world = world
        self._limit_s = limit_s
        self._source = {} if source is None else {"PYTHONPATH": str(source)}
        self._process: trio.Process | None = None

    async def conduct(self, trial: Trial) -> Outcome:
        """That it dies or hangs is a finding like any other."""
        process = self._process = self._process or await self._open()
        began = time.monotonic()
        answer = b""
        with trio.move_on_after(self._limit_s + GRACE_S):
            answer = await _ask(process, msgspec.json.encode(trial) + b"\n")
        if answer.endswith(b"\n"):
            return msgspec.json.decode(answer, type=Outcome)
        await self.aclose()
        if time.monotonic() - began >= self._limit_s:
            how = f"the world hangs: no end within {self._limit_s:g} s"
        else:
            how = f"the world's process died: exit code {process.returncode}"
        said = self._stderr.read_text(errors="replace").splitlines()
        return Outcome(seed=trial.seed, violations=[how], log=said[-STDERR_LINES:])

    async def aclose(self) -> None:
        """Kill it; it has nothing to save."""
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
            with trio.CancelScope(shield=True):
                await process.wait()

    async def _open(self) -> trio.Process:
        command = [sys.executable, "-m", "understudy.testing.trial_worker"]
        with self._stderr.open("wb") as stderr:
            return await trio.lowlevel.open_process(
                [*command, self._dsn, self._world, str(self._limit_s)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "PYTHONHASHSEED": str(self._hash_seed), **self._source},
                start_new_session=True,  # Ctrl-C in the terminal is for us; we tell it.
            )


async def _ask(process: trio.Process, order: bytes) -> bytes:
    """The answer's line; what there is of it, if the process dies."""
    assert process.stdin is not None
    assert process.stdout is not None
    answer = bytearray()
    try:
        await process.stdin.send_all(order)
        while not answer.endswith(b"\n"):
            piece = await process.stdout.receive_some(ANSWER_BYTES)
            if not piece:
                break
            answer += piece
    except trio.BrokenResourceError:
        pass  # It died before it read the order.
    return bytes(answer)
