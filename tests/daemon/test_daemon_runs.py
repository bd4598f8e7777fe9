"""What a daemon knows of its runs: pushed twice, being prepared, on disk, in its status."""

from __future__ import annotations

import math
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import trio

from understudy.config import DaemonConfig
from understudy.core.leases import Leases
from understudy.core.tree import Branch
from understudy.daemon import trust
from understudy.daemon.identity import Identity
from understudy.daemon.link import Link
from understudy.daemon.main import Daemon, run_daemon
from understudy.daemon.outbox import Outbox, Report
from understudy.daemon.record import ORDER
from understudy.daemon.slots import Slots
from understudy.daemon.status import STATUS, DaemonStatus, read_status
from understudy.daemon.trust import MARGIN_S, Trust
from understudy.daemon.workshop import Workshop
from understudy.testing.desk import Desk
from understudy.wire.daemon import ClaimedTask, Registered, RegisteredRuntime


@dataclass
class StillLink:
    """Up, and never answers: a run stays where it asks to start."""

    is_up: bool = True
    is_over_http: bool = False
    no_websocket: str | None = None
    trouble: str | None = None
    offers: list[int] = field(default_factory=list)

    async def deliver(self, name: str, body: object, subject: uuid.UUID) -> None:
        await trio.sleep_forever()

    async def call(self, name: str, body: object, subject: uuid.UUID | None = None) -> Any:
        await trio.sleep_forever()

    def offer(self, free: int) -> None:
        self.offers.append(free)


@dataclass
class RegisteringLink(StillLink):
    answer: Registered = field(default_factory=lambda: Registered(runtimes=[]))

    async def call(self, name: str, body: object, subject: uuid.UUID | None = None) -> Any:
        await trio.lowlevel.checkpoint()
        return self.answer


def pushed(desk: Desk) -> ClaimedTask:
    at = "2026-01-01T00:00:00Z"
    agent = {"id": desk.ids["agent"], "name": "Nia", "custom_args": ["true"]}
    return msgspec.convert(
        {
            "id": uuid.uuid4(), "agent_id": agent["id"], "workspace_id": desk.ids["workspace"],
            "provider": "command", "status": "dispatched", "move": "claim", "trigger": "assign",
            "priority": 0, "attempt": 1, "max_attempts": 2, "created_at": at,
            "claim_token": uuid.uuid4(), "claim_expires_at": at, "agent": agent,
        },
        ClaimedTask,
    )  # fmt: skip


@dataclass
class Machine:
    desk: Desk
    path: Path
    shop: Workshop
    daemon: Daemon

    def inventory(self) -> tuple[set[Any], set[Any]]:
        said = self.daemon._registration().inventory
        assert said is not None
        return (
            {(each.task_id, each.claim_token) for each in said.running},
            {(each.task_id, each.claim_token) for each in said.finished},
        )

    def status(self) -> DaemonStatus:
        return msgspec.json.decode((self.path / STATUS).read_bytes(), type=DaemonStatus)


@pytest.fixture
async def machine(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Machine]:
    desk, path = Desk(tmp_path), tmp_path / "daemon"
    (path / "runs").mkdir(parents=True)
    config = DaemonConfig(path, "http://127.0.0.1:1", "key", str(desk.ids["workspace"]))
    with Outbox(path / "outbox.db") as outbox:
        shop = Workshop(
            server=config.server,
            workspace_id=config.workspace_id,
            runs=path / "runs",
            link=cast(Link, StillLink()),
            outbox=outbox,
            repositories=desk.repositories,
            slots=Slots(2),
            leases=Leases(),
            trust=Trust(math.inf),
            environment=desk.env,
        )
        yield Machine(desk, path, shop, Daemon(config, Identity(path), shop))
        nursery.cancel_scope.cancel()


async def test_a_task_that_is_being_prepared_is_in_the_inventory(
    machine: Machine, nursery: trio.Nursery
) -> None:
    """R6.2: else a daemon that connects again while it prepares would be taken for an orphan's."""
    await nursery.start(machine.daemon.keep_runs, Branch("daemon"))
    task = pushed(machine.desk)
    machine.daemon.take([task])
    assert machine.inventory() == ({(task.id, task.claim_token)}, set())
    assert [run.task_id for run in machine.status().runs] == [task.id]


async def test_a_task_pushed_again_keeps_one_slot_and_its_newest_claim(
    machine: Machine, nursery: trio.Nursery
) -> None:
    """R3.5, R9.6"""
    await nursery.start(machine.daemon.keep_runs, Branch("daemon"))
    task = pushed(machine.desk)
    fresh = msgspec.structs.replace(task, claim_token=uuid.uuid4())
    machine.daemon.take([task])
    machine.daemon.take([fresh])
    assert machine.daemon.free_slots() == 1
    assert machine.inventory() == ({(task.id, fresh.claim_token)}, set())


