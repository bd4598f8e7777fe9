"""A simulated keeper is asked what a real one is asked, and must say the same.

Each scenario stands once. Real keepers keep shell scripts in real time, simulated ones agents that
play the same part in virtual time.
"""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

import pytest
import trio
import trio.lowlevel

from understudy.core.lifecycle import Move, Status
from understudy.core.records import Priority
from understudy.daemon import control, locks, rundir
from understudy.daemon.backends.backend import RunSpec
from understudy.daemon.kept import KeeperFailed, KeeperGone, KeeperRefused, Kept, spawn_keeper
from understudy.daemon.machine import Machine, here, stand_on
from understudy.daemon.processes import Process
from understudy.daemon.record import ORDER, RunOrder, write_order
from understudy.daemon.rundir import Exit, Spec, Standing
from understudy.testing.auditor import Auditor
from understudy.testing.clock import run_virtual
from understudy.testing.evidence import Run
from understudy.testing.simulated_keepers import Keepers, Living
from understudy.testing.simulated_process import Agent, Play, Script
from understudy.testing.virtual_process import suspendable
from understudy.wire.daemon import AgentBrief, ClaimedTask

PATIENCE_S: Final = 30.0
HOUR_S: Final = 3600.0


# The same parts, played by a shell and by a script


async def sleeps(agent: Agent) -> int:
    agent.raw(b"up\n")
    await agent.hang()


async def traps(agent: Agent) -> int:
    agent.traps[signal.SIGINT] = partial(agent.raw, b"INT\n")
    agent.traps[signal.SIGTERM] = partial(agent.raw, b"TERM\n")
    return await sleeps(agent)


async def exits(agent: Agent) -> int:
    agent.raw(b"abc")
    agent.complain(b"de")
    return 3


async def is_killed(agent: Agent) -> int:
    return -signal.SIGKILL


async def reads(agent: Agent) -> int:
    agent.raw(b"up\n")
    while line := await agent.read_line():
        agent.raw(b"got " + line)
    await agent.hang()


async def reads_one(agent: Agent) -> int:
    agent.raw(b"got " + await agent.read_line())
    return 7


async def forks(agent: Agent) -> int:
    agent.fork("sleep")
    return await sleeps(agent)


async def leaves_a_child(agent: Agent) -> int:
    agent.fork("sleep")
    return 0


async def stays_with_a_result(agent: Agent) -> int:
    agent.raw(b"result\n")
    await agent.hang()


async def leaves_with_a_result(agent: Agent) -> int:
    agent.raw(b"result\n")
    await agent.read_line()
    return 4


async def floods(agent: Agent) -> int:
    agent.raw(bytes(5000))
    await agent.hang()


TRAPS: Final = "trap 'echo INT' INT; trap 'echo TERM' TERM; echo up; while :; do sleep 0.05; done"
PARTS: Final[dict[Play, str]] = {
    sleeps: "echo up; exec sleep 600",
    traps: TRAPS,
    exits: "printf abc; printf de >&2; exit 3",
    is_killed: "kill -9 $$",
    reads: "echo up; while read line; do echo got $line; done; exec sleep 600",
    reads_one: "read line; echo got $line; exit 7",
    forks: "setsid sleep 600 & echo up; exec sleep 600",
    leaves_a_child: "setsid sleep 600 & exit 0",
    stays_with_a_result: "echo result; exec sleep 600",
    leaves_with_a_result: "echo result; cat; exit 4",
    floods: "head -c 5000 /dev/zero; exec sleep 600",
}


@dataclass
class Stage:
    """`plays` are the parts of simulated agents, by run; None where the agents are real."""

    root: Path
    plays: dict[str, Play] | None = None
    known: list[Kept] = field(default_factory=list)

    async def start(
        self, play: Play, *, descriptors: Sequence[int] = (), **changes: object
    ) -> Kept:
        run_dir = self.root / f"run{len(self.known)}"
        return await self.spawn(play, run_dir, descriptors=descriptors, **changes)

    async def spawn(
        self, play: Play, run_dir: Path, *, descriptors: Sequence[int] = (), **changes: object
    ) -> Kept:
        task = claimed()
        spec = Spec(
            run=str(task.id),
            argv=["sh", "-c", PARTS.get(play, "")],
            cwd=str(self.root),
            env={"PATH": os.environ["PATH"]},
            grace_s=0.2,
        )
        spec = spec._replace(**cast(dict[str, Any], changes))
        if self.plays is not None:
            self.plays[spec.run] = play
        if run_dir not in {each.run_dir for each in self.known}:
            write_order(run_dir, RunOrder(task=task, spec=RunSpec("", "/", str(run_dir), {})))
        kept = Kept(run_dir)
        self.known.append(kept)
        return await spawn_keeper(run_dir, spec, descriptors=descriptors)

    async def end(self) -> None:
        for kept in self.known:
            if (kept.run_dir / rundir.STATE).exists():
                here().send([keeper_of(kept), *here().marked(kept.spec().run)], signal.SIGKILL)


