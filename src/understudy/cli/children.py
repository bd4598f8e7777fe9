"""Processes of ours that end with us, however we end."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Final

import httpx2
import trio

from understudy.parent import VARIABLE

STOP_S: Final = 12.0
POLL_S: Final = 0.1


async def open_child(
    arguments: list[str],
    environment: Mapping[str, str],
    *,
    stderr: IO[bytes] | None = None,
    descriptors: Sequence[int] = (),
) -> trio.Process:
    """`understudy` with these arguments; its stdin tells it when we are gone."""
    return await trio.lowlevel.open_process(
        [sys.executable, "-m", "understudy", *arguments],
        stdin=subprocess.PIPE,
        stdout=stderr,
        stderr=stderr,
        env={**environment, VARIABLE: "1"},
        pass_fds=descriptors,
        start_new_session=True,  # Ctrl-C in the terminal is for us; we tell it.
    )


async def end_child(process: trio.Process) -> None:
    """Ask it to stop, then insist. Under the caller's shield."""
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        with trio.move_on_after(STOP_S):
            await process.wait()
            return
        process.kill()
    await process.wait()


async def wait_answers(address: str) -> None:
    """Until the server there is well."""
    async with httpx2.AsyncClient(trust_env=False) as http:
        while True:
            try:
                if (await http.get(f"{address}/api/health")).is_success:
                    return
            except httpx2.TransportError:
                pass  # It is not listening yet.
            await trio.sleep(POLL_S)