async def test_a_report_that_waits_is_finished_and_not_running(
    machine: Machine, nursery: trio.Nursery
) -> None:
    """R6.2, R6.4: its run is looked after again, until the server has it."""
    task, token = uuid.uuid4(), uuid.uuid4()
    payload = msgspec.json.encode({"claim_token": token, "error": "x"})
    machine.shop.outbox.put(Report(str(task), str(token), "fail", payload))
    await nursery.start(machine.daemon.keep_runs, Branch("daemon"))
    assert machine.inventory() == (set(), {(task, token)})
    assert machine.status().reports_waiting == 1
    assert machine.shop.slots.holds(task)


async def test_a_run_whose_order_cannot_be_read_is_on_no_list(
    machine: Machine, nursery: trio.Nursery
) -> None:
    """R6.2: so the server gives it up; one that is gone is on none either."""
    await nursery.start(machine.daemon.keep_runs, Branch("daemon"))
    unreadable = machine.path / "runs" / str(uuid.uuid4())
    unreadable.mkdir()
    (unreadable / ORDER).write_text("{")
    (machine.path / "runs" / str(uuid.uuid4())).mkdir()
    assert machine.inventory() == (set(), set())


async def test_what_may_be_elsewhere_by_now_is_not_said_to_run_here(
    machine: Machine, nursery: trio.Nursery
) -> None:
    """R4.11: it has been told to stop, and its end is on its way."""
    await nursery.start(machine.daemon.keep_runs, Branch("daemon"))
    runtime = uuid.uuid4()
    movable = msgspec.structs.replace(pushed(machine.desk), runtime_id=runtime, is_movable=True)
    pinned = msgspec.structs.replace(pushed(machine.desk), runtime_id=runtime)
    machine.daemon.take([movable, pinned])
    both = {(movable.id, movable.claim_token), (pinned.id, pinned.claim_token)}
    assert machine.inventory() == (both, set())
    machine.daemon.trusted(trust.now(), {runtime: 0.0})
    assert machine.inventory() == (
        {(pinned.id, pinned.claim_token)},
        {(movable.id, movable.claim_token)},
    )


async def test_a_registration_renews_trust_and_stops_what_is_no_longer_ours(
    machine: Machine, nursery: trio.Nursery
) -> None:
    """R4.11, R7.3"""
    await nursery.start(machine.daemon.keep_runs, Branch("daemon"))
    kept, lost, runtime = pushed(machine.desk), pushed(machine.desk), uuid.uuid4()
    machine.daemon.take([kept, lost])
    machine.shop.link = cast(
        Link,
        RegisteringLink(
            answer=Registered(
                runtimes=[
                    RegisteredRuntime(id=runtime, name="", provider="command", status="online")
                ],
                verdicts={str(kept.id): "keep", str(lost.id): "stop"},
                trust_s={runtime: 90.0},
            )
        ),
    )
    asked_at = trust.now()
    with trio.fail_after(30):
        while machine.daemon.runs.get(lost.id) is None:  # noqa: ASYNC110  It is on its way.
            await trio.sleep(0.01)
        assert await machine.daemon.connected() == [runtime]
        promised = machine.shop.trust.until(runtime) - asked_at
        assert 90.0 - MARGIN_S <= promised < 90.0
        while not machine.shop.outbox.claims():  # noqa: ASYNC110  A file.
            await trio.sleep(0.01)
    assert machine.shop.outbox.claims() == [(str(lost.id), str(lost.claim_token))]
    assert machine.shop.outbox.pending()[0].kind == "stopped"


async def test_what_is_not_a_run_does_not_keep_a_daemon_from_starting(
    machine: Machine, nursery: trio.Nursery
) -> None:
    (machine.path / "runs" / "lost+found").mkdir()
    (machine.path / "runs" / str(uuid.uuid4())).write_text("a file")
    await nursery.start(machine.daemon.keep_runs, Branch("daemon"))
    assert machine.inventory() == (set(), set())


async def test_room_for_reports_bounds_the_slots_that_are_offered(machine: Machine) -> None:
    """R6.4: a run without room for its report must not begin."""
    machine.shop.outbox._reports_max = 1
    assert machine.daemon.free_slots() == 1
    machine.shop.outbox.put(Report("a", "b", "fail", b""))
    assert machine.daemon.free_slots() == 0


async def test_the_status_of_a_dead_daemon_is_not_that_of_the_next(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    """Its pid may be anybody's by now; and the server need not be there for a status."""
    config = DaemonConfig(tmp_path, "http://127.0.0.1:1", "key", str(uuid.uuid4()))
    stale = DaemonStatus(
        pid=1, server="", daemon_id="", version="", is_linked=True, slots=0, slots_free=0,
        reports_waiting=0, found={}, runs=[],
    )  # fmt: skip
    (tmp_path / STATUS).write_bytes(msgspec.json.encode(stale))
    nursery.start_soon(run_daemon, config, Branch("daemon"))
    seen: list[DaemonStatus] = []
    with trio.fail_after(30):
        while not seen:
            seen += [found] if (found := read_status(tmp_path)) else []
            await trio.sleep(0.001)
    assert (seen[0].pid != 1, seen[0].is_linked) == (True, False)
    nursery.cancel_scope.cancel()