@dataclass
class SimulatedStage(Stage):
    keepers: Keepers = field(kw_only=True)
    auditor: Auditor = field(kw_only=True)

    def runs(self) -> list[Run]:
        return [*self.auditor.runs.values()]


def claimed() -> ClaimedTask:
    at, some = datetime(2026, 1, 1, tzinfo=UTC), uuid.UUID(int=7)
    return ClaimedTask(
        id=uuid.uuid4(),
        agent_id=some,
        workspace_id=some,
        provider="scripted",
        status=Status.DISPATCHED,
        move=Move.CLAIM,
        trigger="assign",
        priority=Priority.NONE,
        attempt=1,
        max_attempts=2,
        created_at=at,
        claim_expires_at=at,
        agent=AgentBrief(id=some, name="Nia"),
    )


def keeper_of(kept: Kept) -> Process:
    state = kept.state()
    return Process(state.keeper_pid, state.keeper_start)


def output(kept: Kept) -> str:
    return (kept.run_dir / rundir.OUT).read_text()


async def wait_until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110  Files and processes send no event.
        await trio.sleep(0.01)


async def wait_output(kept: Kept, text: str) -> None:
    await wait_until(lambda: text in output(kept))


async def wait_over(kept: Kept) -> Exit:
    record = await kept.wait_exit()
    assert record is not None
    return record


async def ping_forever(kept: Kept) -> None:
    while True:
        with suppress(KeeperGone):
            await kept.ping()
        await trio.sleep(0.1)


# What must be so of both


async def an_exit_is_written_down(stage: Stage) -> None:
    record = await wait_over(await stage.start(exits))
    assert (record.why, record.code, record.signal, record.error) == ("exited", 3, None, None)
    assert (record.out_bytes, record.err_bytes) == (3, 2)
    assert record.ended_at >= record.started_at
    record = await wait_over(await stage.start(is_killed))
    assert (record.why, record.code, record.signal) == ("exited", None, 9)


async def the_directory_goes_through_the_same_files(stage: Stage) -> None:
    kept = await stage.start(sleeps, stdin="hello\n")
    records = {rundir.SPEC, rundir.STATE, ORDER}
    at_work = {rundir.LOCK, rundir.LOG, rundir.OUT, rundir.ERR, rundir.FRAMES}
    files = {path.name for path in kept.run_dir.iterdir() if path.is_file()}
    assert files == records | at_work
    assert kept.look() is Standing.KEPT
    state = kept.state()
    assert here().marked(kept.spec().run) == [Process(state.agent_pid or 0, state.agent_start or 0)]
    await kept.stop("cancelled")
    await wait_over(kept)
    assert kept.look() is Standing.OVER
    await wait_until(lambda: not locks.is_locked(kept.run_dir / rundir.LOCK))
    assert kept.frames() == ["hello\n"]


async def a_stop_asks_then_tells_then_kills(stage: Stage) -> None:
    kept = await stage.start(traps)
    await wait_output(kept, "up")
    assert (await kept.stop("cancelled")).ending == "cancelled"
    record = await wait_over(kept)
    assert (record.why, record.signal, record.left) == ("cancelled", 9, [])
    assert output(kept) == "up\nINT\nTERM\n"


async def the_interrupt_frame_comes_before_any_signal(stage: Stage) -> None:
    kept = await stage.start(reads_one, interrupt="stop\n", grace_s=20)
    await kept.stop("cancelled")
    record = await wait_over(kept)
    assert (record.why, record.code) == ("cancelled", 7)
    assert (output(kept), kept.frames()) == ("got stop\n", ["stop\n"])


async def the_first_reason_stands(stage: Stage) -> None:
    kept = await stage.start(traps)
    await wait_output(kept, "up")
    await kept.stop("cancelled")
    assert (await kept.stop("changed_my_mind")).ending == "cancelled"
    assert (await wait_over(kept)).why == "cancelled"


