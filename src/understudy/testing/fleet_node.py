"""A server node of a simulated fleet: the whole of `server.py`, its machines attached without HTTP.

What a websocket would do is done here: a line carries calls to the desk and frames from the link,
and signs of life are given to all runtimes at once, at the interval at which daemons give them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final, final
from uuid import UUID

import msgspec
import trio

from understudy.actors.link import Link
from understudy.actors.mailbox import ActorGone
from understudy.config import Home, ServerConfig
from understudy.core.leases import Leases
from understudy.core.restarts import CannotStart
from understudy.core.struct import Struct
from understudy.core.tree import Branch
from understudy.daemon.trust import MARGIN_S
from understudy.http.auth import Machine
from understudy.http.calls import Desk
from understudy.http.site import Site
from understudy.server import run_server
from understudy.store.connection import Connection
from understudy.store.errors import DatabaseUnavailable
from understudy.supervisor import RestartsExhausted
from understudy.testing import faults
from understudy.testing.fleet_fortune import next_blow
from understudy.testing.fleet_ledger import Ledger
from understudy.testing.network import MemoryNetwork
from understudy.testing.virtual import Fault, VirtualPostgres
from understudy.wire import daemon as wire
from understudy.wire.errors import Refusal, Refused
from understudy.wire.frames import Cancel

PORT: Final = 80
CONNECT: Final = "connect"
"""What is asked of `Outlet` and is no statement."""
SILENCE_S: Final = 45.0
"""After that a node gives a connection up, as `http/socket.py` does."""
CRASHES: Final = (RestartsExhausted, CannotStart, DatabaseUnavailable)
KINDS: Final = (faults.NODE_KILLED, faults.NODE_WITHOUT_DATABASE)
LEASES: Final = Leases()


class LineLost(Exception):
    """The call may have been done, or not; there is another line, later."""


class Unavailable(Exception):
    """The node's 503."""


@final
@dataclass(eq=False)
class Line:
    """A daemon's connection to one life of a node."""

    site: Site
    desk: Desk
    machine: Machine
    outlet: Outlet
    heard_at: float
    why: str = ""
    """The fault of its node that closed it."""
    link: Link = field(default_factory=Link)
    closed: trio.Event = field(default_factory=trio.Event)
    runtime_ids: list[UUID] = field(default_factory=list)
    trusted_until: float = math.inf
    """For how long its work stays its own (R4.11), once it is closed."""
    is_attended: bool = True
    """Its node has not yet noticed that nobody speaks any more."""
    _calls: dict[trio.CancelScope, None] = field(default_factory=dict)

    async def call(self, name: str, body: Struct, subject: UUID | None = None) -> Any:  # noqa: ANN401
        """The answer or the `Refusal`. Raises `LineLost` or `Unavailable`."""
        if self.closed.is_set():
            raise LineLost(name)
        raw = msgspec.json.encode(body)
        with self._while_open():
            try:
                return await self.desk.answer(self.machine, name, subject, raw)
            except Refused as refused:
                return refused.refusal
            except (DatabaseUnavailable, ActorGone) as away:
                raise Unavailable(self.outlet.trouble) from away
        raise LineLost(name)

    async def attach(self) -> None:
        """Its runtimes have room for more."""
        with self._while_open():
            try:
                for runtime_id in self.runtime_ids:
                    await self.site.cast.attach(runtime_id, self.link)
            except (DatabaseUnavailable, ActorGone):
                self.drop(self.outlet.trouble)

    @contextmanager
    def _while_open(self) -> Iterator[None]:
        with trio.CancelScope() as scope:
            self._calls[scope] = None
            try:
                yield
            finally:
                del self._calls[scope]

    def close(self) -> None:
        """For the daemon. The node may take a while to notice."""
        if not self.closed.is_set():
            self.trusted_until = self.heard_at + self._trust_s() - MARGIN_S
            self.closed.set()
            for scope in list(self._calls):
                scope.cancel()

    def drop(self, why: str = "") -> None:
        """For both."""
        self.why = self.why or why
        self.close()
        self.link.close()
        self.is_attended = False
        for runtime_id in self.runtime_ids:
            self.site.cast.detach(runtime_id, self.link)

    def _trust_s(self) -> float:
        cast = self.site.cast
        known = [each for each in self.runtime_ids if cast.presence(each) is not None]
        return min(map(cast.trust_s, known), default=LEASES.offline_after_s)

    async def hear(self) -> None:
        """A sign of life. What has not changed costs no message to the runtime's actor: that would
        only set its deadline anew, which it does itself when the old one has come."""
        self.heard_at = now = trio.current_time()
        cast = self.site.cast
        for runtime_id in self.runtime_ids:
            presence = cast.presence(runtime_id)
            if (
                presence
                and presence.is_ours
                and not presence.stops
                and cast.runtimes.get(runtime_id)
            ):
                presence.heard_at = now
                continue
            await self._beat()
            return

    async def _beat(self) -> None:
        try:
            heard = await self.call("heartbeats", wire.Heartbeats(runtime_ids=self.runtime_ids))
        except (LineLost, Unavailable):
            return
        if isinstance(heard, Refusal) or heard.gone:
            self.drop()
        elif heard.cancelled:
            self.link.push(Cancel(payload=heard.cancelled))


