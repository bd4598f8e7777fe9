"""Restarts, escalation, the order of a stop, and what the process says when it ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio

from understudy.core.restarts import CannotStart, ChildEnded, RestartPolicy
from understudy.core.tree import Branch, Node, State
from understudy.supervisor import (
    Children,
    RestartsExhausted,
    exit_code,
    open_children,
    supervise,
)
from understudy.testing.clock import VirtualClock, run_virtual

POLICY = RestartPolicy(restarts_max=3, period_s=60, delay_s=1)


@pytest.fixture
def virtual_clock() -> VirtualClock:
    return VirtualClock()


def only_child(tree: Branch) -> Node:
    (node,) = tree.snapshot(trio.current_time()).children
    return node


async def hopeless(*, task_status: trio.TaskStatus[None]) -> None:
    task_status.started()
    raise ValueError("boom")


async def steady(*, task_status: trio.TaskStatus[None]) -> None:
    task_status.started()
    await trio.sleep_forever()


async def test_a_nursery_under_supervision_restarts_all_or_none(
    nursery: trio.Nursery, virtual_clock: VirtualClock
) -> None:
    starts: list[str] = []

    async def sound(*, task_status: trio.TaskStatus[None]) -> None:
        starts.append("sound")
        await steady(task_status=task_status)

    async def fragile(*, task_status: trio.TaskStatus[None]) -> None:
        starts.append("fragile")
        task_status.started()
        await trio.sleep(5)
        raise ValueError

    async def pair(*, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as pair:
            await pair.start(sound)
            await pair.start(fragile)
            task_status.started()

    await nursery.start(supervise, Branch("pair"), pair, POLICY)
    await trio.sleep(7)
    assert starts == ["sound", "fragile", "sound", "fragile"]


async def test_escalation_climbs_one_floor_at_a_time(virtual_clock: VirtualClock) -> None:
    tree = Branch("server")
    starts = 0

    async def subtree(branch: Branch, *, task_status: trio.TaskStatus[None]) -> None:
        nonlocal starts
        starts += 1
        async with trio.open_nursery() as children:
            await children.start(supervise, branch.child("hopeless"), hopeless, POLICY)
            task_status.started()

    with pytest.RaisesGroup(pytest.RaisesExc(RestartsExhausted, match="server/subtree crashed")):
        async with trio.open_nursery() as nursery:
            branch = tree.child("subtree")
            await nursery.start(supervise, branch, partial(subtree, branch), POLICY)
    assert starts == 4


async def test_a_process_that_ended_is_a_sentence_in_the_log_and_no_traceback(
    virtual_clock: VirtualClock, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    async def child(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await trio.sleep(5)
        raise ChildEnded("serve ended with status -9")

    await nursery.start(supervise, Branch("up"), child, POLICY)
    await trio.sleep(5.5)
    (record,) = caplog.records
    assert record.getMessage().startswith("up: serve ended with status -9; again in ")
    assert record.exc_info is None


async def test_cancellation_is_not_a_crash(virtual_clock: VirtualClock) -> None:
    branch = Branch("service")
    async with trio.open_nursery() as nursery:
        await nursery.start(supervise, branch, steady, POLICY)
        nursery.cancel_scope.cancel()
    assert branch.snapshot(0.0).incarnation == 1
    assert branch.snapshot(0.0).last_crash is None


async def test_a_crash_while_everything_stops_is_logged_and_climbs_no_further(
    virtual_clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def stumble() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("boom")

    async def service(*, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stumble)
            nursery.start_soon(trio.sleep_forever)
            task_status.started()

    async with trio.open_nursery() as nursery:
        await nursery.start(supervise, Branch("service"), service, POLICY)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert caplog.messages == ["service crashed while it stopped"]


async def test_normal_return_ends_supervision(nursery: trio.Nursery) -> None:
    async def once(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()

    await nursery.start(supervise, Branch("once"), once, POLICY)


async def test_a_failing_first_start_is_the_starters_and_comes_unwrapped() -> None:
    async def unready(*, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery(), trio.open_nursery():
            raise LookupError("no schema")

    async with trio.open_nursery() as nursery:
        with pytest.raises(LookupError, match="no schema"):
            await nursery.start(supervise, Branch("unready"), unready, POLICY)


async def test_the_tree_tells_starting_from_running_from_waiting(
    nursery: trio.Nursery, virtual_clock: VirtualClock
) -> None:
    tree = Branch("server")

    async def slow_to_start(*, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep(5)
        task_status.started()
        await trio.sleep(5)
        raise ValueError("boom")

    nursery.start_soon(supervise, tree.child("slow"), slow_to_start, POLICY)
    states: list[tuple[State, int, int]] = []
    for wait_s in (1, 5, 4.5, 1):
        await trio.sleep(wait_s)
        node = only_child(tree)
        states.append((node.state, node.incarnation, node.restarts))
    assert states == [
        (State.STARTING, 1, 0),
        (State.RUNNING, 1, 0),
        (State.WAITING, 1, 0),
        (State.STARTING, 2, 1),
    ]


async def test_the_tree_keeps_the_last_crash_out_of_its_groups(
    nursery: trio.Nursery, virtual_clock: VirtualClock
) -> None:
    tree = Branch("server")

    async def grouped(*, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as inner:
            inner.start_soon(partial(hopeless, task_status=task_status))

    await nursery.start(supervise, tree.child("grouped"), grouped, RestartPolicy(delay_s=60))
    await trio.sleep(30)
    crash = only_child(tree).last_crash
    assert crash is not None
    assert (crash.error, crash.message, crash.at, crash.ago_s) == ("ValueError", "boom", 0, 30)


async def test_ended_services_leave_the_tree() -> None:
    tree = Branch("server")
    async with trio.open_nursery() as nursery:
        await nursery.start(supervise, tree.child("steady"), steady, POLICY)
        assert only_child(tree).name == "steady"
        nursery.cancel_scope.cancel()
    assert tree.snapshot(0.0).children == ()
    assert tree.snapshot(0.0).ended == 1


class Stage:
    """Children that say when they stop."""

    def __init__(self) -> None:
        self.stops: list[tuple[str, float]] = []

    async def play(
        self, branch: Branch, last_words_s: float, *, task_status: trio.TaskStatus[None]
    ) -> None:
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(last_words_s)
            self.stops.append((branch.name, trio.current_time()))

    async def raise_the_curtain(self, children: Children) -> None:
        for name in ("database", "actors", "http"):
            await children.start(self.play, Branch(name), 2.0)


async def test_children_stop_in_reverse_start_order_each_after_the_other(
    virtual_clock: VirtualClock,
) -> None:
    """Invariant 30: children stop in reverse start order."""
    stage = Stage()
    async with open_children(stop_s=10) as children:
        await stage.raise_the_curtain(children)
    assert stage.stops == [("http", 2), ("actors", 4), ("database", 6)]


async def test_the_order_holds_when_everything_is_cancelled(virtual_clock: VirtualClock) -> None:
    stage = Stage()
    with trio.move_on_after(1):
        async with open_children(stop_s=10) as children:
            await stage.raise_the_curtain(children)
            await trio.sleep_forever()
    assert stage.stops == [("http", 3), ("actors", 5), ("database", 7)]


async def test_the_order_holds_when_a_child_crashes(virtual_clock: VirtualClock) -> None:
    stage = Stage()

    async def crash(branch: Branch, *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await trio.sleep(1)
        raise ValueError("boom")

    with pytest.RaisesGroup(ValueError):
        async with open_children(stop_s=10) as children:
            await children.start(crash, Branch("fragile"))
            await stage.raise_the_curtain(children)
            await trio.sleep_forever()
    assert stage.stops == [("http", 3), ("actors", 5), ("database", 7)]


async def test_the_order_holds_when_a_later_child_cannot_start(virtual_clock: VirtualClock) -> None:
    stage = Stage()

    async def unready(branch: Branch, *, task_status: trio.TaskStatus[None]) -> None:
        raise CannotStart("The port is taken.")

    with pytest.RaisesGroup(CannotStart):
        async with open_children(stop_s=10) as children:
            await stage.raise_the_curtain(children)
            await children.start(unready, Branch("unready"))
    assert [name for name, _ in stage.stops] == ["http", "actors", "database"]


async def test_a_start_that_hangs_can_be_cancelled(virtual_clock: VirtualClock) -> None:
    async def never_ready(branch: Branch, *, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep_forever()

    with trio.move_on_after(5) as scope:
        async with open_children(stop_s=10) as children:
            await children.start(never_ready, Branch("never"))
    assert scope.cancelled_caught
    assert trio.current_time() == 5


async def test_a_child_that_is_asked_to_finish_may_do_so_until_its_deadline(
    virtual_clock: VirtualClock,
) -> None:
    ends: list[tuple[str, float]] = []

    async def drain(
        branch: Branch, stopping: trio.Event, drain_s: float, *, task_status: trio.TaskStatus[None]
    ) -> None:
        task_status.started()
        await stopping.wait()
        with trio.move_on_after(drain_s) as draining:
            await trio.sleep_forever()
        ends.append((branch.name, trio.current_time()))
        assert draining.cancelled_caught

    async with open_children(stop_s=10) as children:
        for name, drain_s in (("slow", 60), ("quick", 3)):
            stopping = trio.Event()
            branch = Branch(name)
            await children.start(drain, branch, stopping, drain_s, finish=stopping.set)
    assert ends == [("quick", 3)]
    assert trio.current_time() == 13


async def test_a_child_that_ignores_its_cancellation_is_named_and_holds_up_no_other(
    virtual_clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage()
    async with open_children(stop_s=10) as children:
        await children.start(stage.play, Branch("database"), 0)
        await children.start(stage.play, Branch("deaf"), 60)
    assert caplog.messages == ["deaf ignores its cancellation; the others stop without it"]
    assert stage.stops == [("database", 10), ("deaf", 60)]


async def test_a_crash_in_the_last_words_holds_up_no_other(
    virtual_clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage()

    async def stumble(branch: Branch, *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("boom")

    async with open_children(stop_s=10) as children:
        await stage.raise_the_curtain(children)
        await children.start(stumble, Branch("stumbler"))
    assert caplog.messages == ["stumbler crashed while it stopped"]
    assert stage.stops == [("http", 2), ("actors", 4), ("database", 6)]


async def test_an_impatient_interrupt_cancels_everybody_at_once(
    virtual_clock: VirtualClock,
) -> None:
    """A second Ctrl-C breaks off the order, but no child is left running."""
    stage = Stage()

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.RaisesGroup(KeyboardInterrupt):
        async with open_children(stop_s=10) as children:
            await stage.raise_the_curtain(children)
            await children.start(stage.play, Branch("last"), 2.0, finish=interrupt)
    assert sorted(stage.stops) == [("actors", 2), ("database", 2), ("http", 2), ("last", 2)]


async def test_a_child_that_ended_by_itself_is_not_waited_for(virtual_clock: VirtualClock) -> None:
    async def brief(branch: Branch, *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()

    async with open_children(stop_s=10) as children:
        await children.start(brief, Branch("brief"), finish=pytest.fail)
        await trio.sleep(1)
    assert trio.current_time() == 1


def raised(tree: Callable[[], Awaitable[None]]) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011  # Whatever it is, it is the question.
        run_virtual(tree, seed=0)
    return caught.value


async def give_up() -> None:
    async def subtree(branch: Branch, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as inner:
            await inner.start(supervise, branch.child("http"), hopeless, POLICY)
            task_status.started()

    tree = Branch("server")
    async with trio.open_nursery() as nursery:
        web = tree.child("web")
        await nursery.start(supervise, web, partial(subtree, web), RestartPolicy(restarts_max=0))


def test_a_tree_that_gave_up_tells_the_chain_down_to_the_cause(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = raised(give_up)
    caplog.clear()
    assert exit_code(error) == 70
    lines = caplog.messages[0].splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("gave up: RestartsExhausted: server/web crashed")
    assert lines[1].startswith("  because RestartsExhausted: server/web/http crashed")
    assert lines[2] == "  because ValueError: boom"
    assert caplog.records[0].exc_info is not None
    assert caplog.records[0].exc_info[0] is ValueError


def test_what_cannot_start_says_only_what_to_do(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    sentence = "Port 7777 is taken: stop what listens there, or set UNDERSTUDY_PORT."
    error = ExceptionGroup("tree", [ExceptionGroup("subtree", [CannotStart(sentence)])])
    assert exit_code(error) == 1
    assert capsys.readouterr().err == f"{sentence}\n"
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), 130),
        (BaseExceptionGroup("tree", [KeyboardInterrupt(), ValueError("boom")]), 130),
        (ValueError("boom"), 70),
        (ExceptionGroup("tree", [CannotStart("Do this."), ValueError("boom")]), 70),
    ],
)
def test_the_worst_end_decides_the_code(error: BaseException, code: int) -> None:
    assert exit_code(error) == code


PROCESS = """
import os, signal, sys, trio
from understudy.core.restarts import RestartPolicy
from understudy.core.tree import Branch
from understudy.supervisor import open_children, run_tree, supervise

async def service(*, task_status):
    task_status.started()
    try:
        match sys.argv[1]:
            case "crash":
                raise ValueError("boom")
            case "SIGTERM" | "SIGINT" as name:
                await trio.to_thread.run_sync(os.kill, os.getpid(), signal.Signals[name])
                await trio.sleep_forever()
    finally:
        if sys.argv[1] == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)  # Asked twice, it still finishes.
        print("last words")

async def main():
    async with open_children(stop_s=30) as children:
        branch = Branch("service")
        await children.start(supervise, branch, service, RestartPolicy(restarts_max=0))
        if sys.argv[1] != "return":
            await trio.sleep_forever()

sys.exit(run_tree(main))
"""


@pytest.mark.parametrize(
    ("ending", "code"), [("return", 0), ("SIGTERM", 0), ("SIGINT", 130), ("crash", 70)]
)
def test_a_process_ends_with_its_last_words_and_an_honest_code(ending: str, code: int) -> None:
    process = subprocess.run(
        [sys.executable, "-c", PROCESS, ending],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (process.stdout, process.returncode) == ("last words\n", code)
    assert ("because ValueError: boom" in process.stderr) == (ending == "crash")
