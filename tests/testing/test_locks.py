from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from understudy.daemon.claims import Claim, claim_nowait
from understudy.daemon.locks import is_locked, take_lock
from understudy.daemon.outbox import Outbox, OutboxBusy, Report
from understudy.testing.disk import Disk, disks
from understudy.testing.locks import Locks

REPORT = Report("task", "token", "complete", b"done")


class World:
    """Who runs at the moment."""

    process: str | None = None

    def __init__(self) -> None:
        self.locks = Locks(lambda: self.process)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


@pytest.fixture
def world(disk: Disk) -> Iterator[World]:
    world = World()
    with disks(disk), world.locks.installed():
        yield world


def test_locks_of_a_dead_process_are_free(world: World, disk: Disk) -> None:
    lock, home = disk.root / "lock", disk.root / "home"
    world.process = "daemon"
    held = take_lock(lock)
    claim = claim_nowait(home)
    assert held is not None
    assert claim
    assert is_locked(lock)
    world.locks.release("daemon")
    world.process = "next daemon"
    assert not is_locked(lock)
    next_held, next_claim = take_lock(lock), claim_nowait(home)
    assert next_held is not None
    assert next_claim
    os.close(held)
    claim.close()
    assert is_locked(lock), "what the dead close later frees nothing of the living"
    assert world.locks.held_by("next daemon") == sorted([next_held, *next_claim.descriptors])
    os.close(next_held)
    next_claim.close()
    assert world.locks.held_by("next daemon") == []


def test_locks_of_others_and_of_nobody_are_left_alone(world: World, disk: Disk) -> None:
    taken = list[int | None]()
    for world.process in (None, "daemon", "neighbour"):
        taken.append(take_lock(disk.root / f"lock of {world.process}"))
    world.locks.release("daemon")
    assert is_locked(disk.root / "lock of None")
    assert is_locked(disk.root / "lock of neighbour")
    for held in taken:
        assert held is not None
        os.close(held)


def test_inherited_claim_is_held_until_the_heir_is_dead_too(world: World, disk: Disk) -> None:
    home = disk.root / "home"
    world.process = "daemon"
    claim = claim_nowait(home)
    assert claim
    world.locks.inherit("keeper", claim.descriptors)
    world.locks.release("daemon")
    assert claim_nowait(home) is None
    world.locks.release("keeper")
    again = claim_nowait(home)
    assert again
    again.close()
    claim.close()


def test_number_of_a_closed_descriptor_is_no_longer_its_takers(world: World, disk: Disk) -> None:
    home = disk.root / "home"
    world.process = "daemon"
    claim = claim_nowait(home)
    assert claim
    heirs = [os.dup(descriptor) for descriptor in claim.descriptors]
    closed = claim.descriptors
    claim.close()
    copies = [os.dup(descriptor) for descriptor in heirs]
    assert copies == [*closed]
    world.locks.release("daemon")
    for heir in heirs:
        os.close(heir)
    assert claim_nowait(home) is None
    Claim(*copies).close()


def test_number_that_was_closed_unseen_is_left_alone(world: World, disk: Disk) -> None:
    world.process = "daemon"
    held = take_lock(disk.root / "lock")
    assert held is not None
    os.fdopen(held).close()
    other = os.open(disk.root / "file", os.O_WRONLY | os.O_CREAT)
    assert other == held
    world.locks.release("daemon")
    os.write(other, b"whole")
    assert (disk.root / "file").read_text() == "whole"
    os.close(other)


def test_database_of_a_dead_process_is_free_and_as_it_left_it(world: World, disk: Disk) -> None:
    path = disk.root / "outbox.db"
    world.process = "daemon"
    dead = Outbox(path)
    dead.put(REPORT)
    with pytest.raises(OutboxBusy):
        Outbox(path)
    wal = (disk.root / "outbox.db-wal").read_bytes()
    world.locks.release("daemon")
    assert (disk.root / "outbox.db-wal").read_bytes() == wal
    with Outbox(path) as outbox:
        assert outbox.pending() == [REPORT]


def test_what_a_killed_process_did_not_sync_a_later_power_cut_may_take(
    world: World, disk: Disk
) -> None:
    world.process = "daemon"
    dead = Outbox(disk.root / "outbox.db")
    dead._database.execute("pragma synchronous = normal")
    dead.put(REPORT)
    world.locks.release("daemon")
    assert disk.power_cut(lambda change: True) == ["wal of outbox.db"]


def test_power_cut_frees_the_locks_of_a_machine(world: World, disk: Disk) -> None:
    """The files are new ones, so not even a descriptor that nobody knows of holds them."""
    held = take_lock(disk.root / "lock")
    assert held is not None
    disk.power_cut(lambda change: False)
    assert not is_locked(disk.root / "lock")
    os.close(held)
