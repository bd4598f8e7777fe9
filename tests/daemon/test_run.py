"""A run, with a real keeper and a real program, against a server that says everything twice.

The daemon is killed by cancelling its actor; a new actor that knows nothing stands for the next
daemon. The program counts its own starts in a file.
"""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import trio

from understudy.actors.actor import spawn
from understudy.actors.mailbox import Ref
from understudy.core.failures import FailureReason
from understudy.core.leases import Leases
from understudy.core.lifecycle import Move, Status
from understudy.core.records import Message as Said
from understudy.core.records import Priority
from understudy.core.restarts import RestartPolicy
from understudy.core.tree import Branch
from understudy.daemon import kept as kept_module
from understudy.daemon import preparing, processes, reports, rundir
from understudy.daemon import run as run_module
from understudy.daemon.backends.backend import Exit, Failed, RunSpec
from understudy.daemon.claims import claim_nowait
from understudy.daemon.kept import Kept
from understudy.daemon.link import Link
from understudy.daemon.orders import work_order
from understudy.daemon.outbox import Outbox, Report
from understudy.daemon.outcomes import LinkRefused
from understudy.daemon.probe import Found
from understudy.daemon.record import ORDER, RunOrder, read_order
from understudy.daemon.run import Again, Message, RunActor, Stop
from understudy.daemon.rundir import Standing
from understudy.daemon.slots import Slots
from understudy.daemon.trust import MARGIN_S, Trust, now
from understudy.daemon.workshop import Workshop
from understudy.daemon.workspace import prepare
from understudy.testing.desk import Desk
from understudy.wire.daemon import (
    AgentBrief,
    ClaimedTask,
    Complete,
    Fail,
    IssueBrief,
    Repository,
    Stopped,
)
from understudy.wire.errors import Refusal

WORK = """
echo started >> "$STARTS"
echo '{"type":"session","id":"s1","resumable":true}'
echo one; echo two
echo '{"type":"usage","model":"m","input_tokens":3,"output_tokens":4}'
echo '{"type":"result","output":"done"}'
"""
SESSION = '{"type":"session","id":"s1","resumable":true}'
WORK_ON = """
echo started >> "$STARTS"
echo '{"type":"usage","model":"m","input_tokens":3,"output_tokens":4}'
echo working
exec sleep 600
"""
FENCED = Refusal(error="another claim holds it", code="fenced", status=409)
INVALID = Refusal(error="no", code="invalid_request", status=400)


async def nothing(_: str) -> None: ...


