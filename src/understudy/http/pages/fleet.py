"""Who works, and on what: agents and machines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from uuid import UUID

from understudy.core.records import Agent, Runtime
from understudy.http.agents import PROGRAMS
from understudy.http.pages import runs
from understudy.http.pages.runs import RunView
from understudy.http.site import Site
from understudy.store import agents, board, runtimes
from understudy.store.database import Database


@dataclass(frozen=True)
class Offer:
    """One CLI on a machine, and the runs it holds."""

    runtime: Runtime
    runs: Sequence[RunView]

    @property
    def version(self) -> str:
        """`device_info` is `<device> · <version>`."""
        return self.runtime.device_info.rpartition(" · ")[2]


@dataclass(frozen=True)
class Machine:
    name: str
    offers: Sequence[Offer]

    @property
    def is_online(self) -> bool:
        return any(offer.runtime.status == "online" for offer in self.offers)

    @property
    def last_seen_at(self) -> datetime:
        return max(offer.runtime.last_seen_at for offer in self.offers)

    @property
    def pinged(self) -> UUID | None:
        """One daemon answers for all that it offers."""
        there = (each.runtime.id for each in self.offers if each.runtime.status == "online")
        return next(there, None)

    @property
    def busy(self) -> int:
        return sum(len(offer.runs) for offer in self.offers)


@dataclass(frozen=True)
class MachinesView:
    now: datetime
    machines: Sequence[Machine]
    every_ms: int | None


@dataclass(frozen=True)
class Worker:
    agent: Agent
    runs: Sequence[RunView]
    machines: Sequence[str]
    """Names of the devices, online now, that can run it."""

    @property
    def at_work(self) -> int:
        return sum(run.is_in_hand for run in self.runs)


@dataclass(frozen=True)
class AgentsView:
    now: datetime
    workers: Sequence[Worker]
    every_ms: int | None


async def machines_view(site: Site, workspace_id: UUID) -> MachinesView:
    found = await runtimes.of_workspace(site.database, workspace_id)
    held = [run for run in await _active(site, workspace_id) if run.is_in_hand]
    by_daemon = sorted(found, key=lambda each: (each.device_name, each.daemon_id, each.provider))
    machines = [
        _machine(list(group), held) for _, group in groupby(by_daemon, lambda each: each.daemon_id)
    ]
    machines.sort(key=lambda machine: (not machine.is_online, machine.name))
    return MachinesView(await board.now(site.database), machines, runs.every_ms(held))


async def agents_view(site: Site, workspace_id: UUID) -> AgentsView:
    database = site.database
    found = await runtimes.of_workspace(database, workspace_id)
    active = await _active(site, workspace_id)
    workers = [
        Worker(
            agent=agent,
            runs=[run for run in active if run.task.agent_id == agent.id],
            machines=fitting(agent, found),
        )
        for agent in await agents.of_workspace(database, workspace_id)
    ]
    return AgentsView(await board.now(database), workers, runs.every_ms(active))


async def providers(database: Database, workspace_id: UUID) -> list[str]:
    """What the machines of this workspace can run, for the form that makes an agent.

    The form has no field for a program, so it does not offer those that need one named.
    """
    found = await runtimes.of_workspace(database, workspace_id)
    return sorted({each.provider for each in found} - PROGRAMS)


def fitting(agent: Agent, machines: Iterable[Runtime]) -> list[str]:
    return sorted(
        {
            each.device_name or each.name
            for each in machines
            if each.status == "online"
            and each.provider == agent.provider
            and agent.runtime_id in {None, each.id}
        }
    )


async def _active(site: Site, workspace_id: UUID) -> list[RunView]:
    return await runs.views(
        site, workspace_id, await board.active_runs(site.database, workspace_id)
    )


def _machine(found: Sequence[Runtime], held: Sequence[RunView]) -> Machine:
    offers = [
        Offer(each, [run for run in held if run.task.runtime_id == each.id]) for each in found
    ]
    return Machine(found[0].device_name or found[0].name, offers)
