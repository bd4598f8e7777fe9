"""A daemon in a simulated world: it dies and is born again, its machine and its agents go on.

It follows the protocol and nothing else: what it has on disk it brings to an end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, final
from uuid import UUID

import trio

from understudy.core.records import Message, Usage
from understudy.core.struct import Struct
from understudy.testing import fortune
from understudy.testing.evidence import Run
from understudy.testing.line import Line, LineLost
from understudy.testing.simulated_machine import Held, Process, SimulatedMachine
from understudy.wire import daemon as wire
from understudy.wire.errors import Refusal
from understudy.wire.frames import Cancel, RuntimesGone, TasksPushed

RECONNECT_S: Final = (0.5, 1.0, 5.0)
RETRY_S: Final = 4.0
HEARTBEAT_S: Final = 15.0
RENEW_S: Final = 15.0
REBIRTH_S: Final = (0.0, 1.0, 30.0, 70.0, 200.0)
WATCH_S: Final = 10.0
KILL_S: Final = (0.0, 0.5, 6.0)
"""For a tree of processes to be gone (R7.2)."""

Connect = Callable[[SimulatedMachine], Awaitable[Line]]
Attach = Callable[[Line, list[UUID]], None]


class NoLongerMine(Exception):
    """The server has said that another holds this task, or that it is over."""


@final
@dataclass
class SimulatedDaemon:
    machine: SimulatedMachine
    workspace_id: UUID
    connect: Connect
    attach: Attach

    async def live(self) -> None:
        """Incarnations without end; while there is none, nobody minds the agents."""
        machine, chance, number = self.machine, self.machine.chance, 0
        while True:
            number += 1
            life_s = chance.pick(f"{machine.name}/life", (20.0, 60.0, 150.0, 400.0))
            mortal = chance.strikes(f"{machine.name}/death", 0.7)
            with trio.move_on_after(life_s) if mortal else trio.CancelScope():
                await Incarnation(self, f"{machine.name}.{number}").live()
            machine.auditor.note(f"{machine.name}'s daemon dies")
            if chance.strikes(f"{machine.name}/reboot", 0.2):
                machine.reboot()
            elif chance.strikes(f"{machine.name}/disk", 0.07):
                machine.lose_disk()
            await self._nobody(chance.pick(f"{machine.name}/rebirth", REBIRTH_S))

    async def _nobody(self, seconds: float) -> None:
        born_at = trio.current_time() + seconds
        await trio.sleep_until(min(born_at, max(trio.current_time(), self.machine.trusted_until)))
        if trio.current_time() < born_at:
            self.machine.loosen()
        await trio.sleep_until(born_at)
        await self.machine.awake()


@final
class Incarnation:
    """The memory of the process: gone when it dies."""

    def __init__(self, daemon: SimulatedDaemon, name: str) -> None:
        self._daemon = daemon
        self._machine = daemon.machine
        self._chance = daemon.machine.chance
        self._name = name
        self._line: Line | None = None
        self._runtimes: list[UUID] = []
        self._granted = 0
        self._connected = trio.Event()
        self._promised = trio.Event()
        self._at_work: dict[UUID, trio.CancelScope] = {}

    async def live(self) -> None:
        async with trio.open_nursery() as self._nursery:
            for task_id in self._machine.disk:
                self._nursery.start_soon(self._work, task_id)
            self._nursery.start_soon(self._mind_trust)
            while True:
                try:
                    await self._machine.awake()
                    await self._converse(await self._daemon.connect(self._machine))
                except* LineLost:
                    pass
                self._line = self._machine.line = None
                if self._connected.is_set():
                    self._connected = trio.Event()
                await trio.sleep(self._chance.pick(f"{self._name}/reconnect", RECONNECT_S))

    # The connection

    async def _converse(self, line: Line) -> None:
        self._machine.line = line
        try:
            await self._register(line)
            self._line, self._granted = line, 0
            self._connected.set()
            self._grant(max(0, self._machine.slots - len(self._machine.disk)))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._heartbeat, line)
                nursery.start_soon(self._receive, line)
                await line.closed.wait()
                raise LineLost("closed")
        finally:
            line.close()

    async def _call(self, line: Line, name: str, body: Struct, subject: UUID | None = None) -> Any:  # noqa: ANN401
        """As long as the machine sleeps, nothing goes out and nothing is read."""
        await self._machine.awake()
        answer = await line.call(name, body, subject)
        await self._machine.awake()
        return answer

    async def _register(self, line: Line) -> None:
        sent_at = trio.current_time()
        self._machine.auditor.registers(self._machine.name)
        answer = await self._call(line, "register", self._registration())
        if isinstance(answer, Refusal):
            raise LineLost(answer.error)
        self._runtimes = [each.id for each in answer.runtimes]
        self._trust(sent_at, answer.trust_s)
        for task_id, verdict in answer.verdicts.items():
            if verdict == "stop":
                self._stop(UUID(task_id))

    def _registration(self) -> wire.Register:
        disk = self._machine.disk
        return wire.Register(
            workspace_id=str(self._daemon.workspace_id),
            daemon_id=self._machine.name,
            runtimes=[wire.RuntimeOffer(type="scripted")],
            incarnation=self._name,
            inventory=wire.Inventory(
                running=[_held(i, held) for i, held in disk.items() if not held.has_end],
                finished=[_held(i, held) for i, held in disk.items() if held.has_end],
            ),
        )

    async def _heartbeat(self, line: Line) -> None:
        while True:
            await self._machine.rest(HEARTBEAT_S)
            sent_at = trio.current_time()
            asked = wire.Heartbeats(runtime_ids=self._runtimes)
            heard = await self._call(line, "heartbeats", asked)
            if isinstance(heard, wire.HeartbeatsHeard):
                if heard.gone:
                    raise LineLost("register again")
                self._trust(sent_at, heard.trust_s)
                for each in heard.cancelled:
                    self._cancel(each.task_id)

    async def _receive(self, line: Line) -> None:
        async for frame in line.link.frames:
            await self._machine.awake()
            if self._machine.is_cut_down:
                break
            match frame:
                case TasksPushed(payload=tasks):
                    if self._chance.strikes(f"{self._machine.name}/lost_push", 0.05):
                        break
                    for task in tasks:
                        self._take(task)
                case Cancel(payload=stops):
                    if not self._chance.strikes(f"{self._machine.name}/lost_cancel", 0.2):
                        for each in stops:
                            self._cancel(each.task_id)
                case RuntimesGone():
                    break
                case _:
                    pass
        raise LineLost("closed")

    def _grant(self, slots: int) -> None:
        if (line := self._line) is not None:
            self._granted += slots
            line.link.grant(self._granted)
            self._daemon.attach(line, self._runtimes)

    # Trust (R4.11)

    def _trust(self, sent_at: float, trust_s: dict[UUID, float]) -> None:
        if not trust_s:
            return
        self._machine.trusted_until = sent_at + min(trust_s.values())
        self._machine.auditor.promised(self._machine.name, self._machine.trusted_until)
        self._promised.set()
        self._promised = trio.Event()

    async def _mind_trust(self) -> None:
        while True:
            if trio.current_time() < (until := self._machine.trusted_until):
                with trio.move_on_at(until):
                    await self._promised.wait()
            else:
                for task_id in self._machine.movable():
                    self._give_up(task_id)
                await self._promised.wait()

    def _give_up(self, task_id: UUID) -> None:
        self._machine.auditor.note(f"{self._name} may have lost {task_id}")
        held = self._machine.disk[task_id]
        if held.process is not None:
            held.process.kill()
        if not held.is_stopping:
            held.is_distrusted = True
            self._begin_again(task_id)

    # Tasks

    def _take(self, task: wire.ClaimedTask) -> None:
        assert task.claim_token is not None
        self._machine.auditor.claimed(self._machine.name, task.claim_token, task.id)
        if (held := self._machine.disk.get(task.id)) is not None and held.process is not None:
            held.process.kill()
        self._machine.disk[task.id] = Held(task)
        if len(self._machine.disk) > self._machine.slots:
            self._machine.auditor.violations.append(f"{self._name} got more than it has room for")
        self._begin_again(task.id)

    def _begin_again(self, task_id: UUID) -> None:
        if (work := self._at_work.pop(task_id, None)) is not None:
            work.cancel()
        self._nursery.start_soon(self._work, task_id)

    def _cancel(self, task_id: UUID) -> None:
        """Somebody wants it stopped (R7.1). What has ended is reported as it ended."""
        held = self._machine.disk.get(task_id)
        if held is None or held.has_end or held.is_stopping:
            return
        if held.process is not None and fortune.is_deaf(self._machine, task_id):
            held.process.run.loose_at = min(held.process.run.loose_at, trio.current_time())
            return
        self._stop(task_id)

    def _stop(self, task_id: UUID) -> None:
        """R7.3: by order, or because the server has said that it is no longer ours."""
        held = self._machine.disk.get(task_id)
        if held is not None and not held.is_stopping:
            held.is_stopping = True
            self._begin_again(task_id)

    async def _work(self, task_id: UUID) -> None:
        held = self._machine.disk[task_id]
        with trio.CancelScope() as scope:
            self._at_work[task_id] = scope
            try:
                await self._bring_to_an_end(task_id, held)
            except NoLongerMine:
                if held.process is not None:
                    held.process.kill()
            if self._machine.disk.get(task_id) is held:
                del self._at_work[task_id]
                self._machine.forget(task_id)
                self._grant(1)

    async def _bring_to_an_end(self, task_id: UUID, held: Held) -> None:
        if held.is_stopping:
            await self._end(held)
            await self._deliver("stopped", wire.Held(claim_token=held.token), task_id)
            return
        if held.process is None and not held.is_distrusted:
            await self._prepare(task_id, held)
        if held.process is not None:
            try:
                await self._watch(task_id, held, held.process)
            except NoLongerMine:
                held.process.kill()  # What it has cost is still told (R6.7), and how it ended.
                await held.process.ended.wait()
        await self._report_end(task_id, held)

    async def _end(self, held: Held) -> None:
        """Gone only when all of its tree is."""
        if held.process is not None and not held.process.ended.is_set():
            await self._machine.rest(self._chance.pick(f"{self._machine.name}/kill", KILL_S))
            held.process.kill()
            await held.process.ended.wait()

    async def _prepare(self, task_id: UUID, held: Held) -> None:
        machine = self._machine
        for _ in range(self._chance.pick(f"{machine.name}/prepare", (0, 0, 0, 1, 2, 5))):
            await machine.rest(RENEW_S)
            await self._deliver("lease", wire.Held(claim_token=held.token), task_id)
        if self._chance.strikes(f"{machine.name}/unprepared", 0.05):
            held.is_distrusted = True  # Only in that there is an end to report, and no process.
            return
        while (before := machine.at_work_on(held.task)) is not None:
            await before.ended.wait()  # Two cannot have one directory.
        await self._deliver("start", wire.Held(claim_token=held.token), task_id)
        held.process = Process(machine, *fortune.tell(machine, held.task))
        machine.begin(held.process)

    async def _watch(self, task_id: UUID, held: Held, process: Process) -> None:
        """Send on what is in the spool, up to the end."""
        while True:
            has_ended, known = process.ended.is_set(), process.run.messages
            said = [
                Message(seq=seq, type="text", content=f"{task_id} {seq}")
                for seq in range(held.told, known)
            ]
            if said:
                report = wire.Messages(claim_token=held.token, messages=said)
                await self._deliver("messages", report, task_id)
                held.told = known
            if has_ended:
                return
            with trio.move_on_after(WATCH_S):
                await process.ended.wait()

    async def _report_end(self, task_id: UUID, held: Held) -> None:
        run = None if held.process is None else held.process.run
        if run is not None:
            spent = [Usage(provider="scripted", model="m", output_tokens=1)]
            await self._deliver(
                "usage", wire.UsageReport(claim_token=held.token, usage=spent), task_id
            )
        name, report = _report(held)
        done = await self._deliver(name, report, task_id)
        if run is not None:
            self._machine.auditor.acknowledged(task_id, done.status)

    async def _deliver(self, name: str, body: Struct, subject: UUID) -> Any:  # noqa: ANN401  # The answer of that call.
        """Until there is a definite answer. Raises `NoLongerMine`."""
        while True:
            while self._line is None:
                await self._connected.wait()
            try:
                answer = await self._call(self._line, name, body, subject)
            except LineLost:
                await trio.sleep(RETRY_S)
                continue
            if not isinstance(answer, Refusal):
                return answer
            if answer.status < 500:  # noqa: PLR2004
                self._machine.auditor.note(f"{self._name} is refused {name} {subject}")
                raise NoLongerMine
            await trio.sleep(RETRY_S)


def _report(held: Held) -> tuple[str, Struct]:
    run: Run | None = None if held.process is None else held.process.run
    if run is not None and run.has_finished and run.reason is None:
        return "complete", wire.Complete(claim_token=held.token, output=run.output)
    if run is not None and run.has_finished:
        reason = run.reason or ""
    elif held.process is not None and held.process.has_crashed:
        reason = "keeper_lost"
    else:
        reason = "runtime_offline" if run is not None else "prepare_failed"
    return "fail", wire.Fail(
        claim_token=held.token,
        error=reason,
        failure_reason=reason,
        retry_after_s=None if run is None else run.retry_after_s,
    )


def _held(task_id: UUID, held: Held) -> wire.HeldTask:
    return wire.HeldTask(task_id=task_id, claim_token=held.token)
