"""A machine of a simulated fleet: it follows the daemon's protocol, and has nothing else of one.

Its runs outlive its daemon, stand still while it sleeps, and are gone after a power cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, final
from uuid import UUID

import trio

from understudy.core.records import Message, Usage
from understudy.core.struct import Struct
from understudy.http.auth import Machine
from understudy.testing import faults
from understudy.testing.board import PROVIDER
from understudy.testing.fleet_fortune import (
    MACHINE_KINDS,
    Hours,
    next_blow,
    preparing_s,
    reason,
    work_s,
)
from understudy.testing.fleet_ledger import Ledger
from understudy.testing.fleet_node import LEASES, Line, LineLost, Unavailable
from understudy.wire import daemon as wire
from understudy.wire.errors import Refusal
from understudy.wire.frames import Cancel, TasksPushed

RETRY_S: Final = 4.0
RECONNECT_S: Final = 5.0
"""At most."""
MESSAGES_S: Final = 60.0
"""Between two batches of messages."""
KILL_S: Final = 0.5
OFFICE: Final = "machine-off"
"""What befalls runs whose machine is switched off in the evening."""
SHORTLY: Final = {
    faults.KEEPER_KILLED.name: "keeper_lost",
    faults.AGENT_KILLED.name: "agent_killed",
}


class NoLongerMine(Exception):
    """The server has said that another holds this task, or that it is over."""


@final
@dataclass(eq=False)
class Run:
    task: wire.ClaimedTask
    left_s: float
    why: str | None
    """The reason with which it fails."""
    has_begun: bool = False
    has_ended: bool = False
    is_stopping: bool = False
    is_broken: bool = False
    """Something has ended it before its time: only its next attempt mends that."""
    said: int = 0
    life: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def held(self) -> wire.HeldTask:
        return wire.HeldTask(task_id=self.task.id, claim_token=self.task.claim_token)

    def end(self, why: str) -> None:
        """Whoever ends it, the first one counts."""
        if not self.has_ended and not self.is_stopping:
            self.why, self.has_ended, self.is_broken = why, True, True
            self.life.cancel()

    def stop(self) -> None:
        """As ordered (R7.1)."""
        if not self.has_ended and not self.is_stopping:
            self.is_stopping = True
            self.life.cancel()


@final
@dataclass
class FleetMachine:
    name: str
    slots: int
    hours: Hours
    dice: Random
    me: Machine
    ledger: Ledger
    connect: Callable[[Machine], Line]
    nursery: trio.Nursery
    runs: dict[UUID, Run] = field(default_factory=dict)
    line: Line | None = None
    _granted: int = 0
    _trusted_until: float = math.inf
    _births: int = 0
    _reachable: trio.Event = field(default_factory=trio.Event)
    _awake: trio.Event = field(default_factory=trio.Event)
    _connected: trio.Event = field(default_factory=trio.Event)

    async def live(self) -> None:
        self.nursery.start_soon(self._suffer)
        while True:
            await self._reachable.wait()
            try:
                line = await self._open()
                await line.closed.wait()
            except (LineLost, Unavailable):
                pass
            self._close()
            await trio.sleep(self.dice.uniform(0.5, RECONNECT_S))

    # The connection

    async def _open(self) -> Line:
        line = self.line = self.connect(self.me)
        held = [run.held for run in self.runs.values() if not run.has_ended]
        finished = [run.held for run in self.runs.values() if run.has_ended]
        answer = await line.call(
            "register",
            wire.Register(
                workspace_id=str(self.me.workspace_id),
                daemon_id=self.name,
                runtimes=[wire.RuntimeOffer(type=PROVIDER)],
                incarnation=f"{self.name}.{self._births}",
                inventory=wire.Inventory(running=held, finished=finished),
            ),
        )
        if isinstance(answer, Refusal):
            raise LineLost(answer.error)
        line.runtime_ids = [each.id for each in answer.runtimes]
        self._trusted_until = math.inf
        self._heed(answer.verdicts)
        self._granted = max(0, self.slots - len(self.runs))
        line.link.grant(self._granted)
        await line.attach()
        if line.closed.is_set():
            raise LineLost("attach")
        self._connected.set()
        self.nursery.start_soon(self._receive, line)
        return line

    def _heed(self, verdicts: dict[str, wire.Verdict]) -> None:
        for task_id, verdict in verdicts.items():
            run = self.runs.get(UUID(task_id))
            if run is not None and verdict == "stop":
                run.stop()
            elif run is not None:
                self.ledger.recovered(run.task.id)

    def _close(self) -> None:
        """What is closed by the node is a fault of the node's."""
        line, self.line, self._connected = self.line, None, _unset(self._connected)
        if line is None:
            return
        line.close()
        if line.why:
            self._hurt(line.why)
        self._trusted_until = line.trusted_until
        self.nursery.start_soon(self._mind_trust, line.trusted_until)

    async def _mind_trust(self, until: float) -> None:
        """R4.11. A machine that sleeps finds out when it wakes."""
        await trio.sleep_until(until)
        await self._awake.wait()
        if self._trusted_until == until:
            self._give_up()

    def _give_up(self) -> None:
        for run in list(self.runs.values()):
            if run.task.is_movable:
                run.end("runtime_offline")

    async def _receive(self, line: Line) -> None:
        async for frame in line.link.frames:
            if line.closed.is_set():
                return
            match frame:
                case TasksPushed(payload=tasks):
                    for task in tasks:
                        self._take(task)
                case Cancel(payload=stops):
                    for each in stops:
                        if (run := self.runs.get(each.task_id)) is not None:
                            run.stop()
                case _:
                    pass

    # Runs

    def _take(self, task: wire.ClaimedTask) -> None:
        if (before := self.runs.pop(task.id, None)) is not None:
            before.end("runtime_recovery")
        self.ledger.inherits(task)
        run = self.runs[task.id] = Run(task, work_s(self.dice), reason(self.dice))
        if len(self.runs) > self.slots:
            self.ledger.violate(f"{self.name} got more than it has room for")
        self.nursery.start_soon(self._look_after, run)

    async def _look_after(self, run: Run) -> None:
        try:
            with run.life:
                await self._prepare(run)
                await self._work(run)
                run.has_ended = True
            self.ledger.stands_still(run.task)
            await self._report(run)
        except NoLongerMine:
            run.has_ended = True
            self.ledger.stands_still(run.task)
        if self.runs.get(run.task.id) is run:
            del self.runs[run.task.id]
            await self._free_slot()

    async def _free_slot(self) -> None:
        if (line := self.line) is not None and self._connected.is_set():
            self._granted += 1
            line.link.grant(self._granted)
            await line.attach()

    async def _prepare(self, run: Run) -> None:
        left_s = preparing_s(self.dice)
        while left_s > LEASES.renew_every_s:
            await self._rest(LEASES.renew_every_s)
            await self._tell(run, "lease", wire.Held(claim_token=run.task.claim_token))
            left_s -= LEASES.renew_every_s
        await self._rest(left_s)
        await self._tell(run, "start", wire.Held(claim_token=run.task.claim_token))
        self.ledger.starts(run.task.id)

    async def _work(self, run: Run) -> None:
        await self._awake.wait()
        run.has_begun = True
        self.ledger.runs(run.task)
        token, name = run.task.claim_token, f"session of {run.task.id}"
        await self._tell(
            run, "session", wire.Session(claim_token=token, session_id=name, work_dir="w")
        )
        while run.left_s > 0:
            step_s = min(MESSAGES_S, run.left_s)
            await self._rest(step_s)
            run.left_s -= step_s
            text = Message(seq=run.said, type="text", content="One step further.")
            await self._tell(run, "messages", wire.Messages(claim_token=token, messages=[text]))
            run.said += 1

    async def _report(self, run: Run) -> None:
        task, token = run.task, run.task.claim_token
        if run.is_stopping:
            await self._rest(KILL_S)
            await self._tell(run, "stopped", wire.Held(claim_token=token))
            return
        if run.has_begun:
            spent = [Usage(provider=PROVIDER, model="m", output_tokens=1000)]
            await self._tell(run, "usage", wire.UsageReport(claim_token=token, usage=spent))
        if run.why is None:
            done = await self._tell(
                run, "complete", wire.Complete(claim_token=token, output="Done.")
            )
        else:
            failed = wire.Fail(claim_token=token, error=run.why, failure_reason=run.why)
            done = await self._tell(run, "fail", failed)
        self.ledger.acknowledged[task.id] = done.status

    async def _tell(self, run: Run, name: str, body: Struct) -> Any:  # noqa: ANN401
        """Until there is a definite answer. Raises `NoLongerMine`."""
        while True:
            await self._connected.wait()
            await self._awake.wait()
            if (line := self.line) is None:
                continue
            try:
                answer = await line.call(name, body, run.task.id)
            except LineLost:
                continue
            except Unavailable as away:
                self.ledger.hurt(str(away), run.task.id)
                await trio.sleep(RETRY_S)
                continue
            if not isinstance(answer, Refusal):
                if not run.is_broken:
                    self.ledger.recovered(run.task.id)
                return answer
            if answer.status < 500:  # noqa: PLR2004
                raise NoLongerMine
            await trio.sleep(RETRY_S)

    async def _rest(self, seconds: float) -> None:
        """Time passes for whoever works here; at most one rest goes on while the machine sleeps."""
        await trio.sleep(seconds)
        await self._awake.wait()

    # What befalls it

    async def _suffer(self) -> None:
        blow_in_s = self._next()
        while True:
            now = trio.current_time()
            is_on, until = self.hours.next_change(now)
            if not is_on:
                await trio.sleep_until(until)
                continue
            self._wake()
            strikes_at = now + blow_in_s
            await trio.sleep_until(min(until, strikes_at))
            blow_in_s -= trio.current_time() - now
            if trio.current_time() >= strikes_at:
                await self._strike()
                blow_in_s = self._next()
            else:
                self._sleep(OFFICE)

    def _next(self) -> float:
        self._blow = next_blow(0.0, MACHINE_KINDS, self.dice)
        return self._blow.at

    async def _strike(self) -> None:
        kind, seconds = self._blow.kind, self._blow.lasts_s
        self.ledger.strike(kind.name)
        if kind.name in SHORTLY:
            self._kill_one(kind.name)
        elif kind in {faults.ASLEEP, faults.ASLEEP_LONG}:
            self._sleep(kind.name)
            await trio.sleep(seconds)
        elif kind is faults.PARTITION:
            self._lose_contact(kind.name)
            await trio.sleep(seconds)
        else:
            if kind is faults.POWER_CUT:
                self._crash(kind.name)
            await self._restart_daemon(kind.name, seconds)

    def _kill_one(self, kind: str) -> None:
        alive = [run for run in self.runs.values() if run.has_begun and not run.has_ended]
        if alive:
            run = self.dice.choice(alive)
            self.ledger.hurt(kind, run.task.id)
            run.end(SHORTLY[kind])

    def _crash(self, kind: str) -> None:
        for run in self.runs.values():
            self.ledger.hurt(kind, run.task.id)
            if run.has_begun:
                run.end("keeper_lost")

    async def _restart_daemon(self, kind: str, seconds: float) -> None:
        self._births += 1
        line = self.line
        self._lose_contact(kind)
        if line is not None:
            line.drop()
        await trio.sleep(seconds)

    def _sleep(self, kind: str) -> None:
        self.ledger.is_off(self.name)
        self._awake = _unset(self._awake)
        self._lose_contact(kind)
        for run in self.runs.values():
            self.ledger.stands_still(run.task)

    def _lose_contact(self, kind: str) -> None:
        """The node may take a while to notice."""
        self._reachable = _unset(self._reachable)
        self._hurt(kind)
        self._close()

    def _hurt(self, kind: str) -> None:
        for run in self.runs.values():
            self.ledger.hurt(kind, run.task.id)

    def _wake(self) -> None:
        """Whose promise has ended meanwhile is ended before it does a thing."""
        self.ledger.is_on(self.name)
        if trio.current_time() >= self._trusted_until:
            self._give_up()
        if not self._awake.is_set():
            for run in self.runs.values():
                if run.has_begun and not run.has_ended and not run.is_stopping:
                    self.ledger.runs(run.task)
            self._awake.set()
        self._reachable.set()


def _unset(event: trio.Event) -> trio.Event:
    """Whoever waits for one that is not set goes on waiting for it."""
    return trio.Event() if event.is_set() else event
