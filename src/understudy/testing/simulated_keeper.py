"""A keeper in a simulated world: what `daemon/keeper.py` does, as tasks in virtual time.

It leaves the same files in the same order under the same lock, answers the same requests and climbs
the same ladder; `tests/testing/test_simulated_keeper.py` puts both to the same questions. It sleeps
until something is due, where the real one looks at the spool again and again; what the real one
would see at a look, it sees as late as that may be (`PAUSE_S_MAX`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import final

import trio

from understudy.daemon import rundir
from understudy.daemon.control import Answer, Refused, Request
from understudy.daemon.keeper import KILL_AGAIN_S, KILL_S
from understudy.daemon.locks import is_locked, take_lock
from understudy.daemon.processes import Process
from understudy.daemon.rundir import Exit, Spec, State, Why, read_record, write_exit, write_record
from understudy.daemon.watch import PAUSE_S_MAX
from understudy.testing.claims_of_agents import conclude_from_status
from understudy.testing.evidence import Run
from understudy.testing.simulated_control import SimulatedControl
from understudy.testing.simulated_process import (
    Agent,
    Entry,
    Home,
    Script,
    SimulatedTree,
    Surroundings,
)
from understudy.testing.simulated_stdin import SimulatedStdin
from understudy.testing.simulated_watch import SimulatedWatch
from understudy.testing.virtual_process import VirtualProcess


@final
class SimulatedKeeper:
    """`keep` is its life, in `process`; `word` is what its starter reads once `has_spoken`.

    `descriptors` are its own, and closed when it dies.
    """

    def __init__(self, run_dir: Path, descriptors: Sequence[int], home: Home) -> None:
        self.run_dir = run_dir
        self.home = home
        self.process = VirtualProcess(f"keeper of {run_dir.name}")
        self.process.at_death.append(self._leave)
        self.identity = home.table.enter(Entry("keeper", None, self.hear))
        self.word = ""
        self.has_spoken = trio.Event()
        self.agent: Agent | None = None
        self._descriptors = [*descriptors]
        self._wake = trio.Event()
        self.control = SimulatedControl(run_dir, self._wake_up)
        self._due: dict[str, float] = {}
        self._why: str = Why.EXITED
        self._steps: Iterator[float] | None = None
        self._is_terminated = self._is_given_up = False
        self._status: int | None = None

    # Its life

    async def keep(self) -> None:
        try:
            await self._keep()
        except OSError as crash:
            with suppress(OSError):  # The log may lie on the same full disk.
                (self.run_dir / rundir.LOG).write_text(repr(crash))
            if self.agent is not None:
                self._signal_tree(SIGKILL)
        self.process.unwind()

    async def _keep(self) -> None:
        await self._checkpoint()
        path = self.run_dir / rundir.LOCK
        if is_locked(path) or (lock := take_lock(path)) is None:
            self._speak("another keeper holds the lock")
            return
        self._descriptors.append(lock)
        if (self.run_dir / rundir.STATE).exists() or (self.run_dir / rundir.EXIT).exists():
            self._speak("this run was started before")
            return
        self._open(read_record(self.run_dir / rundir.SPEC, Spec))
        await self._run_agent()

    def _open(self, spec: Spec) -> None:
        self.spec = spec
        self._started_at = self.home.epoch_s()
        self._trusted_until = spec.trusted_until
        self._interrupt_frame = spec.interrupt
        self._tree = SimulatedTree(self.home.table, spec.run)
        self._spool = SimulatedWatch(spec.done)
        self._stdin = SimulatedStdin(self.run_dir)
        for name in (rundir.OUT, rundir.ERR):
            (self.run_dir / name).touch(0o600)
        self.control.is_listening = True

    async def _run_agent(self) -> None:
        await self._checkpoint()
        self._write_state(None)
        await self._checkpoint()
        run, script = self.home.fate(self.run_dir, self.spec)
        if script.cannot_start is not None:
            await self._record_exit(Why.SPAWN_FAILED, error=script.cannot_start)
            self._speak(rundir.KEPT)
            return
        self.agent = agent = self._spawn(run, script)
        await self._checkpoint()
        await self._live(agent)
        if self._why == Why.EXITED and agent.status is not None:
            conclude_from_status(run, agent.status)

    def _spawn(self, run: Run, script: Script) -> Agent:
        home = self.home
        around = Surroundings(self.run_dir, self.spec, home.clock, home.table, home.epoch_s)
        agent = Agent(run, around, self._stdin.pipe, grew=self._grew, child_ended=self._wake_up)
        home.began(run)
        agent.process.start_soon(home.nursery, agent.live, script.play)
        return agent

    async def _live(self, agent: Agent) -> None:
        self._write_state(agent.identity)
        self._set_timers()
        if self.spec.stdin is not None:
            self._stdin.append(self.spec.stdin)
        if self.spec.close_stdin:
            self._stdin.close_when_read()
        self._speak(rundir.KEPT)
        while not self._is_over():
            await self._wait()
            await self._serve()
            if self._status is None and agent.status is not None:
                self._agent_ended(agent.status)
            self._fire_timers()
        await self._record_exit(self._why)

    def _speak(self, word: str) -> None:
        self.word = word
        self.has_spoken.set()

    def _write_state(self, agent: Process | None) -> None:
        state = State(
            run=self.spec.run,
            boot_id=self.home.boot_id,
            started_at=self._started_at,
            keeper_pid=self.identity.pid,
            keeper_start=self.identity.start,
            agent_pid=agent and agent.pid,
            agent_start=agent and agent.start,
        )
        write_record(self.run_dir / rundir.STATE, state)

    def _is_over(self) -> bool:
        return self._is_given_up or (self._status is not None and not self._tree.alive())

    async def _wait(self) -> None:
        with trio.move_on_at(self.home.clock.deadline(min(self._due.values()))):
            await self._wake.wait()
        await self._stay_dead()
        self._wake = trio.Event()

    def _wake_up(self) -> None:
        self._wake.set()

    async def _checkpoint(self) -> None:
        """A moment to be killed at."""
        await trio.lowlevel.checkpoint()
        await self._stay_dead()

    async def _stay_dead(self) -> None:
        """It may have been killed while it was about to run."""
        if not self.process.is_alive:
            await trio.sleep_forever()

    def _agent_ended(self, status: int) -> None:
        self._status = status
        self._stdin.close()
        if not self._is_terminated:
            self._climb(self._terminating())

    # Timers

    def _set_timers(self) -> None:
        now = self.home.clock.now()
        self._due[Why.ORPHANED] = now + self.spec.orphan_s
        if self.spec.max_s is not None:
            self._due[Why.MAX_TIME] = now + self.spec.max_s
        self._watch_trust()

    def _fire_timers(self) -> None:
        clock = self.home.clock
        for timer in [timer for timer, due in self._due.items() if clock.has_come(due)]:
            del self._due[timer]
            match timer:
                case "step":
                    self._step()
                case "result":
                    self._hang_up()
                case Why.DISTRUSTED:
                    self._look_at_trust()
                case why:
                    self._stop(why)

    def _watch_trust(self) -> None:
        if self._trusted_until is not None:
            left_s = max(0.0, self._trusted_until - self.home.boot_s())
            self._due[Why.DISTRUSTED] = self.home.clock.now() + left_s + PAUSE_S_MAX

    def _look_at_trust(self) -> None:
        """The machine's clock may go slower than the world's."""
        if self._trusted_until is not None and self.home.boot_s() >= self._trusted_until:
            self._stop(Why.DISTRUSTED)
        self._watch_trust()

    def _grew(self, out: bytes, err_bytes: int) -> None:
        """The agent has written: what does the next look bring?"""
        has_result = self._spool.see(out, err_bytes)
        if self._spool.size > self.spec.spool_max:
            self._expect(Why.SPOOL_FULL)
        if has_result:
            self._expect("result")

    def _expect(self, timer: str) -> None:
        self._due.setdefault(timer, self.home.clock.now() + PAUSE_S_MAX)
        self._wake_up()

    def _hang_up(self) -> None:
        self._stdin.close_when_read()
        self._due.setdefault(Why.DONE, self.home.clock.now() + self.spec.linger_s)

    # Requests

    async def _serve(self) -> None:
        while self.control.requests:
            client, line = self.control.requests.popleft()
            answer = json.dumps(self._answer_line(line)).encode() + b"\n"
            await self._checkpoint()
            client.answer(answer)

    def _answer_line(self, line: bytes) -> Answer:
        try:
            return {"ok": True, **self._answer(json.loads(line))}
        except Refused as refusal:
            return {"ok": False, "error": str(refusal)}
        except (ValueError, TypeError) as error:
            return {"ok": False, "error": repr(error)}

    def _answer(self, request: Request) -> Answer:
        assert self.agent is not None
        self._due[Why.ORPHANED] = self.home.clock.now() + self.spec.orphan_s
        match request:
            case {"op": "ping"}:
                pass
            case {"op": "write", "n": int(number), "frame": str(frame)}:
                self._stdin.write(number, frame)
            case {"op": "close_stdin"}:
                self._stdin.close_when_read()
            case {"op": "trust", "until": float(until)}:
                self._trusted_until = until
                self._watch_trust()
            case {"op": "interrupt_with", "frame": str(frame)}:
                self._interrupt_frame = frame
            case {"op": "hang_up"}:
                self._hang_up()
            case {"op": "signal", "number": int(number)} if self._status is None:
                self.agent.hear(number)
            case {"op": "stop", "why": str(why)}:
                self._stop(why)
            case _:
                raise Refused(f"cannot do {request!r:.100} now")
        return self._vital_signs()

    def _vital_signs(self) -> Answer:
        return {
            "format": rundir.FORMAT,
            "next_n": self._stdin.next_number,
            "stdin_open": self._stdin.is_open,
            "agent_alive": self._status is None,
            "ending": self._why if self._steps else None,
            "out_bytes": self._spool.out_bytes,
            "err_bytes": self._spool.err_bytes,
        }

    # The ladder (R7.2): each step yields how long it gives before the next.

    def _stop(self, why: str) -> None:
        if self._steps is None:
            self._why = why
            self._climb(self._interrupting())

    def _climb(self, steps: Iterator[float]) -> None:
        self._steps = steps
        self._step()

    def _step(self) -> None:
        assert self._steps is not None
        pause_s = next(self._steps, None)
        if pause_s is None:
            self._is_given_up = True
        else:
            self._due["step"] = self.home.clock.now() + pause_s

    def _interrupting(self) -> Iterator[float]:
        self._interrupt()
        yield self.spec.grace_s
        yield from self._terminating()

    def _interrupt(self) -> None:
        assert self.agent is not None
        if self._interrupt_frame is not None:
            with suppress(Refused):
                self._stdin.interject(self._interrupt_frame)
                return
        self.agent.hear(self.spec.interrupt_signal)

    def _terminating(self) -> Iterator[float]:
        self._is_terminated = True
        self._stdin.close()
        self._signal_tree(SIGTERM)
        yield self.spec.grace_s
        for _ in range(int(KILL_S / KILL_AGAIN_S)):
            self._signal_tree(SIGKILL)
            yield KILL_AGAIN_S

    def _signal_tree(self, number: int) -> None:
        if self._status is not None:
            self._tree.note_swept()
        self._tree.signal(number)

    async def _record_exit(self, why: str, error: str | None = None) -> None:
        await self._checkpoint()
        code = self._status
        record = Exit(
            run=self.spec.run,
            why=why,
            started_at=self._started_at,
            ended_at=self.home.epoch_s(),
            code=code if code is None or code >= 0 else None,
            signal=-code if code is not None and code < 0 else None,
            error=error,
            out_bytes=self._spool.out_bytes,
            err_bytes=self._spool.err_bytes,
            swept=self._tree.swept,
            left=self._tree.names(),
        )
        await self._write_exit_patiently(record)

    async def _write_exit_patiently(self, record: Exit) -> None:
        give_up_at = (clock := self.home.clock).now() + self.spec.orphan_s
        while True:
            try:
                write_exit(self.run_dir, record)
                self.home.ended()
                return
            except OSError:
                if clock.has_come(give_up_at):
                    raise
            await trio.sleep(rundir.RECORD_AGAIN_S)
            await self._stay_dead()

    # What is done to it

    def hear(self, number: int) -> None:
        if number == SIGKILL:
            self.process.unwind()
        elif number == SIGTERM and self.agent is not None:
            self._stop(Why.KEEPER_SIGTERM)
            self._wake_up()

    def stand_still(self) -> None:
        self.process.suspend()
        if self.agent is not None and self.agent.status is None:
            self.agent.stand_still()

    def go_on(self) -> None:
        if self.agent is not None and self.agent.status is None:
            self.agent.go_on()
        if self._due:
            self._watch_trust()
            self._wake_up()
        self.process.resume()

    def _leave(self) -> None:
        """What the kernel does: its agent was to die with it, its sockets and locks are gone."""
        if self.agent is not None:
            self.agent.hear(SIGKILL)
        self.control.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self.home.table.leave(self.identity)
        self.has_spoken.set()
        self.process.unwind()
