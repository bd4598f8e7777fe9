"""What the world's omniscience hears of production code: calls are noted, and go on as they were.

Only for the auditor: nothing here changes what happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import msgspec
import trio

from understudy.daemon import main, outbox, run, trust
from understudy.daemon.machine import here
from understudy.http.calls import Desk
from understudy.testing.auditor import Auditor
from understudy.testing.disk import replaced
from understudy.testing.simulated_machine import SimulatedMachine
from understudy.wire.daemon import Heartbeats, Register, Registered

Hook = Callable[..., Any]
SIGNS_OF_LIFE: Final = {"register", "heartbeats"}


@contextmanager
def tapped(auditor: Auditor) -> Iterator[None]:
    taps: tuple[tuple[object, str, Callable[[Auditor, Hook], Hook]], ...] = (
        (Desk, "answer", _heard),
        (trust.Trust, "promise", _promised),
        (main.Daemon, "take", _taken),
        (run, "remove_run", _removed),
        (outbox.Outbox, "acknowledge", _acknowledged),
    )
    with ExitStack() as stack:
        for place, name, tap in taps:
            stack.enter_context(replaced(place, name, tap(auditor, getattr(place, name))))
        yield


def _heard(auditor: Auditor, real: Hook) -> Hook:
    """When which machine gave a sign of life that a node has answered, and when it registered."""
    names: dict[UUID, str] = {}

    @wraps(real)
    async def answer(
        desk: Desk, machine: object, call: str, subject: UUID | None, raw: bytes
    ) -> object:
        came_at = trio.current_time()
        done = await real(desk, machine, call, subject, raw)
        if call == "register":
            asked = msgspec.json.decode(raw, type=Register)
            assert isinstance(done, Registered)
            names.update((each.id, asked.daemon_id) for each in done.runtimes)
            auditor.heard(asked.daemon_id, came_at)
            auditor.registers(asked.daemon_id, came_at)
        elif call == "heartbeats":
            for runtime_id in msgspec.json.decode(raw, type=Heartbeats).runtime_ids:
                if runtime_id in names:
                    auditor.heard(names[runtime_id], came_at)
        return done

    return answer


def _promised(auditor: Auditor, real: Hook) -> Hook:
    @wraps(real)
    def promise(told: trust.Trust, asked_at: float, trust_s: dict[UUID, float]) -> None:
        if trust_s:
            sent_at = trio.current_time() - (trust.now() - asked_at)
            auditor.promised(_here(), sent_at + min(trust_s.values()))
        real(told, asked_at, trust_s)

    return promise


def _taken(auditor: Auditor, real: Hook) -> Hook:
    @wraps(real)
    def take(daemon: main.Daemon, tasks: list[Any]) -> None:
        for task in tasks:
            auditor.claimed(_here(), task.claim_token, task.id)
        real(daemon, tasks)

    return take


def _removed(auditor: Auditor, real: Hook) -> Hook:
    @wraps(real)
    def remove_run(run_dir: Path) -> None:
        real(run_dir)
        auditor.let_go(_here(), UUID(run_dir.name))

    return remove_run


def _acknowledged(auditor: Auditor, real: Hook) -> Hook:
    @wraps(real)
    def acknowledge(box: outbox.Outbox, task_id: str, claim_token: str) -> None:
        real(box, task_id, claim_token)
        auditor.acknowledged(UUID(task_id))

    return acknowledge


def _here() -> str:
    machine = here()
    assert isinstance(machine, SimulatedMachine)
    return machine.name
