"""What the world's omniscience hears of production code: calls are noted, and go on as they were.

Only for the auditor: nothing here changes what happens.
"""

from __future__ import annotations

import logging
import math
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import msgspec
import trio

from understudy.daemon import link, main, outbox, run, trust
from understudy.daemon.machine import here
from understudy.daemon.outcomes import LinkRefused
from understudy.http.calls import Desk
from understudy.store.errors import DatabaseUnavailable
from understudy.testing import network
from understudy.testing.auditor import Auditor
from understudy.testing.disk import replaced
from understudy.testing.evidence import Fenced, Registering
from understudy.testing.faults import InjectedCrash
from understudy.testing.simulated_machine import SimulatedMachine
from understudy.testing.streams import MemoryStream
from understudy.testing.virtual_process import current_process
from understudy.wire.daemon import HeartbeatsHeard, Inventory, Register, Registered

Hook = Callable[..., Any]
SENTENCE_MAX: Final = 300
NOT_YOURS: Final = {404, 409}
FORESEEN: Final = (InjectedCrash, DatabaseUnavailable, OSError, sqlite3.OperationalError)
"""What this world does to its inhabitants, and they may crash of."""


@contextmanager
def tapped(auditor: Auditor) -> Iterator[None]:
    taps: tuple[tuple[object, str, Callable[[Auditor, Hook], Hook]], ...] = (
        (Desk, "answer", _heard),
        (trust.Trust, "promise", _promised),
        (link.Link, "call", _called),
        (main, "_workshop", _furnished),
        (main.Daemon, "take", _taken),
        (main.Daemon, "end", _ending),
        (run, "remove_run", _removed),
        (outbox.Outbox, "put", _put),
        (outbox.Outbox, "acknowledge", _acknowledged),
        (network, "_owned", _opened),
        (logging.Logger, "error", _logged),
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
        with _registering(auditor, raw) if call == "register" else nullcontext():
            done = await real(desk, machine, call, subject, raw)
        if isinstance(done, Registered) and done.runtimes:
            daemon_id = msgspec.json.decode(raw, type=Register).daemon_id
            names.update((each.id, daemon_id) for each in done.runtimes)
            auditor.heard(daemon_id, min(came_at, _leased_until(auditor)))
        elif isinstance(done, HeartbeatsHeard):
            for runtime_id in done.trust_s:
                if runtime_id in names:
                    auditor.heard(names[runtime_id], min(came_at, _leased_until(auditor)))
        return done

    return answer


def _leased_until(auditor: Auditor) -> float:
    """A node that has lost the database hears in vain: the others count from its lease's end."""
    process = current_process()
    assert process is not None
    return auditor.leased_until.get(process.name, -math.inf)


@contextmanager
def _registering(auditor: Auditor, raw: bytes) -> Iterator[None]:
    """Recovery is part of it; a node that is killed meanwhile never tells when it is over."""
    asked = msgspec.json.decode(raw, type=Register)
    held = asked.inventory or Inventory()
    named = frozenset((each.task_id, each.claim_token) for each in (*held.running, *held.finished))
    registering = Registering(trio.current_time(), named)
    auditor.machines.registering.setdefault(asked.daemon_id, []).append(registering)
    try:
        yield
    finally:
        registering.ended_at = trio.current_time()


def _promised(auditor: Auditor, real: Hook) -> Hook:
    @wraps(real)
    def promise(told: trust.Trust, asked_at: float, trust_s: dict[UUID, float]) -> None:
        if trust_s:
            sent_at = trio.current_time() - (trust.now() - asked_at)
            auditor.promised(_here(), sent_at + min(trust_s.values()))
        real(told, asked_at, trust_s)

    return promise


def _called(auditor: Auditor, real: Hook) -> Hook:
    """What a daemon hears when its agent has spoken."""

    @wraps(real)
    async def call(told: link.Link, name: str, body: object, subject: UUID | None = None) -> object:
        try:
            return await real(told, name, body, subject)
        except LinkRefused as refused:
            if name == "messages" and subject and refused.refusal.status in NOT_YOURS:
                _note_fenced(auditor, subject)
            raise

    return call


def _note_fenced(auditor: Auditor, task_id: UUID) -> None:
    fenced, process = Fenced(_here(), task_id, trio.current_time()), current_process()
    assert process is not None

    def end() -> None:
        fenced.until = trio.current_time()

    process.at_death.append(end)
    auditor.machines.fenced.append(fenced)


def _furnished(auditor: Auditor, real: Hook) -> Hook:
    @wraps(real)
    def workshop(*arguments: object) -> object:
        shop, name, process = real(*arguments), _here(), current_process()
        assert process is not None
        auditor.shops[name] = shop
        process.at_death.append(lambda: auditor.shops.pop(name, None))
        return shop

    return workshop


def _taken(auditor: Auditor, real: Hook) -> Hook:
    @wraps(real)
    def take(daemon: main.Daemon, tasks: list[Any]) -> None:
        for task in tasks:
            auditor.claimed(_here(), task.claim_token, task.id)
        real(daemon, tasks)

    return take


def _ending(auditor: Auditor, real: Hook) -> Hook:
    """It takes nothing more; a second wish shortens nothing of that."""

    @wraps(real)
    def end(daemon: main.Daemon, ending: object) -> None:
        process, closing = current_process(), auditor.machines.closing.setdefault(_here(), [])
        assert process is not None
        began_at = trio.current_time()
        process.at_death.append(lambda: closing.append((began_at, trio.current_time())))
        real(daemon, ending)

    return end


def _removed(auditor: Auditor, real: Hook) -> Hook:
    @wraps(real)
    def remove_run(run_dir: Path) -> None:
        real(run_dir)
        auditor.let_go(_here(), UUID(run_dir.name))

    return remove_run


def _put(auditor: Auditor, real: Hook) -> Hook:
    @wraps(real)
    def put(box: outbox.Outbox, report: outbox.Report) -> bool:
        is_new: bool = real(box, report)
        auditor.reported(UUID(report.task_id))
        return is_new

    return put


def _acknowledged(auditor: Auditor, real: Hook) -> Hook:
    @wraps(real)
    def acknowledge(box: outbox.Outbox, task_id: str, claim_token: str) -> None:
        real(box, task_id, claim_token)
        auditor.acknowledged(UUID(task_id))

    return acknowledge


def _opened(auditor: Auditor, real: Hook) -> Hook:
    @wraps(real)
    def owned(stream: MemoryStream) -> MemoryStream:
        if (process := current_process()) is not None:
            owner = process.name.rpartition(".")[0]
            auditor.connections.setdefault(owner, []).append(stream)
        real(stream)
        return stream

    return owned


def _logged(auditor: Auditor, real: Hook) -> Hook:
    """All that production code calls an error; with the logs off it goes no further than here."""

    @wraps(real)
    def error(
        logger: logging.Logger,
        message: str,
        *arguments: object,
        exc_info: object = None,
        stacklevel: int = 1,
    ) -> None:
        cause = exc_info if isinstance(exc_info, BaseException) else sys.exc_info()[1]
        if cause is not None and exc_info and not any(map(_is_foreseen, _causes(cause))):
            auditor.surprised(logger.name, f"{message % arguments}: {cause!r}"[:SENTENCE_MAX])
        real(logger, message, *arguments, exc_info=exc_info, stacklevel=stacklevel)

    return error


def _causes(error: BaseException) -> Iterator[BaseException]:
    yield error
    for further in (error.__cause__, error.__context__, *getattr(error, "exceptions", ())):
        if further is not None:
            yield from _causes(further)


def _is_foreseen(error: BaseException) -> bool:
    return isinstance(error, FORESEEN)


def _here() -> str:
    machine = here()
    assert isinstance(machine, SimulatedMachine)
    return machine.name
