"""What a simulated machine still has when all is done, for the auditor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import trio

from understudy.daemon.locks import is_locked
from understudy.daemon.workshop import Workshop
from understudy.testing.evidence import LeftOver
from understudy.testing.simulated_machine import SimulatedMachine
from understudy.testing.streams import MemoryStream

PATIENCE_S: Final = 120.0
LOOK_S: Final = 5.0
ROOM: Final = ("runs", "work")
NEEDED: Final = {"machine": 2, "node": 8}
"""A daemon has its websocket, and may ask in passing; so have all daemons, readers and people."""


Connections: TypeAlias = Mapping[str, Sequence[MemoryStream]]


async def wait_nothing_left(
    machines: Sequence[SimulatedMachine],
    shops: Mapping[str, Workshop],
    connections: Connections,
) -> list[LeftOver]:
    """What is still there after some time; `shops` are those of daemons that live."""
    found = list[LeftOver]()
    with trio.move_on_after(PATIENCE_S):
        while True:
            found = [_left_over(each, shops.get(each.name)) for each in machines]
            found += _connected(connections, {each.name for each in machines})
            if not any(map(is_something, found)):
                break
            await trio.sleep(LOOK_S)
    return found


def is_something(left: LeftOver) -> bool:
    return bool(
        left.processes or left.locked or left.runs or left.slots or left.reports or left.connections
    )


def _left_over(machine: SimulatedMachine, shop: Workshop | None) -> LeftOver:
    root = machine.disk.root
    return LeftOver(
        machine.name,
        processes=[f"{each.name} of {each.run}" for each in machine.keepers.living()],
        locked=sorted(_locked(root)),
        runs=sorted(each.name for each in (root / "runs").glob("*")),
        slots=[] if shop is None else _taken(shop),
        reports=[] if shop is None else [task_id for task_id, _ in shop.outbox.claims()],
    )


def _connected(connections: Connections, machines: set[str]) -> Iterator[LeftOver]:
    for owner, streams in sorted(connections.items()):
        peers = [str(stream.peer[0]) for stream in streams if stream.is_open]
        kind = "machine" if owner in machines else owner.partition("-")[0]
        if len(peers) > NEEDED.get(kind, 0):
            yield LeftOver(owner, connections=sorted(peers))


def _taken(shop: Workshop) -> list[str]:
    slots = shop.slots
    return [] if slots.is_idle else [f"{slots.total - slots.free} of {slots.total}"]


def _locked(root: Path) -> Iterator[str]:
    for lock in (found for room in ROOM for found in (root / room).rglob("*.lock")):
        if is_locked(lock):
            yield str(lock.relative_to(root))
