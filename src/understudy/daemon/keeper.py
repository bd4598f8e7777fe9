"""The keeper: one small process per run, which outlives the daemon.

`python -I -S keeper.py RUN_DIR` holds the agent's stdin, reaps it, watches the time and writes down
how it ended. It copies no output: stdout and stderr of the agent *are* files of the directory,
because Claude Code and OpenCode lose what the reader of a pipe has not taken when they exit, with
exit status 0. So a dead or stopped daemon costs an agent nothing, and a dead keeper no byte.

It imports little, since there is one keeper per agent. It is one thread, because PDEATHSIG follows
the thread that forked, and because nothing in it waits but `_wait`.

Who may die, and when
---------------------

A run directory goes through lock, state, exit, and back to a free lock, in this order. Each step
is durable before the next (write, fsync, rename, fsync of the directory), and a reader that looks
in the order of `rundir.look` sees nothing that was not so:

    state  lock  exit
      -     -     -    unborn: nothing ever ran, starting is safe
      -    held   -    kept: a keeper is about to start its agent
    there  held   -    kept
    there   *   there  over
    there  free   -    lost: the keeper was killed

The daemon dies
  before spec.json is renamed into place: no keeper was started; the directory is unborn.
  after that, before the keeper has the lock: unborn, and the next daemon starts a second keeper.
      One of the two gets the lock. The other, even one that comes when all is over, finds the lock
      or the state, and leaves. So an agent is started at most once in a directory, ever.
  while the agent works: nobody notices. The keeper is nobody's child (it forks once more when it
      starts), so the daemon that started it and one that found it are in the same position. After
      `orphan_s` without a word from any daemon the agent is stopped: why = orphaned.
  while the agent works at what another machine may be given (R4.11): the keeper was told, when it
      was started and with each promise of the server's, until when the task stays here, and stops
      the agent then, whatever it has heard by ping. So a daemon that was stopped or killed, one
      that comes back and finds no server, and a machine that slept (the clock is the boot's) are
      one case: no two agents work at one task. It is told, not written: a full disk would keep the
      promise from being renewed, and no newer daemon needs to read it.
  between sending a frame and hearing so: frames are numbered; sent again, it is written once.
      In a dialogue the number follows from the spool (`dialogue.py`), so that the next daemon,
      which reads the spool from the start, says again what was said, and nothing is said twice.

The agent dies: SIGCHLD. What it left behind was re-parented to the keeper, a subreaper; it is
swept, after a normal end too, and only when nothing is left is the exit written. So exit.json
means: the tree is gone, `out` grows no more, the directory is free. What even SIGKILL does not end
within `KILL_S` (a process in uninterruptible sleep) is named in `left`.

The keeper is killed
  before state.json: unborn. Nothing ran, for the state is written before the agent is started.
  between state.json and the agent's exec: lost, though nothing ran. That way round is the safe
      one: a run that may have had effects is never started again in its directory.
  while the agent works: PDEATHSIG kills the agent, which looks, in the moment between its fork
      and that request, whether its parent is still there. Its tools, in sessions of their own,
      live on under init; whoever finds the directory lost sweeps them by the marker in their
      environment. The spool ends where the agent did; a result in it is a result.
  between the agent's end and exit.json: the same, and the exit status is not known.
  after exit.json: over. The lock frees itself.

The host loses power: what was not synced may be gone, the tail of the spool too. The spool is not
synced while it grows: what is lost with it, the next attempt does again. Before exit.json it is:
who reads an end reads all that came before it.

The keeper crashes (a bug, no memory): it kills the tree on its way out, then all is as above. A
full disk is no crash: frames are refused, and an exit without room is tried for `orphan_s`.

The host dies: the lock went with the kernel, so: lost. The boot id in state.json differs, no pid
there means anything any more, and the marker finds nothing, which is right.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from select import select
from signal import SIGKILL, SIGTERM
from socket import socket
from typing import Final

if __name__ == "__main__":
    # Run by path, without site: the package's root goes last, where it can shadow nothing.
    sys.path.append(str(Path(__file__).parents[2]))

from understudy.daemon import processes
from understudy.daemon.boottime import boot_s
from understudy.daemon.control import Answer, Control, Refused, Request
from understudy.daemon.locks import take_lock
from understudy.daemon.processes import Process
from understudy.daemon.rundir import (
    CONTROL,
    ERR,
    EXIT,
    FORMAT,
    KEPT,
    LOCK,
    OUT,
    SPEC,
    STATE,
    Exit,
    Spec,
    State,
    Why,
    read_record,
    write_exit_patiently,
    write_record,
)
from understudy.daemon.stdin import Stdin
from understudy.daemon.tree import Tree
from understudy.daemon.watch import Watch, sizes

KILL_AGAIN_S: Final = 0.1
KILL_S: Final = 10.0
SIGNALS_MAX: Final = 512


def main() -> None:
    if os.fork():
        os._exit(0)  # The daemon reaps this one; the keeper is nobody's child.
    os.chdir(sys.argv[1])
    if take_lock(Path(LOCK)) is None:
        _tell_starter("another keeper holds the lock")
    elif Path(STATE).exists() or Path(EXIT).exists():
        _tell_starter("this run was started before")
    else:
        Keeper(read_record(Path(SPEC), Spec)).keep()


def _tell_starter(word: str) -> None:
    """Stdout is a pipe to whoever started us; without a word it says that we crashed."""
    with suppress(BrokenPipeError):  # The starter is gone; the next one will look for itself.
        os.write(1, word.encode())
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _open_spool(name: str) -> int:
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def _wall_s() -> float:
    return time.time()  # noqa: TID251  For people to read: no decision hangs on it.


class Keeper:
    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.started_at = _wall_s()
        self.due: dict[str, float] = {}  # A timer's name, and when it is due.
        self.why: str = Why.EXITED
        self.steps: Iterator[float] | None = None  # Of the stop, once there is one.
        self.trusted_until = spec.trusted_until
        self.interrupt = spec.interrupt  # A dialogue's is known only when its turn has an id.
        self.terminated = False
        self.given_up = False
        self.status: int | None = None  # The agent's, as waitpid gives it.
        self.tree = Tree(spec.run)
        self.wakeup = processes.catch_signals()
        self.watch = Watch(spec.done)
        self.stdin = Stdin()
        self.out, self.err = _open_spool(OUT), _open_spool(ERR)
        self.control = Control(self._answer)

    def keep(self) -> None:
        processes.adopt_orphans()
        write_record(Path(STATE), self._state(agent=None))
        try:
            self.agent = self._spawn()
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self._record_exit(Why.SPAWN_FAILED, error=str(error))
            _tell_starter(KEPT)
            return
        try:
            self._live()
        finally:
            self._signal_tree(SIGKILL)  # Only a crash leaves anything here.
        self._record_exit(self.why)
        Path(CONTROL).unlink(missing_ok=True)  # Who saw the exit may have removed all.

    def _live(self) -> None:
        write_record(Path(STATE), self._state(processes.identify(self.agent.pid)))
        self._set_timers()
        if self.spec.stdin is not None:
            self.stdin.append(self.spec.stdin)
        if self.spec.close_stdin:
            self.stdin.close_when_read()
        _tell_starter(KEPT)
        while not self._is_over():
            self._wait()
            self._reap()
            self._fire_timers()

    def _state(self, agent: Process | None) -> State:
        keeper = processes.identify(os.getpid()) or Process(os.getpid(), 0)
        return State(
            run=self.spec.run,
            boot_id=processes.boot_id(),
            started_at=self.started_at,
            keeper_pid=keeper.pid,
            keeper_start=keeper.start,
            agent_pid=agent and agent.pid,
            agent_start=agent and agent.start,
        )

    def _spawn(self) -> subprocess.Popen[bytes]:
        keeper = os.getpid()
        try:
            return subprocess.Popen(
                self.spec.argv,
                cwd=self.spec.cwd,
                env=self.spec.env | {processes.MARKER: self.spec.run},
                stdin=self.stdin.read_end,
                stdout=self.out,
                stderr=self.err,
                start_new_session=True,
                preexec_fn=lambda: processes.die_with(keeper),  # noqa: PLW1509  One thread.
            )
        finally:
            for end in (self.stdin.read_end, self.out, self.err):
                os.close(end)

    def _set_timers(self) -> None:
        now = time.monotonic()
        self.due = {"look": now + self.watch.pause_s, Why.ORPHANED: now + self.spec.orphan_s}
        if self.spec.max_s is not None:
            self.due[Why.MAX_TIME] = now + self.spec.max_s

    def _is_over(self) -> bool:
        return self.given_up or (self.status is not None and not self.tree.alive())

    def _wait(self) -> None:
        timeout = max(0.0, min(self.due.values()) - time.monotonic())
        sources: list[int | socket] = [self.wakeup, *self.control.sockets()]
        ready, writable, _ = select(sources, self.stdin.waiting_end(), [], timeout)
        for source in ready:
            if isinstance(source, int):
                self._hear_signals()
            else:
                self.control.serve(source)
        if writable:
            self.stdin.flush()

    def _hear_signals(self) -> None:
        if SIGTERM in os.read(self.wakeup, SIGNALS_MAX):
            self._stop(Why.KEEPER_SIGTERM)

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self.agent.pid:
                    self._agent_ended(ended[1])

    def _agent_ended(self, status: int) -> None:
        self.status = status
        self.agent.returncode = os.waitstatus_to_exitcode(status)
        self.stdin.close()
        if not self.terminated:
            self._climb(self._terminating())

    def _fire_timers(self) -> None:
        now = time.monotonic()
        for timer in [timer for timer, due in self.due.items() if due <= now]:
            del self.due[timer]
            match timer:
                case "step":
                    self._step()
                case "look":
                    self._look()
                case why:
                    self._stop(why)

    def _look(self) -> None:
        self.watch.look()
        now = time.monotonic()
        self.due["look"] = now + self.watch.pause_s
        if self.watch.size > self.spec.spool_max:
            self._stop(Why.SPOOL_FULL)
        if self.trusted_until is not None and boot_s() >= self.trusted_until:
            self._stop(Why.DISTRUSTED)
        if self.watch.finds_done():
            self._hang_up()

    def _hang_up(self) -> None:
        """The result is out (R9.3). Told again, it grants no more time."""
        self.stdin.close_when_read()
        self.due.setdefault(Why.DONE, time.monotonic() + self.spec.linger_s)

    def _answer(self, request: Request) -> Answer:
        self.due[Why.ORPHANED] = time.monotonic() + self.spec.orphan_s
        match request:
            case {"op": "ping"}:
                pass
            case {"op": "write", "n": int(number), "frame": str(frame)}:
                self.stdin.write(number, frame)
            case {"op": "close_stdin"}:
                self.stdin.close_when_read()
            case {"op": "trust", "until": float(until)}:
                self.trusted_until = until
            case {"op": "interrupt_with", "frame": str(frame)}:
                self.interrupt = frame
            case {"op": "hang_up"}:
                self._hang_up()
            case {"op": "signal", "number": int(number)} if self.status is None:
                os.kill(self.agent.pid, number)
            case {"op": "stop", "why": str(why)}:
                self._stop(why)
            case _:
                raise Refused(f"cannot do {request!r:.100} now")
        return self._vital_signs()

    def _vital_signs(self) -> Answer:
        out_bytes, err_bytes = sizes()
        return {
            "format": FORMAT,
            "next_n": self.stdin.next_number,
            "stdin_open": self.stdin.is_open,
            "agent_alive": self.status is None,
            "ending": self.why if self.steps else None,
            "out_bytes": out_bytes,
            "err_bytes": err_bytes,
        }

    # A stop climbs a ladder (R7.2): each step yields how long it gives before the next.

    def _stop(self, why: str) -> None:
        """The first reason stands: a second request changes nothing."""
        if self.steps is None:
            self.why = why
            self._climb(self._interrupting())

    def _climb(self, steps: Iterator[float]) -> None:
        self.steps = steps
        self._step()

    def _step(self) -> None:
        assert self.steps is not None
        pause_s = next(self.steps, None)
        if pause_s is None:
            self.given_up = True
        else:
            self.due["step"] = time.monotonic() + pause_s

    def _interrupting(self) -> Iterator[float]:
        self._interrupt()
        yield self.spec.grace_s
        yield from self._terminating()

    def _interrupt(self) -> None:
        if self.interrupt is not None:
            with suppress(Refused):
                self.stdin.interject(self.interrupt)
                return
        os.kill(self.agent.pid, self.spec.interrupt_signal)

    def _terminating(self) -> Iterator[float]:
        self.terminated = True
        self.stdin.close()
        self._signal_tree(SIGTERM)
        yield self.spec.grace_s
        for _ in range(int(KILL_S / KILL_AGAIN_S)):
            self._signal_tree(SIGKILL)
            yield KILL_AGAIN_S

    def _signal_tree(self, number: int) -> None:
        if self.status is not None:
            self.tree.note_swept()
        self.tree.signal(self.agent.pid, number)

    def _record_exit(self, why: str, error: str | None = None) -> None:
        code = None if self.status is None else os.waitstatus_to_exitcode(self.status)
        out_bytes, err_bytes = sizes()
        record = Exit(
            run=self.spec.run,
            why=why,
            started_at=self.started_at,
            ended_at=_wall_s(),
            code=code if code is None or code >= 0 else None,
            signal=-code if code is not None and code < 0 else None,
            error=error,
            out_bytes=out_bytes,
            err_bytes=err_bytes,
            swept=self.tree.swept,
            left=self.tree.names(),
        )
        write_exit_patiently(record, self.spec.orphan_s)


if __name__ == "__main__":
    main()