async def who_hears_of_no_daemon_stops(stage: Stage) -> None:
    kept = await stage.start(sleeps, orphan_s=0.6)
    for _ in range(5):
        await trio.sleep(0.3)
        assert (await kept.ping()).ending is None
    assert (await wait_over(kept)).why == "orphaned"


async def a_promise_ends_and_its_agent_with_it(stage: Stage) -> None:
    """R4.11: the last word counts, whoever pings; without a promise nothing ends it."""
    at = here().boot_s() + 600
    kept, other = await stage.start(sleeps, trusted_until=at), await stage.start(sleeps)
    began = trio.current_time()
    assert (await kept.trust(here().boot_s() + 1)).ending is None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ping_forever, kept)
        assert (await wait_over(kept)).why == "runtime_offline"
        nursery.cancel_scope.cancel()
    assert 0.95 < trio.current_time() - began < 8  # It looks every two seconds; others are busy.
    assert (await other.ping()).ending is None


async def a_frame_is_written_once(stage: Stage) -> None:
    kept = await stage.start(reads, stdin="first\n")
    await wait_output(kept, "got first")
    assert (await kept.write(1, "one\n")).next_n == 2
    assert (await kept.write(1, "one\n")).next_n == 2
    with pytest.raises(KeeperRefused, match="frame 3 leaves a gap: the next is 2"):
        await kept.write(3, "three\n")
    assert not (await kept.close_stdin()).stdin_open
    with pytest.raises(KeeperRefused, match="stdin is closed"):
        await kept.write(2, "two\n")
    await wait_output(kept, "got one")
    await kept.stop("cancelled")
    await wait_over(kept)
    assert output(kept) == "up\ngot first\ngot one\n"
    assert kept.frames() == ["first\n", "one\n"]


async def what_it_cannot_do_it_says(stage: Stage) -> None:
    kept = await stage.start(sleeps)
    with pytest.raises(KeeperRefused, match=r"cannot do .*'number': 'nine'} now"):
        await kept._ask(op="signal", number="nine")
    signs = await kept.ping()
    assert (signs.next_n, signs.agent_alive, signs.ending) == (0, True, None)
    await kept.signal(signal.SIGUSR1)
    assert (await wait_over(kept)).signal == signal.SIGUSR1


async def a_killed_keeper_is_lost_and_its_children_can_be_swept(stage: Stage) -> None:
    kept = await stage.start(forks)
    await wait_output(kept, "up")
    agent = Process(kept.state().agent_pid or 0, kept.state().agent_start or 0)
    await wait_until(lambda: len(here().marked(kept.spec().run)) == 2)
    here().send([keeper_of(kept)], signal.SIGKILL)
    assert await kept.wait_exit() is None
    assert kept.look() is Standing.LOST
    await wait_until(lambda: agent not in here().marked(kept.spec().run))
    assert "sleep" in await kept.sweep()
    assert here().marked(kept.spec().run) == []
    with pytest.raises(KeeperGone):
        await kept.ping()


async def a_second_keeper_is_refused(stage: Stage) -> None:
    kept = await stage.start(sleeps)
    assert await here().start_keeper(kept.run_dir, []) == "another keeper holds the lock"
    await kept.stop("cancelled")
    await wait_over(kept)
    await wait_until(lambda: not locks.is_locked(kept.run_dir / rundir.LOCK))
    assert await here().start_keeper(kept.run_dir, []) == "this run was started before"
    with pytest.raises(KeeperFailed):
        await stage.spawn(sleeps, kept.run_dir)
    (kept.run_dir / rundir.STATE).unlink()
    assert await here().start_keeper(kept.run_dir, []) == "this run was started before"


async def a_result_begins_a_linger(stage: Stage) -> None:
    done: dict[str, Any] = {"done": "^result$", "linger_s": 0.5}
    stays = await stage.start(stays_with_a_result, **done)
    leaves = await stage.start(leaves_with_a_result, **done)
    record = await wait_over(leaves)
    assert (record.why, record.code) == ("exited", 4)
    record = await wait_over(stays)
    assert (record.why, record.signal) == ("done", signal.SIGINT)


async def limits_end_a_run(stage: Stage) -> None:
    late, loud = await stage.start(sleeps, max_s=0.3), await stage.start(floods, spool_max=1000)
    assert (await wait_over(late)).why == "max_time"
    record = await wait_over(loud)
    assert (record.why, record.out_bytes) == ("spool_full", 5000)