@final
@dataclass
class Outlet:
    """Counts the statements of a node, and fails them while the database is away."""

    ledger: Ledger
    is_cut: bool = False

    @property
    def trouble(self) -> str:
        """The fault for which the node does not answer."""
        if self.ledger.is_database_away:
            return faults.DATABASE_RESTART.name
        return (faults.NODE_WITHOUT_DATABASE if self.is_cut else faults.NODE_KILLED).name

    def __call__(self, sql: str) -> Fault | None:
        if self.is_cut or self.ledger.is_database_away:
            return Fault("lost_request")
        if sql != CONNECT:
            self.ledger.statement(sql)
        return None


@final
@dataclass
class FleetNode:
    name: str
    postgres: VirtualPostgres
    ledger: Ledger
    dice: Random
    network: MemoryNetwork
    own_dice: Random
    site: Site | None = None
    desk: Desk = field(init=False)
    lines: list[Line] = field(default_factory=list)
    outlet: Outlet = field(init=False)

    def connect(self, machine: Machine) -> Line:
        """Raises `LineLost`."""
        if self.site is None:
            raise LineLost(f"{self.name} is down")
        line = Line(self.site, self.desk, machine, self.outlet, trio.current_time())
        self.lines.append(line)
        return line

    async def live(self) -> None:
        while True:
            self.outlet = Outlet(self.ledger)
            blow = next_blow(trio.current_time(), KINDS, self.own_dice)
            try:
                async with trio.open_nursery() as nursery:
                    self.site = await nursery.start(self._serve)
                    self.desk = Desk(self.site.cast)
                    nursery.start_soon(self._hear_all)
                    while blow.kind is not faults.NODE_KILLED:
                        await trio.sleep_until(blow.at)
                        await self._lose_database(blow.lasts_s)
                        blow = next_blow(trio.current_time(), KINDS, self.own_dice)
                    await trio.sleep_until(blow.at)
                    self.ledger.strike(blow.kind.name)
                    self._die()
                    nursery.cancel_scope.cancel()
            except* CRASHES:
                self.ledger.strike("node-crashed")
                self._die()
            await trio.sleep(blow.lasts_s)

    async def _serve(self, *, task_status: trio.TaskStatus[Site]) -> None:
        listener = self.network.listen(self.name, PORT)  # Nobody calls there.
        config = ServerConfig(home=Home(Path("/nonexistent")), leases=LEASES)
        serve = partial(run_server, dial=self._dial, dice=self.dice)
        try:
            await serve(config, Branch("server"), [listener], task_status=task_status)
        finally:
            listener.close()

    async def _dial(self) -> Connection:
        return await self.postgres.connect(self.outlet)

    async def _lose_database(self, seconds: float) -> None:
        self.ledger.strike(faults.NODE_WITHOUT_DATABASE.name)
        self.outlet.is_cut = True
        await trio.sleep(seconds)
        self.outlet.is_cut = False

    def _die(self) -> None:
        """Who is killed says no last word."""
        self.site, self.outlet.is_cut = None, True
        for line in self.lines:
            line.drop(faults.NODE_KILLED.name)
        self.lines.clear()

    async def _hear_all(self) -> None:
        while True:
            await trio.sleep(LEASES.heartbeat_s)
            for line in list(self.lines):
                if not line.closed.is_set():
                    await line.hear()
                elif trio.current_time() >= line.heard_at + SILENCE_S:
                    line.drop()
            self.lines = [line for line in self.lines if line.is_attended]
