"""A whole fleet in virtual time: how long tasks wait, what the database bears, what faults cost.

    answer = measure(dsn, Fleet(machines=100, days=1))

The server is the real one: nodes with their actors, sweeps, leases, presence, and PostgreSQL. The
machines are stand-ins that follow the daemon's protocol (`fleet_machine.py`), so that a thousand of
them fit into a process. `COARSE` says what that leaves out. The same seed has the same history.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, Final, final
from uuid import UUID

import trio

from understudy.actors.mailbox import ActorGone
from understudy.actors.task import Cancel
from understudy.core.records import Agent, Issue, Priority, Task
from understudy.http.auth import Machine
from understudy.http.site import Site
from understudy.http.work import assigned
from understudy.store import issues
from understudy.store.database import Database
from understudy.store.errors import DatabaseUnavailable
from understudy.testing import faults, fleet_fortune
from understudy.testing.board import Board
from understudy.testing.clock import run_virtual
from understudy.testing.fleet_answer import Answer, answer
from understudy.testing.fleet_fortune import DAY_S, HOUR_S, next_arrival, next_blow
from understudy.testing.fleet_ledger import Ledger
from understudy.testing.fleet_machine import MESSAGES_S, FleetMachine
from understudy.testing.fleet_node import FleetNode, Line
from understudy.testing.ground import quiet
from understudy.testing.network import MemoryNetwork
from understudy.testing.tenants import add_workspace
from understudy.testing.virtual import VirtualPostgres
from understudy.wire.board import CreateIssue

TASKS_PER_MACHINE: Final = 10.0
MACHINES_PER_AGENT: Final = 10
MACHINES_PER_WORKSPACE: Final = 50
AGENTS_LEAST: Final = 4
LIMITS: Final = (6, 6, 6, 3, 10, 1)
PINNED_EVERY: Final = 10
"""Of so many agents one can work on one machine only."""
AGAIN: Final = 0.2
"""Of what people ask for: more work on an issue that there is."""
CANCELLED: Final = 0.02
KNOWN_MAX: Final = 200
PERSON_RETRIES_S: Final = 5.0
CRASHES: Final = (DatabaseUnavailable, ActorGone)

COARSE: Final = (
    "machines are stand-ins that follow the daemon's protocol; no HTTP, no websocket, no latency",
    "signs of life are given to all machines of a node at once; only one with news is a call",
    f"a run sends messages every {MESSAGES_S:.0f} s; a daemon, up to twice a second (1 statement)",
    "a statement is one instant: statements neither wait for each other nor take virtual time",
    "one runtime on each machine; people's keys are not looked up, nobody reads pages or streams",
)


@dataclass(frozen=True)
class Fleet:
    machines: int
    days: float = 1.0
    tasks_per_day: float | None = None
    """On a working day, of the whole fleet; None: so many for each machine."""
    nodes: int = 2
    slots: int = 3
    workspaces: int | None = None
    """Machines and agents of one work for nobody else; None: one for so many machines."""
    seed: int = 1
    begins_h: float = 0.0
    """Hours after midnight, on a Thursday."""

    @property
    def arrivals_per_day(self) -> float:
        return self.tasks_per_day or self.machines * TASKS_PER_MACHINE

    @property
    def tenants(self) -> int:
        return self.workspaces or math.ceil(self.machines / MACHINES_PER_WORKSPACE)

    @property
    def begins_s(self) -> float:
        return self.begins_h * HOUR_S

    @property
    def ends_s(self) -> float:
        return self.begins_s + self.days * DAY_S


Tell = Callable[[float, int], None]
"""Hears now and then how much of the time is over (0 to 1), and of how many tasks."""


def measure(dsn: str, fleet: Fleet, tell: Tell = lambda part, tasks: None) -> Answer:
    began = time.monotonic()
    with quiet():
        found = run_virtual(partial(_measure, dsn, fleet, tell), seed=fleet.seed)
    return found.in_seconds(time.monotonic() - began)


async def _measure(dsn: str, fleet: Fleet, tell: Tell) -> Answer:
    dice = Random(fleet.seed)  # noqa: S311  # It is to be repeated.
    postgres = await VirtualPostgres.at(dsn)
    async with postgres.open_database(dice) as database:
        await trio.sleep_until(fleet.begins_s)
        world = FleetWorld(fleet, database, postgres, dice, tell)
        await world.run()
        world.ledger.close()
        return await answer(fleet, world.ledger, world.database, world.agents, COARSE)


@final
@dataclass
class Team:
    """A workspace."""

    board: Board
    agents: list[Agent] = field(default_factory=list)
    known: deque[Issue] = field(default_factory=lambda: deque(maxlen=KNOWN_MAX))

    def issue(self, dice: Random) -> Issue | None:
        """What is to be worked on again; None: something new."""
        return dice.choice(self.known) if self.known and dice.random() < AGAIN else None


@final
@dataclass
class FleetWorld:
    fleet: Fleet
    database: Database
    """Nobody's in the fleet: what it does is not counted."""
    postgres: VirtualPostgres
    dice: Random
    tell: Tell
    ledger: Ledger = field(init=False)
    nodes: list[FleetNode] = field(default_factory=list)
    teams: list[Team] = field(default_factory=list)
    asked: int = 0

    def __post_init__(self) -> None:
        self.ledger = Ledger(trio.current_time())

    def dice_of(self, name: str) -> Random:
        return Random(f"{self.fleet.seed}/{name}")  # noqa: S311  # As above.

    async def run(self) -> None:
        await self._add_teams()
        network = MemoryNetwork()
        for number in range(self.fleet.nodes):
            name = f"node-{number}"
            self.nodes.append(
                FleetNode(name, self.postgres, self.ledger, self.dice, network, self.dice_of(name))
            )
        with trio.move_on_at(self.fleet.ends_s):
            async with trio.open_nursery() as nursery:
                for node in self.nodes:
                    nursery.start_soon(node.live)
                self._add_machines(nursery)
                nursery.start_soon(self._restart_database)
                nursery.start_soon(self._work, nursery)
                nursery.start_soon(self._tell)

    def _connect(self, dice: Random, machine: Machine) -> Line:
        return dice.choice(self.nodes).connect(machine)

    def _add_machines(self, nursery: trio.Nursery) -> None:
        for number in range(self.fleet.machines):
            name = f"machine-{number}"
            dice = self.dice_of(name)
            team = self.teams[number % len(self.teams)]
            me = Machine(team.board.workspace_id, fence="full")
            machine = FleetMachine(
                name=name,
                slots=self.fleet.slots,
                hours=fleet_fortune.hours(dice),
                dice=dice,
                me=me,
                ledger=self.ledger,
                connect=partial(self._connect, dice),
                nursery=nursery,
            )
            nursery.start_soon(machine.live)

    async def _add_teams(self) -> None:
        for number in range(self.fleet.tenants):
            self.teams.append(Team(await add_workspace(self.database, f"team-{number}")))
        for number in range(
            max(AGENTS_LEAST * len(self.teams), self.fleet.machines // MACHINES_PER_AGENT)
        ):
            await self._add_agent(number)

    async def _add_agent(self, number: int) -> None:
        team = self.teams[number % len(self.teams)]
        rank = len(team.agents)
        wanted: dict[str, Any] = {"max_concurrent_tasks": LIMITS[rank % len(LIMITS)]}
        if rank % PINNED_EVERY == AGENTS_LEAST - 1:
            home = await team.board.runtime(f"machine-{number % len(self.teams)}")
            wanted["runtime_id"] = home.id
        team.agents.append(await team.board.agent(f"Agent {number}", **wanted))

    @property
    def agents(self) -> list[Agent]:
        return [agent for team in self.teams for agent in team.agents]

    async def _tell(self) -> None:
        while True:
            await trio.sleep(HOUR_S)
            past_s = trio.current_time() - self.fleet.begins_s
            self.tell(past_s / (self.fleet.days * DAY_S), self.asked)

    async def _restart_database(self) -> None:
        dice = self.dice_of("database")
        while True:
            blow = next_blow(trio.current_time(), [faults.DATABASE_RESTART], dice)
            await trio.sleep_until(blow.at)
            self.ledger.strike(blow.kind.name)
            self.ledger.is_database_away = True
            await trio.sleep(blow.lasts_s)
            self.ledger.is_database_away = False

    # What people do

    async def _work(self, nursery: trio.Nursery) -> None:
        dice = self.dice_of("people")
        while True:
            now = trio.current_time()
            await trio.sleep_until(next_arrival(now, self.fleet.arrivals_per_day, dice))
            team = dice.choice(self.teams)
            (agent,) = dice.choices(team.agents, [1 / (n + 2) for n in range(len(team.agents))])
            nursery.start_soon(self._ask, team, agent, Random(dice.random()))  # noqa: S311
            self.asked += 1

    async def _ask(self, team: Team, agent: Agent, dice: Random) -> None:
        board, issue = team.board, team.issue(dice)
        wanted = CreateIssue(title=f"{agent.name}, please", priority=dice.choice(list(Priority)))
        while True:
            site = await self._site(dice)
            mine = site.database, board.workspace_id
            try:
                issue = issue or await issues.create(*mine, board.user_id, wanted)
                team.known.append(issue)
                done = await assigned(site, issue, await issues.assign(*mine, issue.id, agent.id))
            except CRASHES:
                await trio.sleep(PERSON_RETRIES_S)
                continue
            if done.task is not None and dice.random() < CANCELLED:
                await self._cancel(done.task, board.user_id, dice)
            return

    async def _cancel(self, task: Task, by: UUID, dice: Random) -> None:
        """Somebody has thought better of it, some time."""
        await trio.sleep(dice.expovariate(1 / fleet_fortune.MEDIAN_S))
        asked = partial(Cancel, task.workspace_id, task.id, by)
        while True:
            try:
                await (await self._site(dice)).cast.report(task.id, asked)
            except CRASHES:
                await trio.sleep(PERSON_RETRIES_S)
                continue
            return

    async def _site(self, dice: Random) -> Site:
        while not (up := [node.site for node in self.nodes if node.site is not None]):  # noqa: ASYNC110
            await trio.sleep(PERSON_RETRIES_S)
        return dice.choice(up)