async def a_keeper_told_to_end_ends_its_run(stage: Stage) -> None:
    kept = await stage.start(forks)
    await wait_output(kept, "up")
    here().send([keeper_of(kept)], signal.SIGTERM)
    record = await wait_over(kept)
    assert (record.why, record.left) == ("keeper_sigterm", [])
    assert here().marked(kept.spec().run) == []


async def what_outlives_the_agent_is_swept(stage: Stage) -> None:
    record = await wait_over(await stage.start(leaves_a_child))
    assert (record.why, record.code, record.swept) == ("exited", 0, ["sleep"])


async def a_daemons_locks_are_held_by_the_keeper(stage: Stage) -> None:
    path = stage.root / "claim"
    claim = locks.take_lock(path)
    assert claim is not None
    kept = await stage.start(sleeps, descriptors=[claim])
    os.close(claim)
    assert locks.is_locked(path)
    await kept.stop("cancelled")
    await wait_over(kept)
    await wait_until(lambda: not locks.is_locked(path))


Scenario: TypeAlias = Callable[[Stage], Awaitable[None]]
SCENARIOS: Final[tuple[Scenario, ...]] = (
    an_exit_is_written_down,
    the_directory_goes_through_the_same_files,
    a_stop_asks_then_tells_then_kills,
    the_interrupt_frame_comes_before_any_signal,
    the_first_reason_stands,
    who_hears_of_no_daemon_stops,
    a_promise_ends_and_its_agent_with_it,
    a_frame_is_written_once,
    what_it_cannot_do_it_says,
    a_killed_keeper_is_lost_and_its_children_can_be_swept,
    a_second_keeper_is_refused,
    a_result_begins_a_linger,
    limits_end_a_run,
    a_keeper_told_to_end_ends_its_run,
    what_outlives_the_agent_is_swept,
    a_daemons_locks_are_held_by_the_keeper,
)
SLOW: Final = {who_hears_of_no_daemon_stops, a_promise_ends_and_its_agent_with_it}


@pytest.mark.parametrize(
    "scenario",
    [pytest.param(each, marks=pytest.mark.slow) if each in SLOW else each for each in SCENARIOS],
    ids=lambda each: each.__name__,
)
async def test_of_a_real_keeper(scenario: Scenario, tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    try:
        with trio.fail_after(PATIENCE_S):
            await scenario(stage)
    finally:
        await stage.end()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.__name__)
def test_of_a_simulated_keeper(scenario: Scenario, tmp_path: Path) -> None:
    run_virtual(partial(on_a_simulated_machine, scenario, tmp_path), seed=1)


@dataclass
class SimulatedMachine:
    """What a daemon's view of its keepers asks of a machine."""

    keepers: Keepers

    def __post_init__(self) -> None:
        self.start_keeper = self.keepers.start
        self.connect = self.keepers.connect
        self.marked = self.keepers.marked
        self.name_of = self.keepers.name_of
        self.send = self.keepers.send
        self.boot_s = self.keepers.boot_s


async def on_a_simulated_machine(scenario: Scenario, root: Path) -> None:
    async with open_machine(root) as stage:
        await scenario(stage)


@asynccontextmanager
async def open_machine(root: Path) -> AsyncIterator[SimulatedStage]:
    """Asserts that nothing of it is left when its power is cut."""
    plays: dict[str, Play] = {}
    auditor = Auditor()
    before = open_files()
    with suspendable():
        async with trio.open_nursery() as nursery:
            keepers = Keepers(
                "machine-0",
                nursery,
                auditor,
                lambda _task, spec, _earlier: Script("part", plays[spec.run]),
                boot_s=trio.current_time,
                epoch_s=trio.current_time,
            )
            stand_on(cast(Machine, SimulatedMachine(keepers)))
            with trio.fail_after(HOUR_S):
                yield SimulatedStage(root, plays, keepers=keepers, auditor=auditor)
            keepers.kill_all()
            assert keepers.living() == []
    assert open_files() == before


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


# What happens to simulated machines only


def simulated(test: Callable[[SimulatedStage], Awaitable[None]]) -> Callable[[Path], None]:
    async def main(root: Path) -> None:
        async with open_machine(root) as stage:
            await test(stage)

    def run(tmp_path: Path) -> None:
        run_virtual(partial(main, tmp_path), seed=1)

    run.__name__ = test.__name__
    return run


