"""What a person does with runs: ask why, cancel, run again, speak, ping, remove (R7.6, R10.4)."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias
from uuid import UUID

import pytest
import trio
from click.testing import Result

from understudy.cli.client import CONFLICT, FORBIDDEN, NOT_FOUND, USAGE
from understudy.core.failures import FailureReason
from understudy.store import runtimes, sweeps, tasks
from understudy.store.tasks import Failure, Holder
from understudy.store.tokens import agent_key
from understudy.testing.board import Board, Claim
from understudy.testing.node import Node

Call: TypeAlias = Callable[..., Awaitable[Result]]
Ask: TypeAlias = Callable[..., Awaitable[Any]]
Tell: TypeAlias = Callable[..., Awaitable[str]]

NOBODY = "00000000-0000-0000-0000-000000000000"
KEPT: dict[str, Any] = {"session_id": None, "work_dir": None}


@dataclass(frozen=True)
class Run:
    """A run that has begun, of Nia on UND-1."""

    board: Board
    id: str
    holder: Holder

    async def fail(self, reason: FailureReason, error: str) -> str:
        """The id of its retry, or an empty text."""
        ended = await tasks.fail(self.board.database, self.holder, Failure(reason, error), **KEPT)
        assert ended.task is not None
        return str(ended.task.retry_task_id or "")

    async def give_up(self) -> str:
        """As when its daemon comes back and knows nothing of it; the id of its retry."""
        (lost,) = await sweeps.recover(
            self.board.database,
            self.board.workspace_id,
            self.board.runtime_id,
            kept=[],
            same_process=False,
        )
        return str(lost.retry_task_id)

    async def complete(self) -> None:
        await tasks.complete(self.board.database, self.holder, {"output": "Done."}, **KEPT)

    @property
    def key(self) -> str:
        assert self.holder.claim_token is not None
        return agent_key(UUID(self.id), self.holder.claim_token)


async def begin(board: Board, claim: Claim) -> Run:
    held = Holder(board.workspace_id, claim.task.id, claim.claim_token)
    await tasks.start(board.database, held)
    return Run(board, str(claim.task.id), held)


@pytest.fixture
async def board(node: Node) -> Board:
    return await Board.set_up(node.database)


@pytest.fixture
async def run(board: Board) -> Run:
    (claim,) = await board.dispatched("Write it down")
    return await begin(board, claim)


def refused(done: Result, code: int, word: str) -> None:
    assert done.exit_code == code, done.output
    assert word in done.stderr


async def test_why_says_what_a_task_waits_for_and_what_changes_it(
    board: Board, tell: Tell, ask: Ask
) -> None:
    """R10.4"""
    await runtimes.go_offline(board.database, [board.runtime_id], action="deregister")
    task = (await board.assign(await board.issue("Waits"))).task
    assert task is not None
    said = await tell("why", str(task.id))
    assert said.startswith("queued: runtime laptop/scripted is offline since ")
    assert "It changes when it comes back: `understudy daemon start`" in said
    assert "At the latest: " in said
    found = await ask("why", str(task.id))
    assert (found["constraint"], found["task_id"]) == ("runtime_offline", str(task.id))
    assert await tell("why", "und-1") == said
    assert [each["constraint"] for each in await ask("why", "UND-1")] == ["runtime_offline"]


async def test_why_of_an_issue_is_of_all_that_is_active_on_it_else_of_its_newest_run(
    run: Run, tell: Tell, ask: Ask
) -> None:
    await tell("issue", "rerun", "UND-1", "--after")
    said = await tell("why", "UND-1")
    assert f"task {run.id}\nrunning on laptop/scripted" in said
    assert "queued: it follows the run that agent Nia already has" in said
    assert len(await ask("why", "UND-1")) == 2
    await tell("issue", "cancel", "UND-1")
    await tasks.confirm_stop(run.board.database, run.holder)
    (last,) = await ask("why", "UND-1")
    assert last["status"] == "cancelled"


async def test_why_of_what_has_no_run_or_is_not_there_is_3(call: Call) -> None:
    await call("issue", "create", "T")
    refused(await call("why", "UND-1"), NOT_FOUND, "no run yet")
    for unknown in ("UND-9", NOBODY, "nonsense"):
        refused(await call("why", unknown), NOT_FOUND, "not found")


async def test_a_run_is_cancelled_in_two_phases_and_every_list_says_so(
    run: Run, tell: Tell, ask: Ask, call: Call
) -> None:
    """R7.1"""
    assert "is being cancelled: its machine" in await tell("task", "cancel", run.id)
    assert "is being cancelled already" in await tell("task", "cancel", run.id)
    assert "cancelling" in await tell("task", "list")
    shown = await tell("task", "show", run.id)
    assert "status  cancelling" in shown
    assert "why  cancelling: laptop/scripted was told" in shown
    assert "cancelling\n" in await tell("issue", "show", "UND-1")
    await tasks.confirm_stop(run.board.database, run.holder)
    assert "was cancelled already" in await tell("task", "cancel", run.id)
    assert (await ask("task", "cancel", run.id))["task"]["status"] == "cancelled"


async def test_what_has_ended_is_not_cancelled(run: Run, call: Call) -> None:
    await run.complete()
    refused(await call("task", "cancel", run.id), CONFLICT, "it has ended: completed")
    refused(await call("task", "cancel", NOBODY), NOT_FOUND, "not found")


async def test_an_issue_is_cancelled_with_all_that_is_on_it(run: Run, tell: Tell, ask: Ask) -> None:
    await tell("issue", "rerun", "UND-1", "--after")
    said = await tell("issue", "cancel", "und-1")
    assert said.startswith("UND-1 is cancelled.\n")
    assert f"Task {run.id} is being cancelled" in said
    assert said.count("is cancelled.") == 2
    done = await ask("issue", "cancel", "UND-1")
    assert [each["outcome"] for each in done["tasks"]] == ["replayed"]


async def test_a_rerun_takes_the_place_of_what_runs_or_stands_behind_it(
    run: Run, tell: Tell, ask: Ask, call: Call
) -> None:
    """R7.6"""
    after = await ask("issue", "rerun", "UND-1", "--after", "--fresh")
    assert after["parent_task_id"] == run.id
    assert (await ask("task", "show", run.id))["task"]["cancel_requested_at"] is None
    assert "UND-1 runs again; task" in await tell("issue", "rerun", "UND-1")
    assert (await ask("task", "show", run.id))["task"]["cancel_requested_at"]
    other = await ask("agent", "create", "Otto", "--provider", "scripted")
    await tell("issue", "assign", "UND-1", "Otto")
    again = await ask("issue", "rerun", "UND-1", "--task", run.id)
    assert again["agent_id"] == str(run.board.nia.id)
    assert (await ask("issue", "rerun", "UND-1"))["agent_id"] == other["id"]
    assert f"follows {run.id}, which it runs again" in await tell("issue", "show", "UND-1")
    refused(await call("issue", "rerun", "UND-1", "--task", "7"), USAGE, "--task")
    refused(await call("issue", "rerun", "UND-1", "--task", NOBODY), NOT_FOUND, "task")
    await tell("issue", "create", "Nobody's")
    refused(await call("issue", "rerun", "UND-2"), NOT_FOUND, "no agent")


async def test_a_failed_run_names_its_reason_in_words_and_the_run_that_tries_again(
    run: Run, tell: Tell
) -> None:
    """R5.4"""
    retry = await run.fail(FailureReason.PROVIDER_OVERLOADED, "529\nsecond line")
    shown = await tell("task", "show", run.id)
    assert "attempt  1 of 2" in shown
    assert "reason  provider_overloaded (Model is overloaded)" in shown
    assert f"retried  as {retry}" in shown
    shown = await tell("task", "show", retry)
    assert "attempt  2 of 2" in shown
    assert f"follows  {run.id}, which it tries again" in shown
    assert "deferred  until " in shown
    assert "why  deferred: provider scripted was overloaded" in shown
    assert "changes  by itself at" in shown
    issue = await tell("issue", "show", "UND-1")
    assert "failed: provider_overloaded (Model is overloaded), 529 second line" in issue
    assert f"  retried as {retry}" in issue
    assert "  deferred: provider scripted was overloaded" in issue
    listed = await tell("task", "list")
    assert "2 of 2" in listed
    assert "provider_overloaded (Model is overloaded)" in listed


async def test_a_result_that_came_late_and_what_it_superseded_are_said(
    run: Run, tell: Tell
) -> None:
    """R6.5"""
    retry = await run.give_up()
    await run.complete()
    assert "late  its result came after it had been given up" in await tell("task", "show", run.id)
    shown = await tell("task", "show", retry)
    assert "reason  superseded (Superseded)" in shown
    assert "error  the attempt before it had succeeded after all" in shown


async def test_a_result_that_came_too_late_is_kept_and_said(run: Run, tell: Tell) -> None:
    """R6.5"""
    await run.give_up()
    (claim,) = await run.board.claim()
    await begin(run.board, claim)
    await run.complete()
    shown = await tell("task", "show", run.id)
    assert "late  its result came when the next attempt had begun; it is kept here" in shown


async def test_a_comment_says_whom_it_called_and_how(run: Run, tell: Tell, ask: Ask) -> None:
    """R10.2"""
    said = await tell("issue", "comment", "UND-1", "And the title?")
    assert said.startswith("Ada said it on UND-1.\n")
    assert "Nia is at work on this issue, and hears of it when that run ends." in said
    await ask("agent", "create", "Otto", "--provider", "scripted")
    said = await tell("issue", "comment", "UND-1", "@Otto, look at this")
    assert "Otto is called; task" in said
    assert "Otto hears of it in task" in await tell("issue", "comment", "UND-1", "@otto?")
    called = (await ask("issue", "comment", "UND-1", "@Otto @Nia"))["called"]
    assert {each["agent"]: each["outcome"] for each in called} == {
        "Nia": "waiting",
        "Otto": "joined",
    }


async def test_a_comment_comes_from_stdin(node: Node, run: Run) -> None:
    done = await trio.run_process(
        [sys.executable, "-m", "understudy", "issue", "comment", "UND-1", "-", "--json"],
        stdin=b"from a pipe",
        capture_stdout=True,
        env={"UNDERSTUDY_SERVER": node.address, "UNDERSTUDY_TOKEN": node.personal_key},
    )
    assert json.loads(done.stdout)["body"] == "from a pipe"


async def test_an_agent_at_work_speaks_with_its_own_key_and_cancels_nothing(
    run: Run, call: Call
) -> None:
    async def as_agent(*arguments: str) -> Result:
        return await call(*arguments, UNDERSTUDY_TOKEN=run.key)

    allowed: list[tuple[str, ...]] = [
        ("issue", "list"),
        ("issue", "show", "UND-1"),
        ("agent", "list"),
        ("task", "show", run.id),
        ("why", "UND-1"),
        ("issue", "create", "A part of it"),
        ("issue", "comment", "UND-1", "@Nia, I am at it"),
        ("issue", "assign", "UND-2", "Nia"),
    ]
    for command in allowed:
        done = await as_agent(*command)
        assert done.exit_code == 0, done.output
    said = await as_agent("issue", "comment", "UND-1", "Half of it is done")
    assert said.stdout == "Nia said it on UND-1.\n"
    forbidden: list[tuple[str, ...]] = [
        ("issue", "cancel", "UND-1"),
        ("issue", "rerun", "UND-1"),
        ("task", "cancel", run.id),
        ("runtime", "list"),
        ("agent", "create", "Zed", "--provider", "scripted"),
    ]
    for command in forbidden:
        refused(await as_agent(*command), FORBIDDEN, "An agent's key opens the board while its run")
    await run.complete()
    refused(await as_agent("issue", "list"), FORBIDDEN, "while its run lasts")


async def test_an_agent_that_takes_the_issue_it_works_on_starts_nothing(
    run: Run, call: Call, tell: Tell
) -> None:
    """R10.1"""
    await tell("agent", "create", "Otto", "--provider", "scripted")
    await tell("issue", "assign", "UND-1", "Otto")
    done = await call("issue", "assign", "UND-1", "Nia", UNDERSTUDY_TOKEN=run.key)
    assert "assigned to Nia, whose run this is; nothing was started" in done.stdout


async def register(node: Node, daemon_id: str = "d1") -> str:
    body = {
        "workspace_id": str(node.workspace.id),
        "daemon_id": daemon_id,
        "device_name": "studio",
        "runtimes": [{"type": "scripted", "name": "Scripted", "status": "online"}],
    }
    answer = await node.machine.post("/api/daemon/register", json=body)
    runtime_id: str = answer.json()["runtimes"][0]["id"]
    return runtime_id


async def answer_pings(node: Node, runtime_id: str) -> None:
    """What a daemon does that only asks."""
    while True:
        beat = {"runtime_id": runtime_id}
        heard = (await node.machine.post("/api/daemon/heartbeat", json=beat)).json()
        if "pending_ping" in heard:
            body = {"ping_id": heard["pending_ping"]["id"]}
            await node.machine.post(f"/api/daemon/runtimes/{runtime_id}/pong", json=body)


async def test_a_ping_tells_how_long_the_daemon_took(
    node: Node, nursery: trio.Nursery, tell: Tell, ask: Ask
) -> None:
    """R4.12"""
    runtime_id = await register(node)
    nursery.start_soon(answer_pings, node, runtime_id)
    for name in (runtime_id, "studio/scripted", "STUDIO/Scripted"):
        said = await tell("runtime", "ping", name)
        assert "answered in" in said
        assert " ms." in said
    assert (await ask("runtime", "ping", runtime_id))["round_trip_s"] > 0
    nursery.cancel_scope.cancel()


async def test_a_ping_of_a_machine_that_is_away_or_unknown_is_refused(
    node: Node, board: Board, call: Call
) -> None:
    refused(await call("runtime", "ping", "laptop/scripted"), CONFLICT, "not connected")
    refused(await call("runtime", "ping", "mac/claude"), NOT_FOUND, "runtime list")
    first, second = await register(node, "d1"), await register(node, "d2")
    done = await call("runtime", "ping", "studio/scripted")
    refused(done, USAGE, "2 runtimes are called studio/scripted")
    assert first in done.stderr
    assert second in done.stderr


async def test_a_runtime_is_removed_unless_it_is_at_work(
    run: Run, tell: Tell, ask: Ask, call: Call
) -> None:
    """R4.7"""
    refused(await call("runtime", "remove", "laptop/scripted"), CONFLICT, "in flight")
    await run.complete()
    assert "is removed." in await tell("runtime", "remove", "laptop/scripted")
    assert await ask("runtime", "list") == []
    refused(await call("runtime", "remove", "laptop/scripted"), NOT_FOUND, "not found")
