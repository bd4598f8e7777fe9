"""The daemon's websocket: calls answered as they come, tasks pushed under credit (R11.2)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import msgspec
import trio
from msgspec import UNSET
from quart import Blueprint, Response, websocket, wrappers

from understudy.actors.link import Link
from understudy.actors.mailbox import ActorGone
from understudy.http import auth
from understudy.http.calls import Desk
from understudy.http.errors import refusal_of, refuse
from understudy.http.site import Site
from understudy.store.errors import DatabaseUnavailable
from understudy.wire.daemon import CLAIM_LEASE, FENCED_REPORTS, Registered
from understudy.wire.errors import Refused, RemoteProtocolError
from understudy.wire.frames import (
    CALLS_MAX,
    Answer,
    Answers,
    Beaten,
    BeatHeard,
    Beating,
    Bye,
    Call,
    Calls,
    Credit,
    CreditGranted,
    FromServer,
    decode_from_daemon,
    encode,
)

logger = logging.getLogger(__name__)

SILENCE_S: Final = 45.0
"""A daemon is heard every 15 s; a missing pong is nowhere else noticed."""
AT_WORK_MAX: Final = 200
"""Calls of one connection under way; beyond that its next frame waits."""
GOING_AWAY, POLICY, FAILED, RESTART = 1001, 1008, 1011, 1012
GONE: Final[type[Exception]] = getattr(wrappers, "ClientDisconnectedError", ConnectionError)
"""What quart 0.23 raises when the client has left; 0.22 cancels."""


def blueprint(site: Site, desk: Desk) -> Blueprint:
    routes = Blueprint("socket", __name__)

    @routes.websocket("/api/daemon/ws")
    async def daemon_socket() -> Response | None:
        try:
            machine = await auth.machine(websocket, site.database)
        except (Refused, DatabaseUnavailable) as error:
            return refuse(refusal_of(error))
        await websocket.accept()
        await Conversation(site, desk, machine).run()
        return None

    return routes


@dataclass(frozen=True)
class Farewell(Exception):
    """Why the connection is to be closed."""

    code: int
    reason: str


class Conversation:
    """One connection. What it pushes goes through `link`, which the runtimes' actors hold."""

    def __init__(self, site: Site, desk: Desk, machine: auth.Machine) -> None:
        self._site = site
        self._desk = desk
        self._machine = auth.Machine(machine.workspace_id, fence="full")
        self._link = Link()
        self._runtimes: dict[UUID, str | None] = {}
        """Each with the process that had registered it, when this connection did."""
        self._room = trio.Semaphore(AT_WORK_MAX)

    async def run(self) -> None:
        farewell: Farewell | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_frames, nursery.cancel_scope)
                nursery.start_soon(self._say_goodbye)
                await self._receive_frames(nursery)
        except* GONE:
            pass
        except* Farewell as group:
            farewell = _first(group)
        except* Exception:
            logger.exception("a daemon's connection failed")
            farewell = Farewell(FAILED, "something broke here; it is logged")
        finally:
            self._detach()
        if farewell is not None:  # Once nobody sends any more.
            await websocket.close(farewell.code, farewell.reason)

    async def _receive_frames(self, nursery: trio.Nursery) -> None:
        """Raises `Farewell`."""
        while True:
            with trio.move_on_after(SILENCE_S) as silence:
                text = await websocket.receive()
            if silence.cancelled_caught:
                raise Farewell(GOING_AWAY, "silent for too long")
            try:
                frame = decode_from_daemon(text or b"")
            except RemoteProtocolError as error:
                raise Farewell(POLICY, str(error)[:100]) from None
            match frame:
                case Calls(payload=calls):
                    for call in calls:
                        await self._room.acquire()
                        nursery.start_soon(self._answer, call)
                case CreditGranted(payload=credit):
                    await self._take_credit(credit)
                case Beating(payload=beat):
                    await self._answer_beat(beat.runtime_id)

    async def _answer(self, call: Call) -> None:
        """Calls of one frame run side by side; a daemon that needs order awaits each answer."""
        try:
            done = await self._desk.answer(self._machine, call.call, call.subject, bytes(call.body))
            answer = Answer(id=call.id, body=msgspec.Raw(msgspec.json.encode(done)))
            if isinstance(done, Registered):
                self._registered(done)
        except Exception as error:  # noqa: BLE001  # A call is a request: its errors are answers.
            answer = Answer(id=call.id, refusal=refusal_of(error))
        finally:
            self._room.release()
        self._link.push(Answers(payload=[answer]))

    def _registered(self, done: Registered) -> None:
        for each in done.runtimes:
            self._runtimes[each.id] = self._site.cast.incarnation(each.id)
        if done.taken_by is not UNSET:
            for runtime_id in self._runtimes:
                self._site.cast.detach(runtime_id, self._link)
            self._runtimes.clear()

    def _speaks_for(self, runtime_id: UUID) -> bool:
        """Not where another process has registered it since: it is that one's."""
        return self._site.cast.incarnation(runtime_id) in {None, self._runtimes[runtime_id]}

    async def _answer_beat(self, runtime_id: str) -> None:
        try:
            found = await self._desk.beat(self._machine, runtime_id)
            if found is not None and found not in self._runtimes:
                self._runtimes[found] = self._site.cast.incarnation(found)
                await self._site.cast.attach(found, self._link)
        except (ActorGone, DatabaseUnavailable):
            return  # Unanswered, it comes again.
        heard = Beaten(
            runtime_id=runtime_id,
            runtime_gone=found is None,
            server_capabilities=[CLAIM_LEASE, FENCED_REPORTS],
        )
        self._link.push(BeatHeard(payload=heard))

    async def _take_credit(self, credit: Credit) -> None:
        self._link.grant(credit.total)
        for runtime_id in filter(self._speaks_for, set(credit.runtime_ids) & self._runtimes.keys()):
            try:
                await self._site.cast.attach(runtime_id, self._link)
            except (ActorGone, DatabaseUnavailable):
                logger.warning(
                    "runtime %s could not be attached: its daemon tries again", runtime_id
                )
                self._link.close()

    async def _send_frames(self, connection: trio.CancelScope) -> None:
        async for frame in self._link.frames:
            for each in _gathered(frame, self._link.frames):
                await websocket.send(encode(each))
        connection.cancel()  # The link was closed: this daemon does not read.

    async def _say_goodbye(self) -> None:
        """Raises `Farewell`."""
        await self._site.stopping.wait()
        await websocket.send(encode(Bye()))
        raise Farewell(RESTART, "the server stops")

    def _detach(self) -> None:
        """No await in here: it runs when the connection is cancelled too."""
        self._link.close()
        for runtime_id in self._runtimes:
            self._site.cast.detach(runtime_id, self._link)


def _first(group: BaseExceptionGroup[Farewell]) -> Farewell:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, Farewell)
    return found


def _gathered(first: FromServer, frames: trio.MemoryReceiveChannel[FromServer]) -> list[FromServer]:
    """What is waiting, with answers joined into one frame; order is kept within each kind."""
    answers: list[Answer] = []
    others: list[FromServer] = []
    frame: FromServer | None = first
    while frame is not None:
        if isinstance(frame, Answers):
            answers += frame.payload
        else:
            others.append(frame)
        frame = None
        if len(answers) < CALLS_MAX:
            try:
                frame = frames.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel):
                pass
    return [Answers(payload=answers), *others] if answers else others