@simulated
async def test_a_machine_that_sleeps_makes_nobody_older(stage: SimulatedStage) -> None:
    """Its monotonic clock stands still; the boot's, by which promises are kept, does not."""
    kept = await stage.start(prints_every_second, orphan_s=10)
    other = await stage.start(sleeps, trusted_until=trio.current_time() + 10, orphan_s=20)
    await trio.sleep(3.5)
    stage.keepers.suspend()
    lines = output(kept)
    await trio.sleep(20)
    assert output(kept) == lines
    stage.keepers.resume()
    await trio.sleep(1)
    assert output(kept) == lines + "tick\n"
    await trio.sleep(2)
    assert other.exit().why == "runtime_offline"
    assert kept.look() is Standing.KEPT
    await trio.sleep(4)
    assert kept.exit().why == "orphaned"
    (run, _) = stage.auditor.runs.values()
    assert run.spans == [(0, 3.5), (23.5, pytest.approx(30))]


async def prints_every_second(agent: Agent) -> int:
    while True:
        await agent.sleep(1)
        agent.raw(b"tick\n")


@simulated
async def test_who_is_asked_while_the_machine_sleeps_answers_when_it_wakes(
    stage: SimulatedStage,
) -> None:
    kept = await stage.start(sleeps)
    stage.keepers.suspend()
    with trio.move_on_after(5) as scope:
        await kept.ping()
    assert scope.cancelled_caught
    stage.keepers.resume()
    assert (await kept.ping()).agent_alive


@simulated
async def test_a_power_cut_leaves_a_lost_run_and_nobody(stage: SimulatedStage) -> None:
    kept = await stage.start(forks)
    stage.keepers.kill_all()
    assert (kept.look(), stage.keepers.living()) == (Standing.LOST, [])
    assert await kept.sweep() == []
    (run,) = stage.auditor.runs.values()
    assert (run.has_finished, run.spans) == (False, [(0, 0)])


async def reads_and_forks(agent: Agent) -> int:
    await agent.read_line()
    agent.fork("sleep")
    return 0


@pytest.mark.parametrize("step", range(16))
@pytest.mark.parametrize(
    "play", [exits, leaves_a_child, reads_and_forks], ids=lambda play: play.__name__
)
def test_a_keeper_may_die_at_any_await(play: Play, step: int, tmp_path: Path) -> None:
    """R8.1: what it leaves can be told, and swept; it is never lost and begun anew."""

    async def main() -> None:
        async with open_machine(tmp_path) as stage:
            async with trio.open_nursery() as nursery:
                left = await nursery.start(doom_the_first, stage.keepers, step)
                with suppress(KeeperFailed):
                    kept = await stage.start(play, stdin="go\n")
                    assert kept.look() is not Standing.UNBORN
            await trio.sleep(60)
            (kept,) = stage.known
            standing = kept.look()
            assert not locks.is_locked(kept.run_dir / rundir.LOCK)
            assert standing is not Standing.KEPT
            assert stage.keepers.living() == left, "it did something after its death"
            if standing is Standing.LOST:
                await kept.sweep()
            assert stage.keepers.living() == []
            assert all(run.has_finished == (standing is Standing.OVER) for run in stage.runs())
            if standing is Standing.UNBORN:
                assert stage.runs() == []

    run_virtual(main, seed=step)


async def doom_the_first(
    keepers: Keepers, step: int, task_status: trio.TaskStatus[list[Living]]
) -> None:
    """Gives a list, of what is alive just after it died."""
    left: list[Living] = []
    task_status.started(left)
    while not keepers.keepers():
        await trio.lowlevel.checkpoint()
    (keeper,) = keepers.keepers()
    keeper.kill_after(step)
    keeper.at_death.insert(0, lambda: left.extend(keepers.living()))


@simulated
async def test_the_dead_write_into_nobodys_files(stage: SimulatedStage) -> None:
    """Their descriptors have been given out again."""

    async def talks_on(agent: Agent) -> int:
        agent.hear(signal.SIGKILL)
        with (stage.root / "other").open("wb", buffering=0):
            agent.raw(b"I am dead.")
        return 0

    record = await wait_over(await stage.start(talks_on))
    assert (record.signal, record.out_bytes) == (signal.SIGKILL, 0)
    assert (stage.root / "other").read_bytes() == b""


@simulated
async def test_who_holds_32_connections_gets_no_more(stage: SimulatedStage) -> None:
    kept = await stage.start(sleeps)
    streams = [await kept._connect() for _ in range(control.CLIENTS_MAX)]
    with pytest.raises(KeeperGone):
        await kept.ping()
    await streams[0].aclose()
    assert (await kept.ping()).agent_alive