@dataclass
class Server:
    """One task, fenced; and the link to it, on which each call is made twice."""

    token: uuid.UUID | None
    status: str = "dispatched"
    said: dict[int, Said] = field(default_factory=dict)
    usage: list[Any] = field(default_factory=list)
    reports: list[Complete | Fail | Stopped] = field(default_factory=list)
    refusals: dict[str, deque[Refusal]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    retired: list[str] = field(default_factory=list)
    at: Callable[[str], Awaitable[None]] = nothing

    async def deliver(self, name: str, body: Any, subject: uuid.UUID) -> None:
        for _ in range(2):
            await self.at(f"before {name}")
            self.calls.append(name)
            self._do(name, body)
            await self.at(f"after {name}")

    call = deliver

    def refuse(self, name: str, *refusals: Refusal) -> None:
        self.refusals[name] = deque(refusals)

    def _do(self, name: str, body: Any) -> None:
        if self.refusals.get(name):
            raise LinkRefused(self.refusals[name].popleft())
        if body.claim_token != self.token:
            raise LinkRefused(FENCED)
        match name:
            case "start":
                self._move({"dispatched", "running"}, "running")
            case "messages":
                self._move({"running"}, "running")
                for message in body.messages:
                    assert self.said.setdefault(message.seq, message) == message
            case "usage":
                self.usage = body.usage
            case "session":
                self.retired += [body.refused_session_id] if body.refused_session_id else []
            case "complete" | "fail" | "stopped":
                self._end(name, body)
            case _:
                pass

    def _end(self, name: str, body: Complete | Fail | Stopped) -> None:
        if self.reports:
            assert body == self.reports[0], "a replay says the same"
        else:
            self._move({"running"} if name == "complete" else {"running", "dispatched"}, name)
            self.reports.append(body)

    def _move(self, leaves: set[str], enters: str) -> None:
        if self.status not in leaves:
            raise LinkRefused(FENCED)
        self.status = enters


@dataclass
class Bench:
    task: ClaimedTask
    shop: Workshop
    server: Server
    starts: Path
    life: trio.CancelScope = field(default_factory=trio.CancelScope)
    ref: Ref[Message] = field(init=False)
    started: trio.Event = field(default_factory=trio.Event)

    @property
    def kept(self) -> Kept:
        return Kept(self.shop.run_dir(self.task.id))

    def times_started(self) -> int:
        return self.starts.read_text().count("started") if self.starts.exists() else 0

    async def run(self, task: ClaimedTask | None) -> bool:
        """Live as a daemon would; false when the daemon was killed."""
        over = trio.Event()
        self.shop.slots = Slots(2)
        self.shop.slots.freed = lambda _: over.set()
        with trio.CancelScope() as self.life:
            async with trio.open_nursery() as nursery:
                self.ref = await spawn(
                    nursery,
                    Branch("run"),
                    lambda: RunActor(self.task.id, task, self.shop),
                    mailbox_max=8,
                    policy=RestartPolicy(delay_s=0.01),
                )
                self.started.set()
                await over.wait()
                nursery.cancel_scope.cancel()
            return True
        return False

    def kill_at(self, site: str, *on_disk: str) -> None:
        """Sites are the calls, and the changes that are only on disk."""
        changes = iter(on_disk or ("order written", "report put"))
        is_done = False

        def kill(name: str) -> None:
            nonlocal is_done
            if name == site and not is_done:
                is_done = True
                self.life.cancel()

        async def at(name: str) -> None:
            kill(name)
            await trio.lowlevel.checkpoint()

        self.server.at = at
        self.shop.changed = lambda: kill(next(changes, ""))

    async def wait_working(self) -> None:
        await self.wait(lambda: 0 in self.server.said)

    async def wait(self, condition: Callable[[], object]) -> None:
        while not condition():  # noqa: ASYNC110  Files and processes send no event.
            await trio.sleep(0.01)


def claimed(desk: Desk, script: str, starts: Path) -> ClaimedTask:
    at, agent_id = datetime(2026, 1, 1, tzinfo=UTC), desk.ids["agent"]
    return ClaimedTask(
        id=uuid.uuid4(),
        agent_id=agent_id,
        workspace_id=desk.ids["workspace"],
        provider="command",
        status=Status.DISPATCHED,
        move=Move.CLAIM,
        trigger="assign",
        priority=Priority.NONE,
        attempt=1,
        max_attempts=2,
        created_at=at,
        claim_token=uuid.uuid4(),
        claim_expires_at=at,
        agent=AgentBrief(
            id=agent_id,
            name="Nia",
            custom_args=["sh", "-c", script],
            custom_env={"STARTS": str(starts)},
        ),
    )


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    desk = Desk(tmp_path)
    (tmp_path / "runs").mkdir()
    task = claimed(desk, WORK, tmp_path / "starts")
    server = Server(task.claim_token)
    with Outbox(tmp_path / "outbox.db") as outbox:
        shop = Workshop(
            server="http://127.0.0.1:1",
            workspace_id=str(task.workspace_id),
            runs=tmp_path / "runs",
            link=cast(Link, server),
            outbox=outbox,
            repositories=desk.repositories,
            slots=Slots(2),
            leases=Leases(),
            trust=Trust(math.inf),
            environment=desk.env,
        )
        bench = Bench(task, shop, server, tmp_path / "starts")
        with trio.fail_after(60):
            yield bench
            await bench.kept.end("cancelled")
            while left := processes.marked(str(task.id)):
                processes.send(left, signal.SIGKILL)
                await trio.sleep(0.01)


def working_on(bench: Bench) -> None:
    agent = msgspec.structs.replace(bench.task.agent, custom_args=["sh", "-c", WORK_ON])
    bench.task = msgspec.structs.replace(bench.task, agent=agent)


def assert_completed(bench: Bench) -> None:
    assert bench.times_started() == 1
    assert [bench.server.said[n].content for n in range(2)] == ["one", "two"]
    assert sorted(bench.server.said) == [0, 1]
    assert [(each.input_tokens, each.output_tokens) for each in bench.server.usage] == [(3, 4)]
    (report,) = bench.server.reports
    assert isinstance(report, Complete)
    assert (report.output, report.session_id) == ("done", "s1")
    assert_clean(bench)


def assert_clean(bench: Bench) -> None:
    assert bench.shop.outbox.claims() == []
    assert not bench.kept.run_dir.exists()
    assert bench.shop.slots.free == 2


def assert_stopped(bench: Bench) -> None:
    """R7.1: all that is said of the end of a run that was to be stopped."""
    (report,) = bench.server.reports
    assert report == Stopped(claim_token=bench.server.token)
    assert bench.server.status == "stopped"


def failure(bench: Bench) -> Fail:
    (report,) = bench.server.reports
    assert isinstance(report, Fail)
    return report


# Killed


async def test_a_run_is_started_followed_and_reported(bench: Bench) -> None:
    """R2.6, also when every answer is lost once."""
    assert await bench.run(bench.task)
    assert_completed(bench)


@pytest.mark.parametrize(
    "site",
    [
        "order written", "before start", "after start", "before session", "before messages",
        "after messages", "report put", "before usage", "after usage", "before complete",
        "after complete",
    ],
)  # fmt: skip
async def test_no_step_at_which_a_daemon_is_killed_loses_or_doubles_a_run(
    bench: Bench, site: str
) -> None:
    """R6.4, R8.1"""
    bench.kill_at(site)
    assert not await bench.run(bench.task)
    assert await bench.run(None)
    assert_completed(bench)


async def test_a_daemon_killed_before_the_order_was_written_leaves_nothing_to_report(
    bench: Bench,
) -> None:
    """R3.8: nothing had begun; the claim expires."""
    assert await bench.run(None)
    assert (bench.server.calls, bench.times_started()) == ([], 0)
    assert_clean(bench)


async def test_a_killed_daemon_stops_no_agent(bench: Bench, nursery: trio.Nursery) -> None:
    """R8.1: three daemons, one agent; and the last one is told to stop it."""
    working_on(bench)
    for task in (bench.task, None):
        nursery.start_soon(bench.run, task)
        await bench.wait_working()
        bench.life.cancel()
        bench.server.said.clear()
        (bench.kept.run_dir / "heard").unlink(missing_ok=True)
        assert bench.kept.look() is Standing.KEPT
    nursery.start_soon(bench.run, None)
    await bench.wait_working()
    bench.ref.tell_nowait(Stop(FailureReason.CANCELLED))
    await bench.wait(lambda: bench.server.reports)
    assert_stopped(bench)
    assert processes.marked(str(bench.task.id)) == []
    assert bench.times_started() == 1


async def test_an_agent_that_was_killed_has_not_failed_at_its_work(
    bench: Bench, nursery: trio.Nursery
) -> None:
    """R5.1: by the OOM killer, say. It is tried again, and goes on with its session."""
    working_on(bench)
    nursery.start_soon(bench.run, bench.task)
    await bench.wait_working()
    agent = bench.kept.state().agent_pid
    assert agent is not None
    os.kill(agent, signal.SIGKILL)
    await bench.wait(lambda: bench.server.reports)
    assert failure(bench).failure_reason == FailureReason.AGENT_KILLED
    assert "signal 9" in failure(bench).error


async def test_a_keeper_that_was_killed_is_reported_and_its_agent_is_gone(
    bench: Bench, nursery: trio.Nursery
) -> None:
    """R8.1"""
    working_on(bench)
    nursery.start_soon(bench.run, bench.task)
    await bench.wait_working()
    os.kill(bench.kept.state().keeper_pid, signal.SIGKILL)
    await bench.wait(lambda: bench.server.reports)
    assert failure(bench).failure_reason == FailureReason.KEEPER_LOST
    assert processes.marked(str(bench.task.id)) == []


# Every path ends in a report


async def test_a_preparation_that_fails_is_reported(bench: Bench) -> None:
    """R9.6"""
    task = msgspec.structs.replace(bench.task, repos=[Repository(url="/nowhere/at/all")])
    assert await bench.run(task)
    assert failure(bench).failure_reason == FailureReason.PREPARE_FAILED
    assert bench.times_started() == 0
    assert_clean(bench)


async def test_a_provider_nobody_knows_is_reported(bench: Bench) -> None:
    """R9.6"""
    assert await bench.run(msgspec.structs.replace(bench.task, provider="abacus"))
    assert failure(bench).failure_reason == FailureReason.MISSING_CONFIG
    assert_clean(bench)


async def test_a_start_that_is_refused_for_good_is_reported(bench: Bench) -> None:
    """R9.6"""
    bench.server.refuse("start", INVALID)
    assert await bench.run(bench.task)
    assert "refused the start" in failure(bench).error
    assert bench.times_started() == 0
    assert_clean(bench)


@pytest.mark.parametrize("status", [404, 409])
async def test_a_claim_that_is_void_starts_nothing_and_frees_the_slot(
    bench: Bench, status: int
) -> None:
    """R3.5"""
    bench.server.refuse("start", Refusal(error="gone", code="x", status=status))
    assert await bench.run(bench.task)
    assert (bench.server.reports, bench.times_started()) == ([], 0)
    assert_clean(bench)


async def test_a_run_that_crashes_its_actor_is_ended_and_reported(bench: Bench) -> None:
    """R9.6: here by an order of a version that knew another provider."""
    working_on(bench)
    bench.kill_at("after messages")
    assert not await bench.run(bench.task)
    path = bench.kept.run_dir / ORDER
    path.write_text(path.read_text().replace('"command"', '"abacus"'))
    assert await bench.run(None)
    assert "KeyError: abacus" in failure(bench).error.replace("'", "")
    assert processes.marked(str(bench.task.id)) == []
    assert_clean(bench)


@pytest.mark.parametrize("damage", ["{", '{"format": 99}', "\udcff"])
async def test_an_order_nobody_can_read_loses_no_directory_under_a_living_agent(
    bench: Bench, damage: str
) -> None:
    """R6.2: the agent is ended, what it left is kept, and the server hears that it is gone."""
    working_on(bench)
    bench.kill_at("after messages")
    assert not await bench.run(bench.task)
    (bench.kept.run_dir / ORDER).write_bytes(damage.encode(errors="surrogateescape"))
    assert await bench.run(None)
    assert processes.marked(str(bench.task.id)) == []
    (aside,) = bench.shop.runs.iterdir()
    assert "working" in (aside / rundir.OUT).read_text()
    assert bench.server.reports == []


async def test_a_full_disk_delays_a_report_and_turns_no_success_into_a_failure(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R6.3, R9.6"""
    monkeypatch.setattr(run_module, "AGAIN_S", 0.01)
    bench.kill_at("report put")
    assert not await bench.run(bench.task)
    bench.shop.outbox.acknowledge(str(bench.task.id), str(bench.task.claim_token))
    database = bench.shop.outbox._database
    (pages,) = database.execute("pragma page_count").fetchone()
    filler = Report("filler", "token", "fail", b"x" * 100_000)
    database.execute(f"pragma max_page_count = {pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        bench.shop.outbox.put(filler)
    bench.shop.outbox = cast(Outbox, Full(bench.shop.outbox, times=5))
    assert await bench.run(None)
    assert_completed(bench)


@dataclass
class Full:
    """An outbox on a disk that has room again after a while."""

    outbox: Outbox
    times: int

    def put(self, report: Report) -> bool:
        self.times -= 1
        if self.times == 0:
            self.outbox._database.execute("pragma max_page_count = 100000")
        if self.times > 0:
            report = Report("filler", str(self.times), "fail", b"x" * 100_000)
        return self.outbox.put(report)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.outbox, name)


# What the server does not take


async def test_one_message_that_is_refused_costs_no_other(bench: Bench) -> None:
    """R6.9: the batch as a whole, then one half of it."""
    bench.server.refuse("messages", INVALID, INVALID)
    assert await bench.run(bench.task)
    assert sorted(bench.server.said) == [1]
    assert bench.server.status == "complete"


@pytest.mark.parametrize("refusals", [1, 2])
async def test_a_result_that_is_refused_is_told_in_less_words(bench: Bench, refusals: int) -> None:
    """R6.3, R6.8: without its details, and at last that it cannot be told."""
    bench.server.refuse("complete", *[INVALID] * refusals)
    assert await bench.run(bench.task)
    (report,) = bench.server.reports
    match report:
        case Complete():
            assert (refusals, report.output, report.work_dir) == (1, "done", None)
        case Fail():
            assert (refusals, "refused the result" in report.error) == (2, True)
        case Stopped():
            pytest.fail("nobody stopped it")
    assert_clean(bench)


async def test_a_void_claim_ends_the_agent_and_bills_what_it_spent(
    bench: Bench, nursery: trio.Nursery
) -> None:
    """R6.7, R7.3"""
    working_on(bench)
    nursery.start_soon(bench.run, bench.task)
    await bench.wait_working()
    bench.server.status = "cancelled"
    bench.server.refuse("messages", FENCED)
    bench.server.said.clear()
    (bench.kept.run_dir / "heard").unlink()
    bench.life.cancel()
    assert await bench.run(None)
    assert processes.marked(str(bench.task.id)) == []
    assert [each.input_tokens for each in bench.server.usage] == [3]
    assert bench.server.calls.index("usage") < bench.server.calls.index("stopped")
    assert_clean(bench)


async def test_a_result_that_was_there_is_sent_though_the_server_gave_the_task_up(
    bench: Bench,
) -> None:
    """R6.5: it may still take it; its messages it does not."""
    bench.server.refuse("messages", FENCED)
    assert await bench.run(bench.task)
    (report,) = bench.server.reports
    assert isinstance(report, Complete)
    assert_clean(bench)


# Given out again


async def test_a_task_given_out_again_is_started_under_its_new_claim(
    bench: Bench, nursery: trio.Nursery
) -> None:
    """R3.5: its old claim waited for an answer to `start` when it expired."""
    waiting = trio.Event()

    async def at(site: str) -> None:
        if site == "before start" and bench.server.token == bench.task.claim_token:
            waiting.set()
            await trio.sleep_forever()

    bench.server.at = at
    nursery.start_soon(bench.run, bench.task)
    await waiting.wait()
    fresh = msgspec.structs.replace(bench.task, claim_token=uuid.uuid4())
    bench.server.token = fresh.claim_token
    bench.ref.tell_nowait(Again(fresh))
    await bench.wait(lambda: bench.server.reports)
    await bench.wait(lambda: bench.shop.slots.free == 2)
    assert_completed(bench)


async def test_an_agent_under_a_void_claim_is_gone_before_the_next_one_starts(
    bench: Bench, nursery: trio.Nursery
) -> None:
    """R3.5, R6.2"""
    working_on(bench)
    nursery.start_soon(bench.run, bench.task)
    await bench.wait_working()
    first = bench.kept.state()
    fresh = msgspec.structs.replace(bench.task, claim_token=uuid.uuid4())
    bench.server.token, bench.server.status = fresh.claim_token, "dispatched"
    bench.ref.tell_nowait(Again(fresh))
    await bench.wait(lambda: bench.times_started() == 2)
    assert first.agent_pid is not None
    assert processes.identify(first.agent_pid) is None
    order = read_order(bench.kept.run_dir)
    assert order is not None
    assert order.task.claim_token == fresh.claim_token


async def test_the_same_claim_pushed_twice_changes_nothing(
    bench: Bench, nursery: trio.Nursery
) -> None:
    working_on(bench)
    nursery.start_soon(bench.run, bench.task)
    await bench.wait_working()
    bench.ref.tell_nowait(Again(bench.task))
    bench.ref.tell_nowait(Stop(FailureReason.CANCELLED))
    await bench.wait(lambda: bench.server.reports)
    assert bench.times_started() == 1


# Stopped


async def test_a_run_stopped_while_it_is_prepared_never_starts(
    bench: Bench, nursery: trio.Nursery
) -> None:
    """R7.1"""
    held, let_go = trio.Event(), trio.Event()

    async def at(site: str) -> None:
        if site == "before start":
            held.set()
            await let_go.wait()

    bench.server.at = at
    nursery.start_soon(bench.run, bench.task)
    await held.wait()
    bench.ref.tell_nowait(Stop(FailureReason.CANCELLED))
    await trio.testing.wait_all_tasks_blocked()
    let_go.set()
    await bench.wait(lambda: bench.server.reports)
    assert_stopped(bench)
    assert bench.times_started() == 0


async def test_a_keeper_that_hangs_cannot_hold_a_run_up(
    bench: Bench, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R7.2: it is killed, and its agent with it."""
    monkeypatch.setattr(kept_module, "END_S", 0.5)
    working_on(bench)
    nursery.start_soon(bench.run, bench.task)
    await bench.wait_working()
    os.kill(bench.kept.state().keeper_pid, signal.SIGSTOP)
    bench.ref.tell_nowait(Stop(FailureReason.CANCELLED))
    await bench.wait(lambda: bench.server.reports)
    assert failure(bench).failure_reason == FailureReason.KEEPER_LOST
    assert processes.marked(str(bench.task.id)) == []


async def test_a_run_is_not_prepared_to_its_end_once_nobody_wants_it(
    bench: Bench, nursery: trio.Nursery
) -> None:
    """R7.1: here it waits for its directory."""
    home = bench.shop.repositories.root / str(bench.task.workspace_id) / bench.task.id.hex[-12:]
    home.parent.mkdir(parents=True)
    claim = claim_nowait(home)
    assert claim is not None
    with claim, trio.fail_after(preparing.BUSY_S / 2):
        nursery.start_soon(bench.run, bench.task)
        await bench.started.wait()
        await trio.testing.wait_all_tasks_blocked()
        bench.ref.tell_nowait(Stop(FailureReason.CANCELLED))
        await bench.wait(lambda: bench.server.reports)
    assert_stopped(bench)
    assert set(bench.server.calls) == {"stopped"}
    await bench.wait(lambda: bench.shop.slots.free == 2)
    assert_clean(bench)


@pytest.mark.parametrize("site", ["told", "report put", "before stopped", "after stopped"])
async def test_a_daemon_killed_while_it_stops_a_run_still_says_that_it_is_gone(
    bench: Bench, nursery: trio.Nursery, site: str
) -> None:
    """R7.1: from the keeper's exit, or from the outbox."""
    working_on(bench)
    nursery.start_soon(bench.run, bench.task)
    await bench.wait_working()
    bench.kill_at(site, "report put")
    bench.ref.tell_nowait(Stop(FailureReason.CANCELLED))
    if site == "told":
        await bench.wait(lambda: bench.kept.look() is Standing.OVER)
        bench.life.cancel()
    await bench.wait(lambda: bench.life.cancelled_caught)
    assert await bench.run(None)
    assert_stopped(bench)
    assert bench.server.calls.index("usage") < bench.server.calls.index("stopped")
    assert processes.marked(str(bench.task.id)) == []
    assert_clean(bench)


async def test_a_verdict_that_was_there_before_the_stop_counts(
    bench: Bench, nursery: trio.Nursery
) -> None:
    """R7.1: it had finished."""
    agent = msgspec.structs.replace(
        bench.task.agent, custom_args=["sh", "-c", f"{WORK}\nexec sleep 600"]
    )
    bench.task = msgspec.structs.replace(bench.task, agent=agent)
    nursery.start_soon(bench.run, bench.task)
    await bench.wait(lambda: 1 in bench.server.said)
    bench.ref.tell_nowait(Stop(FailureReason.CANCELLED))
    await bench.wait(lambda: bench.shop.slots.free == 2)
    assert bench.kept.look() is Standing.UNBORN
    assert_completed(bench)


async def test_a_stop_that_the_server_does_not_know_is_told_as_a_cancelled_failure(
    bench: Bench, nursery: trio.Nursery
) -> None:
    """R6.3: an older server."""
    bench.server.refuse("stopped", INVALID)
    working_on(bench)
    nursery.start_soon(bench.run, bench.task)
    await bench.wait_working()
    bench.ref.tell_nowait(Stop(FailureReason.CANCELLED))
    await bench.wait(lambda: bench.server.reports)
    assert failure(bench).failure_reason == FailureReason.CANCELLED


# Cut off


RUNTIME = uuid.uuid4()


def cut_off(bench: Bench, *, is_movable: bool) -> trio.Event:
    """Its run goes on under a promise that can be taken back; set, the link is there again."""
    working_on(bench)
    agent = bench.task.agent
    script = agent.custom_args[2].replace("echo working", f"echo '{SESSION}'; echo working")
    agent = msgspec.structs.replace(agent, custom_args=["sh", "-c", script])
    bench.task = msgspec.structs.replace(
        bench.task, agent=agent, runtime_id=RUNTIME, is_movable=is_movable
    )
    is_back = trio.Event()

    async def at(site: str) -> None:
        if site in {"before fail", "before complete"}:
            await is_back.wait()

    bench.server.at = at
    return is_back


async def test_a_machine_that_is_cut_off_stops_what_another_may_be_given(
    bench: Bench, nursery: trio.Nursery
) -> None:
    """R4.11: its session and its directory stay, and what it says in the end is no cancellation."""
    is_back = cut_off(bench, is_movable=True)
    nursery.start_soon(bench.run, bench.task)
    await bench.wait_working()
    bench.shop.trust.promise(now(), {RUNTIME: 0.0})
    await bench.wait(bench.shop.outbox.claims)
    assert processes.marked(str(bench.task.id)) == []
    order = read_order(bench.kept.run_dir)
    assert order is not None
    is_back.set()
    await bench.wait(lambda: bench.server.reports)
    end = failure(bench)
    assert (end.failure_reason, end.session_id) == (FailureReason.RUNTIME_OFFLINE, "s1")
    assert end.work_dir == order.spec.work_dir
    assert await trio.Path(order.spec.work_dir).is_dir()
    assert "stopped" not in bench.server.calls


async def test_a_machine_that_is_cut_off_goes_on_with_what_nobody_can_take(
    bench: Bench, nursery: trio.Nursery
) -> None:
    """R4.11: a partition costs nothing then."""
    cut_off(bench, is_movable=False)
    nursery.start_soon(bench.run, bench.task)
    await bench.wait_working()
    bench.shop.trust.promise(now(), {RUNTIME: 0.0})
    await trio.testing.wait_all_tasks_blocked(0.1)
    signs = await bench.kept.ping()
    assert (signs.agent_alive, signs.ending) == (True, None)


async def left_by_its_daemon(bench: Bench, nursery: trio.Nursery) -> None:
    """At work, and promised something."""
    cut_off(bench, is_movable=True).set()
    nursery.start_soon(bench.run, bench.task)
    await bench.wait_working()
    bench.life.cancel()
    await bench.wait(lambda: bench.life.cancelled_caught)


async def test_a_run_that_was_found_again_goes_on_by_what_its_keeper_was_told(
    bench: Bench, nursery: trio.Nursery
) -> None:
    """R4.11, R7.4: a server that is away while daemons change costs no run."""
    await left_by_its_daemon(bench, nursery)
    bench.shop.trust = Trust(until=trio.current_time())
    nursery.start_soon(bench.run, None)
    await trio.testing.wait_all_tasks_blocked(0.2)
    assert (await bench.kept.ping()).ending is None
    assert not bench.shop.may_be_elsewhere(bench.task)
    bench.shop.trust.promise(now(), {RUNTIME: MARGIN_S + 1.0})
    await bench.wait(lambda: bench.server.reports)
    assert failure(bench).failure_reason == FailureReason.RUNTIME_OFFLINE
    assert bench.times_started() == 1


async def test_a_run_under_an_older_keeper_is_stopped_when_nobody_hears_of_it(
    bench: Bench, nursery: trio.Nursery
) -> None:
    """R4.11: by the window of a daemon that has just begun."""
    await left_by_its_daemon(bench, nursery)
    spec = bench.kept.spec()._replace(trusted_until=None)
    rundir.write_record(bench.kept.run_dir / rundir.SPEC, spec)
    bench.shop.trust = Trust(until=trio.current_time())
    assert await bench.run(None)
    assert failure(bench).failure_reason == FailureReason.RUNTIME_OFFLINE
    assert bench.times_started() == 1


async def test_a_keeper_ends_what_may_be_elsewhere_though_its_daemon_is_gone(
    bench: Bench, nursery: trio.Nursery
) -> None:
    """R4.11, R7.4: stopped or killed, by the last promise that it was told."""
    cut_off(bench, is_movable=True).set()
    nursery.start_soon(bench.run, bench.task)
    await bench.wait_working()
    assert bench.kept.spec().trusted_until == math.inf
    bench.shop.trust.promise(now(), {RUNTIME: MARGIN_S + 5})
    bench.shop.trust.promise(now(), {RUNTIME: MARGIN_S + 1.5})
    await trio.testing.wait_all_tasks_blocked(0.2)
    bench.life.cancel()
    await bench.wait(lambda: bench.life.cancelled_caught)
    assert (await bench.kept.ping()).ending is None
    end = await bench.kept.wait_exit()
    assert end is not None
    assert end.why == FailureReason.RUNTIME_OFFLINE
    bench.shop.trust = Trust(math.inf)
    assert await bench.run(None)
    assert failure(bench).failure_reason == FailureReason.RUNTIME_OFFLINE


async def test_a_promise_that_was_there_before_the_run_costs_it_nothing(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """R4.11: there is no keeper yet that could be told."""
    bench.task = msgspec.structs.replace(bench.task, runtime_id=RUNTIME, is_movable=True)
    bench.shop.trust.promise(now(), {RUNTIME: 600.0})
    assert await bench.run(bench.task)
    assert_completed(bench)
    assert "crashed" not in caplog.text


async def test_a_daemon_that_has_just_begun_promises_its_keepers_nothing(
    bench: Bench, nursery: trio.Nursery
) -> None:
    """R4.11: the window that it gives itself is no word of the server's."""
    cut_off(bench, is_movable=True).set()
    bench.shop.trust = Trust(now() + 3)
    nursery.start_soon(bench.run, bench.task)
    await bench.wait_working()
    bench.life.cancel()
    await bench.wait(lambda: bench.life.cancelled_caught)
    bench.shop.trust = Trust(math.inf)
    nursery.start_soon(bench.run, None)
    await bench.wait(lambda: bench.server.reports)
    assert failure(bench).failure_reason == FailureReason.RUNTIME_OFFLINE


# What the provider asks for


async def test_an_end_says_how_long_its_provider_asks_to_wait(bench: Bench) -> None:
    """R5.2"""
    busy = '{"type":"result","is_error":true,"reason":"provider_overloaded","retry_after_s":120}'
    agent = msgspec.structs.replace(bench.task.agent, custom_args=["echo", busy])
    assert await bench.run(msgspec.structs.replace(bench.task, agent=agent))
    end = failure(bench)
    assert (end.failure_reason, end.retry_after_s) == (FailureReason.PROVIDER_OVERLOADED, 120)


@pytest.mark.parametrize(
    ("resets_at", "expected_s"), [(None, None), (1060.0, 60.0), (900.0, 0.0), (1e12, 366 * 86400.0)]
)
async def test_a_quota_that_is_used_up_is_told_with_the_time_until_it_returns(
    bench: Bench, resets_at: float | None, expected_s: float | None
) -> None:
    """R5.2"""
    verdict = Failed(FailureReason.QUOTA_EXHAUSTED, "limit reached", resets_at=resets_at)
    spec = RunSpec(prompt="", work_dir="/work", run_dir="/run", env={})
    report = reports.judged(
        RunOrder(task=bench.task, spec=spec),
        verdict,
        Exit("exited"),
        session_id=None,
        changes=None,
        now=1e3,
    )
    body = reports.body_of(report)
    assert isinstance(body, Fail)
    assert body.retry_after_s == expected_s


async def test_who_was_to_be_stopped_says_what_nothing_has_ended(
    bench: Bench, tmp_path: Path
) -> None:
    """R7.1, R7.2: a process that waits for a dead disk is not gone, and nobody may believe so."""
    record = rundir.Exit("run", "cancelled", 1.0, 2.0, signal=9, left=["node"])
    rundir.write_record(tmp_path / rundir.EXIT, record)
    end = reports.exit_of(Kept(tmp_path))
    spec = RunSpec(prompt="", work_dir="/work", run_dir=str(tmp_path), env={})
    verdict = Failed(FailureReason.CANCELLED, "cancelled")
    report = reports.judged(
        RunOrder(task=bench.task, spec=spec), verdict, end, session_id=None, changes=None, now=1e3
    )
    assert reports.body_of(report) == Stopped(claim_token=bench.task.claim_token, left=["node"])


# A session that is not there any more

# Claude Code, as it does where it does not find the session: one line on stderr.
CLAUDE = """#!/bin/sh
echo "started $*" >> "$STARTS"
case "$*" in *--resume*) echo "No conversation found with session ID: dead" >&2; exit 1;; esac
read -r prompt
echo "$prompt" >> "$STARTS"
echo '{"type":"system","subtype":"init","session_id":"alive"}'
echo '{"type":"assistant","session_id":"alive","message":{"id":"m1","model":"m",\
"content":[{"type":"text","text":"done"}],"usage":{"input_tokens":3,"output_tokens":4}}}'
echo '{"type":"result","subtype":"success","result":"done","session_id":"alive"}'
read -r rest
"""


# And as it did once: it begins another session and says so, at the user's cost.
ANOTHER = """
case "$*" in *--resume*)
echo '{"type":"system","subtype":"init","session_id":"another"}'
echo '{"type":"assistant","session_id":"another","message":{"id":"m0","model":"m",\\
"content":[{"type":"text","text":"hello"}],"usage":{"input_tokens":10,"output_tokens":20}}}'
exit 1;; esac
"""


async def resuming(bench: Bench, tmp_path: Path, script: str = CLAUDE) -> None:
    """Its agent has worked on the issue before, in a session that has gone since."""
    claude = tmp_path / "claude"
    claude.write_text(script.replace("\\\n", ""))
    claude.chmod(0o755)
    bench.shop.found = {"claude": Found("claude", str(claude), "2.1.197")}
    agent = msgspec.structs.replace(bench.task.agent, custom_args=[])
    bench.task = msgspec.structs.replace(bench.task, provider="claude", agent=agent)
    await worked_before(bench)


async def worked_before(bench: Bench) -> None:
    issue_id = uuid.uuid4()
    issue = IssueBrief(id=issue_id, key="UND-7", title="Fix the login page")
    bench.task = msgspec.structs.replace(bench.task, issue=issue, issue_id=issue_id)
    earlier = msgspec.structs.replace(bench.task, id=uuid.uuid4())
    work = await prepare(work_order(earlier), bench.shop.repositories)
    work.claim.close()
    bench.task = msgspec.structs.replace(
        bench.task, prior_session_id="dead", prior_work_dir=str(work.path)
    )


@pytest.mark.parametrize(
    "site",
    [
        "never", "first order written", "before session", "after session", "second order written",
        "after start", "report put", "before complete", "after complete",
    ],
)  # fmt: skip
async def test_a_refused_session_is_retired_and_the_task_begun_afresh_once(
    bench: Bench, tmp_path: Path, site: str
) -> None:
    """R5.10: in the same task, with a hand-over note, wherever its daemon is killed."""
    await resuming(bench, tmp_path)
    bench.kill_at(site, "first order written", "second order written", "report put")
    if not await bench.run(bench.task):
        assert await bench.run(None)
    starts = bench.starts.read_text()
    assert (bench.times_started(), starts.count("--resume dead")) == (2, 1)
    assert "cannot be continued" in starts
    assert set(bench.server.retired) == {"dead"}
    assert [bench.server.said[n].content for n in bench.server.said] == ["done"]
    assert [(each.input_tokens, each.output_tokens) for each in bench.server.usage] == [(3, 4)]
    (report,) = bench.server.reports
    assert isinstance(report, Complete)
    assert (report.output, report.session_id) == ("done", "alive")
    assert_clean(bench)


async def test_what_a_refused_session_said_and_cost_is_kept(bench: Bench, tmp_path: Path) -> None:
    """R5.10, R6.7, R6.9: no message takes another's place, and all is on one bill."""
    lines = CLAUDE.splitlines(keepends=True)
    lines[2] = ANOTHER
    await resuming(bench, tmp_path, "".join(lines))
    assert await bench.run(bench.task)
    assert bench.times_started() == 2
    assert [bench.server.said[n].content for n in range(2)] == ["hello", "done"]
    assert [(each.input_tokens, each.output_tokens) for each in bench.server.usage] == [(13, 24)]
    assert bench.server.status == "complete"


REFUSAL = '{"type":"result","is_error":true,"reason":"resume_refused","error":"never seen"}'


async def test_who_has_lost_its_task_tells_of_a_refused_session_nevertheless(bench: Bench) -> None:
    """R5.10: nobody is to be offered it again, whatever has become of the task."""
    say = f"echo started >> $STARTS; echo '{REFUSAL}'; echo not there; exec sleep 600"
    bench.task.agent.custom_args[:] = ["sh", "-c", say]
    await worked_before(bench)
    bench.server.refuse("messages", FENCED)
    assert await bench.run(bench.task)
    assert set(bench.server.retired) == {"dead"}
    assert bench.times_started() == 1
    assert_clean(bench)


async def test_a_run_stopped_between_a_refused_session_and_its_fresh_start_is_over(
    bench: Bench, tmp_path: Path, nursery: trio.Nursery
) -> None:
    """R7.1, R5.10"""
    await resuming(bench, tmp_path)
    retiring = trio.Event()

    async def at(site: str) -> None:
        if site == "after session" and not retiring.is_set():
            retiring.set()
            bench.ref.tell_nowait(Stop(FailureReason.CANCELLED))
            await trio.testing.wait_all_tasks_blocked()

    bench.server.at = at
    nursery.start_soon(bench.run, bench.task)
    await bench.wait(lambda: bench.server.reports)
    assert_stopped(bench)
    assert bench.times_started() == 1
