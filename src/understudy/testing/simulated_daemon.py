"""A daemon in a simulated world: it dies and is born again, its disk and its agents go on.

It follows the protocol and nothing else: what it has on disk it brings to an end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, final
from uuid import UUID

import trio

from understudy.core.failures import FailureReason
from understudy.core.records import Message, Usage
from understudy.core.struct import Struct
from understudy.testing.auditor import Auditor, Run
from understudy.testing.chance import Chance
from understudy.testing.line import Line, LineLost
from understudy.wire import daemon as wire
from understudy.wire.errors import Refusal
from understudy.wire.frames import TasksPushed

RECONNECT_S: Final = (0.5, 1.0, 5.0)
RETRY_S: Final = 4.0
HEARTBEAT_S: Final = 15.0
RENEW_S: Final = 15.0

Connect = Callable[[str], Awaitable[Line]]
Attach = Callable[[Line, list[UUID]], None]


class NoLongerMine(Exception):
    """The server has said that another holds this task, or that it is over."""


@dataclass
class Held:
    """On disk: one task, as far as it has come."""

    token: UUID
    phase: Literal["claimed", "started", "finished"] = "claimed"
    run: Run | None = None
    ends_at: float = 0.0
    told: int = 0


@final
@dataclass
class SimulatedDaemon:
    name: str
    workspace_id: UUID
    slots: int
    chance: Chance
    auditor: Auditor
    connect: Connect
    attach: Attach
    disk: dict[UUID, Held] = field(default_factory=dict)

    async def live(self) -> None:
        """Incarnations without end."""
        incarnation = 0
        while True:
            incarnation += 1
            life_s = self.chance.pick(f"{self.name}/life", (20.0, 60.0, 150.0, 400.0))
            mortal = self.chance.strikes(f"{self.name}/death", 0.7)
            with trio.move_on_after(life_s) if mortal else trio.CancelScope():
                await Incarnation(self, f"{self.name}.{incarnation}").live()
            self.auditor.note(f"{self.name} dies")
            await trio.sleep(self.chance.pick(f"{self.name}/rebirth", (0.0, 1.0, 30.0, 70.0)))


@final
class Incarnation:
    """The memory of the process: gone when it dies."""

    def __init__(self, daemon: SimulatedDaemon, name: str) -> None:
        self._daemon = daemon
        self._name = name
        self._line: Line | None = None
        self._runtimes: list[UUID] = []
        self._granted = 0
        self._connected = trio.Event()
        self._at_work: dict[UUID, trio.CancelScope] = {}

    async def live(self) -> None:
        async with trio.open_nursery() as self._nursery:
            for task_id in self._daemon.disk:
                self._nursery.start_soon(self._work, task_id)
            while True:
                try:
                    await self._converse(await self._daemon.connect(self._daemon.name))
                except* LineLost:
                    pass
                self._line = None
                if self._connected.is_set():
                    self._connected = trio.Event()
                await trio.sleep(self._daemon.chance.pick(f"{self._name}/reconnect", RECONNECT_S))

    async def _converse(self, line: Line) -> None:
        await self._register(line)
        self._line, self._granted = line, 0
        self._connected.set()
        self._grant(max(0, self._daemon.slots - len(self._daemon.disk)))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._heartbeat, line)
                nursery.start_soon(self._receive, line)
                await line.closed.wait()
                raise LineLost("closed")
        finally:
            line.close()

    async def _register(self, line: Line) -> None:
        held = self._daemon.disk
        inventory = wire.Inventory(
            running=[_held(i, h) for i, h in held.items() if h.phase != "finished"],
            finished=[_held(i, h) for i, h in held.items() if h.phase == "finished"],
        )
        answer = await line.call(
            "register",
            wire.Register(
                workspace_id=str(self._daemon.workspace_id),
                daemon_id=self._daemon.name,
                runtimes=[wire.RuntimeOffer(type="scripted")],
                incarnation=self._name,
                inventory=inventory,
            ),
        )
        if isinstance(answer, Refusal):
            raise LineLost(answer.error)
        self._runtimes = [each.id for each in answer.runtimes]
        for task_id, verdict in answer.verdicts.items():
            if verdict == "stop":
                self._stop(UUID(task_id))

    async def _heartbeat(self, line: Line) -> None:
        while True:
            await trio.sleep(HEARTBEAT_S)
            heard = await line.call("heartbeats", wire.Heartbeats(runtime_ids=self._runtimes))
            if isinstance(heard, wire.HeartbeatsHeard) and heard.gone:
                raise LineLost("register again")

    async def _receive(self, line: Line) -> None:
        async for frame in line.link.frames:
            if isinstance(frame, TasksPushed):
                if self._daemon.chance.strikes(f"{self._daemon.name}/lost_push", 0.05):
                    break
                for task in frame.payload:
                    self._take(task)
        raise LineLost("closed")

    def _take(self, task: wire.ClaimedTask) -> None:
        assert task.claim_token is not None
        self._stop(task.id)
        self._daemon.disk[task.id] = Held(task.claim_token)
        if len(self._daemon.disk) > self._daemon.slots:
            self._daemon.auditor.violations.append(f"{self._name} got more than it has room for")
        self._nursery.start_soon(self._work, task.id)

    def _grant(self, slots: int) -> None:
        if (line := self._line) is not None:
            self._granted += slots
            line.link.grant(self._granted)
            self._daemon.attach(line, self._runtimes)

    def _stop(self, task_id: UUID) -> None:
        if (work := self._at_work.pop(task_id, None)) is not None:
            work.cancel()
        if self._daemon.disk.pop(task_id, None) is not None:
            self._daemon.auditor.note(f"{self._name} lets go of {task_id}")
            self._grant(1)

    async def _work(self, task_id: UUID) -> None:
        held = self._daemon.disk[task_id]
        with trio.CancelScope() as self._at_work[task_id]:
            try:
                if held.phase == "claimed":
                    await self._prepare(task_id, held)
                if held.phase == "started":
                    await self._execute(task_id, held)
                await self._report_end(task_id, held)
            except NoLongerMine:
                pass
            if self._daemon.disk.get(task_id) is held:
                del self._daemon.disk[task_id], self._at_work[task_id]
                self._grant(1)

    async def _prepare(self, task_id: UUID, held: Held) -> None:
        chance, daemon = self._daemon.chance, self._daemon
        for _ in range(chance.pick(f"{daemon.name}/prepare", (0, 0, 0, 1, 2, 5))):
            await trio.sleep(RENEW_S)
            await self._deliver("lease", wire.Held(claim_token=held.token), task_id)
        await self._deliver("start", wire.Held(claim_token=held.token), task_id)
        success = chance.pick(f"{daemon.name}/success", (True, True, True, False))
        held.run = Run(daemon.name, f"{daemon.name} did {task_id}", success)
        held.ends_at = trio.current_time() + chance.pick(
            f"{daemon.name}/work", (0.0, 1.0, 15.0, 60.0, 120.0)
        )
        held.phase = "started"
        daemon.auditor.began(task_id, held.run)

    async def _execute(self, task_id: UUID, held: Held) -> None:
        assert held.run is not None
        while held.told < held.run.messages or trio.current_time() < held.ends_at:
            if held.told == held.run.messages:
                held.run.messages += 1
            said = Message(seq=held.told, type="text", content=f"{task_id} {held.told}")
            report = wire.Messages(claim_token=held.token, messages=[said])
            await self._deliver("messages", report, task_id)
            held.told += 1
            await trio.sleep(min(10.0, max(0.0, held.ends_at - trio.current_time())))
        held.phase = "finished"
        self._daemon.auditor.finished(task_id)

    async def _report_end(self, task_id: UUID, held: Held) -> None:
        run, token = held.run, held.token
        assert run is not None
        spent = [Usage(provider="scripted", model="m", output_tokens=1)]
        await self._deliver("usage", wire.UsageReport(claim_token=token, usage=spent), task_id)
        if run.is_success:
            done = await self._deliver(
                "complete", wire.Complete(claim_token=token, output=run.output), task_id
            )
        else:
            failed = wire.Fail(
                claim_token=token, error=run.output, failure_reason=FailureReason.AGENT_ERROR
            )
            done = await self._deliver("fail", failed, task_id)
        self._daemon.auditor.acknowledged(task_id, done.status)

    async def _deliver(self, name: str, body: Struct, subject: UUID) -> Any:  # noqa: ANN401  # The answer of that call.
        """Until there is a definite answer. Raises `NoLongerMine`."""
        while True:
            while self._line is None:
                await self._connected.wait()
            try:
                answer = await self._line.call(name, body, subject)
            except LineLost:
                await trio.sleep(RETRY_S)
                continue
            if not isinstance(answer, Refusal):
                return answer
            if answer.status < 500:  # noqa: PLR2004
                self._daemon.auditor.note(f"{self._name} is refused {name} {subject}")
                raise NoLongerMine
            await trio.sleep(RETRY_S)


def _held(task_id: UUID, held: Held) -> wire.HeldTask:
    return wire.HeldTask(task_id=task_id, claim_token=held.token)
