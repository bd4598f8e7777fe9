"""The daemon's view of a run: start its keeper, find it again, speak with it, hear of its end."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import msgspec
import trio

from understudy.daemon import keeper, rundir
from understudy.daemon.machine import here
from understudy.daemon.processes import Process
from understudy.daemon.rundir import Exit, Spec, Standing, State

LOOK_AGAIN_S: Final = 0.05
END_S: Final = 30.0
"""A keeper has done it within `2 * grace_s + KILL_S`, 14 s."""
LOG_TAIL: Final = 2000


class KeeperFailed(Exception):
    """No keeper came up; the directory shows (`Kept.look`) whether something ran."""


class KeeperGone(Exception):
    """Nobody answers: the run is over, or its keeper is lost. `Kept.look` tells which."""


class KeeperRefused(Exception):
    pass


class VitalSigns(msgspec.Struct, frozen=True):
    """What every answer of a keeper carries."""

    next_n: int  # the number the next frame must have
    stdin_open: bool
    agent_alive: bool
    ending: str | None  # why, once it is being ended
    out_bytes: int
    err_bytes: int


@final
@dataclass(frozen=True)
class Kept:
    """A run, known by its directory. Holds nothing open: each request has its own connection.

    Requests raise `KeeperGone` and `KeeperRefused`; a keeper that hangs answers never, so each
    of them stands under the caller's deadline. Every one renews the keeper's `orphan_s`.
    """

    run_dir: Path

    def look(self) -> Standing:
        return rundir.look(self.run_dir)

    def spec(self) -> Spec:
        return rundir.read_record(self.run_dir / rundir.SPEC, Spec)

    def state(self) -> State:
        return rundir.read_record(self.run_dir / rundir.STATE, State)

    def exit(self) -> Exit:
        return rundir.read_record(self.run_dir / rundir.EXIT, Exit)

    def minds_promises(self) -> bool:
        """Its keeper lives, and ends the run itself when another machine may have been given it: by
        the last promise that any daemon told it (R4.11). Older keepers were told none."""
        return self.look() is Standing.KEPT and self.spec().trusted_until is not None

    def frames(self) -> list[str]:
        """What was written to the agent's stdin so far, interrupts too, in order."""
        *lines, _torn = (self.run_dir / rundir.FRAMES).read_bytes().split(b"\n")
        return [json.loads(line)["frame"] for line in lines]

    async def ping(self) -> VitalSigns:
        return await self._ask(op="ping")

    async def trust(self, until_boot_s: float) -> VitalSigns:
        """Until when the task stays on this machine (R4.11); the last word counts."""
        return await self._ask(op="trust", until=until_boot_s)

    async def write(self, number: int, frame: str) -> VitalSigns:
        """Send frame `number`, or learn that it was sent. `next_n` of any answer is the next."""
        return await self._ask(op="write", n=number, frame=frame)

    async def close_stdin(self) -> VitalSigns:
        """Once the agent has read what was written."""
        return await self._ask(op="close_stdin")

    async def interrupt_with(self, frame: str) -> VitalSigns:
        """From now on a stop begins with this frame; the last one counts."""
        return await self._ask(op="interrupt_with", frame=frame)

    async def hang_up(self) -> VitalSigns:
        """The agent has its result: it gets `linger_s` to leave by itself (R9.3)."""
        return await self._ask(op="hang_up")

    async def signal(self, number: int) -> VitalSigns:
        return await self._ask(op="signal", number=number)

    async def stop(self, why: str) -> VitalSigns:
        """Begin to end the whole tree (R7.2); `wait_exit` says when it is gone."""
        return await self._ask(op="stop", why=why)

    async def wait_exit(self) -> Exit | None:
        """None when the keeper is lost."""
        while (standing := self.look()) is Standing.KEPT:
            await self._wait_hang_up()
            await trio.sleep(LOOK_AGAIN_S)
        return self.exit() if standing is Standing.OVER else None

    async def end(self, why: str) -> None:
        """Stop the run; returns when its tree is gone, whoever is left to say so.

        A keeper that has not done it in time hangs: it is killed, and its agent with it.
        """
        with trio.move_on_after(END_S):
            await self._end_patiently(why)
        if self.look() is Standing.KEPT:
            self._kill_keeper()
            with trio.move_on_after(END_S):
                await self.wait_exit()
        if self.look() is Standing.LOST:
            await self.sweep()

    async def _end_patiently(self, why: str) -> None:
        while self.look() is Standing.KEPT:
            try:
                await self.stop(why)
                await self.wait_exit()
            except (KeeperGone, KeeperRefused):
                await trio.sleep(LOOK_AGAIN_S)  # It is coming up, or going down.

    def _kill_keeper(self) -> None:
        with suppress(FileNotFoundError):  # No state: it has started nothing.
            state = self.state()
            here().send([Process(state.keeper_pid, state.keeper_start)], signal.SIGKILL)

    async def sweep(self) -> list[str]:
        """Kill what a lost keeper left behind, by its mark; the names of what there was."""
        assert self.look() is Standing.LOST
        run, swept = self.spec().run, dict[str, None]()
        with trio.move_on_after(keeper.KILL_S):  # Not even SIGKILL ends what waits for a dead disk.
            while left := here().marked(run):
                swept |= dict.fromkeys(here().name_of(process) for process in left)
                here().send(left, signal.SIGKILL)
                await trio.sleep(LOOK_AGAIN_S)
        return list(swept)

    async def _ask(self, **request: object) -> VitalSigns:
        try:
            async with await self._connect() as stream:
                await stream.send_all(json.dumps(request).encode() + b"\n")
                answer = await _receive_line(stream)
        except trio.BrokenResourceError:
            raise KeeperGone(self.run_dir) from None
        if not answer.endswith(b"\n"):
            raise KeeperGone(self.run_dir)
        fields = json.loads(answer)
        if not fields["ok"]:
            raise KeeperRefused(fields["error"])
        return msgspec.convert(fields, VitalSigns)

    async def _wait_hang_up(self) -> None:
        try:
            async with await self._connect() as stream:
                await _receive_line(stream)
        except (KeeperGone, trio.BrokenResourceError):
            pass  # That is what was waited for.

    async def _connect(self) -> trio.abc.Stream:
        try:
            directory = os.open(self.run_dir, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # It is still being prepared.
            raise KeeperGone(self.run_dir) from None
        try:
            return await here().connect(self._address(directory))
        except OSError:
            raise KeeperGone(self.run_dir) from None
        finally:
            os.close(directory)

    def _address(self, directory: int) -> Path:
        """Through a descriptor: an address has room for 108 bytes, a path may have more."""
        through = Path(f"/proc/self/fd/{directory}")
        return (through if through.exists() else self.run_dir) / rundir.CONTROL


async def spawn_keeper(run_dir: Path, spec: Spec, *, descriptors: Sequence[int] = ()) -> Kept:
    """Returns when the agent runs, or when the failure to start it is recorded as the run's exit.

    The directory must be unborn (`Standing`); its parent must exist. The keeper holds the
    `descriptors` for as long as it lives. Raises `KeeperFailed`.
    """
    _prepare(run_dir, spec)
    word = await here().start_keeper(run_dir, descriptors)
    if word != rundir.KEPT:
        raise KeeperFailed(word or _last_words(run_dir))
    return Kept(run_dir)


def _prepare(run_dir: Path, spec: Spec) -> None:
    run_dir.mkdir(mode=0o700, exist_ok=True)
    rundir.sync_directory(run_dir.parent)
    if (standing := rundir.look(run_dir)) is not Standing.UNBORN:
        raise KeeperFailed(f"{run_dir} is {standing}")
    rundir.write_record(run_dir / rundir.SPEC, spec)


def _last_words(run_dir: Path) -> str:
    return (run_dir / rundir.LOG).read_text(errors="replace")[-LOG_TAIL:]


async def _receive_line(stream: trio.abc.Stream) -> bytes:
    line = b""
    while not line.endswith(b"\n") and (data := await stream.receive_some()):
        line += data
    return line
