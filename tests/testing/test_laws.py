"""Each law of the simulated worlds is broken by what it forbids, and by nothing in a lawful world.

A law that can never fail is found out here: `lawful` breaks none, and each `breaks` changes that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import NAMESPACE_OID, UUID, uuid5

import pytest

from understudy.core.leases import Leases
from understudy.core.records import Task
from understudy.testing.auditor import LAWS, broken
from understudy.testing.evidence import (
    Evidence,
    Explained,
    Fenced,
    Happened,
    LeftOver,
    Machines,
    Registering,
    Run,
    Told,
)
from understudy.testing.virtual import EPOCH

KINDS = {
    "enqueue": "queued", "defer": "deferred", "promote": "queued", "claim": "dispatched",
    "requeue": "queued", "start": "running", "complete": "completed", "fail": "failed",
    "complete_late": "completed", "orphan": "failed", "lose": "failed", "time_out": "failed",
    "expire": "failed", "cancel": "cancelled",
}  # fmt: skip
LEASES = Leases(alone_grace_s=300.0, running_max_s=400.0, queued_max_s=600.0)


def id_of(name: str) -> UUID:
    return uuid5(NAMESPACE_OID, name)


def at(seconds: float | None) -> Any:
    return None if seconds is None else EPOCH + timedelta(seconds=seconds)


@dataclass
class Made:
    """A world that is told move by move."""

    events: list[Happened] = field(default_factory=list)
    tasks: dict[UUID, dict[str, Any]] = field(default_factory=dict)
    comments: list[dict[str, Any]] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    runtimes: list[dict[str, Any]] = field(default_factory=list)
    messages: dict[UUID, list[int]] = field(default_factory=dict)
    usage: dict[UUID, int] = field(default_factory=dict)
    machines: Machines = field(default_factory=lambda: Machines(slots={"mac": 2, "vm": 2}))
    limits: dict[UUID, int] = field(default_factory=lambda: {id_of("nia"): 2, id_of("bo"): 2})
    bound: dict[str, str] = field(default_factory=dict)
    workspace_of: dict[UUID, UUID] = field(default_factory=dict)
    retired_at: dict[str, float] = field(default_factory=dict)

    def evidence(self) -> Evidence:
        agents = {
            id_of(name): {"id": id_of(name), "name": name, "runtime_id": self._bound(name)}
            for name in ("nia", "bo")
        }
        events = sorted(self.events, key=lambda event: event.at)
        places = {id_of("mac runtime"): "mac", id_of("vm runtime"): "vm"}
        return Evidence(
            self.machines, self.limits, LEASES, events, self.tasks, self.comments, self.messages,
            self.usage, agents, places, [], self.calls, self.workspace_of,
            runtimes=self.runtimes, retired_at=self.retired_at,
        )  # fmt: skip

    def _bound(self, name: str) -> UUID | None:
        return id_of(f"{self.bound[name]} runtime") if name in self.bound else None

    def tell(self, when: float, kind: str, **body: Any) -> None:
        self.events.append(Happened(when, kind, None, body))

    def online(self, machine: str, when: float) -> None:
        told = [{"id": str(id_of(f"{machine} runtime")), "status": "online"}]
        self.tell(when, "daemon:register", action="register", runtimes=told)

    def offline(self, machine: str, when: float, action: str = "stale_sweep") -> None:
        told = [str(id_of(f"{machine} runtime"))]
        self.tell(when, "daemon:register", action=action, runtime_ids=told)

    def busy(self, when: float, agent: str, status: str) -> None:
        self.tell(when, "agent:status", agent_id=str(id_of(agent)), status=status)

    def issue(self, when: float, status: str, issue: str = "one") -> None:
        self.tell(when, "issue:updated", issue_id=str(id_of(issue)), status=status)

    def task(
        self, name: str, when: float, *, agent: str = "nia", issue: str = "one", **row: Any
    ) -> UUID:
        """A new one, queued then; `move="defer"` for one that waits."""
        task_id, move = id_of(name), row.pop("move", "enqueue")
        self.tasks[task_id] = {
            "id": task_id, "agent_id": id_of(agent), "issue_id": id_of(issue), "attempt": 1,
            "parent_task_id": None, "failure_reason": None, "error": None, "result": None,
            "rank": at(when), "trigger": "assign", "trigger_comment_id": None, "priority": 0,
            "host_crashes": 0, "cancel_requested_at": None, "cancel_requested_by": None,
            "dispatched_at": None, "started_at": None, "completed_at": None, "fire_at": None,
            "claim_token": None, "runtime_id": None,
        } | row  # fmt: skip
        self.move(task_id, when, move)
        return task_id

    def move(
        self, task_id: UUID, when: float, move: str, machine: str | None = None, **row: Any
    ) -> None:
        it, status = self.tasks[task_id], KINDS[move]
        if machine is not None:
            it["runtime_id"] = id_of(f"{machine} runtime")
        stamp = {"dispatched": "dispatched_at", "running": "started_at"}.get(status)
        if status in {"completed", "failed", "cancelled"}:
            stamp = "completed_at"
        it |= {"status": status, "move": move} | ({stamp: at(when)} if stamp else {}) | row
        body = {
            "task_id": str(task_id), "agent_id": str(it["agent_id"]), "move": move,
            "issue_id": str(it["issue_id"]), "status": status, "attempt": it["attempt"],
            "runtime_id": it["runtime_id"] and str(it["runtime_id"]),
            "failure_reason": it["failure_reason"],
        }  # fmt: skip
        kind = "task:" + {"dispatched": "dispatch"}.get(status, status)
        self.events.append(Happened(when, kind, task_id, body))

    def run(
        self, task_id: UUID, begins: float, ends: float, machine: str = "mac", **told: Any
    ) -> Run:
        it = self.tasks[task_id]
        task = SimpleNamespace(id=task_id, issue_id=it["issue_id"], agent_id=it["agent_id"])
        run = Run(cast("Task", task), machine, told.pop("output", "done"), **told)
        run.spans = [(begins, ends)]
        run.earlier = self.machines.runs.get(task_id)
        self.machines.runs[task_id] = run
        return run

    def claimed(self, name: str, when: float, *, machine: str = "mac", **row: Any) -> UUID:
        """Queued, claimed and started, a second each."""
        task_id = self.task(name, when, **row)
        agent = row.get("agent", "nia")
        self.move(task_id, when + 1, "claim", machine)
        self.busy(when + 1, agent, "working")
        self.move(task_id, when + 2, "start")
        return task_id

    def failed(self, task_id: UUID, when: float, reason: str, move: str = "fail") -> None:
        self.move(task_id, when, move, failure_reason=reason, error="a sentence")
        self.busy(when, "nia" if self.tasks[task_id]["agent_id"] == id_of("nia") else "bo", "idle")

    def comment(self, name: str, when: float, body: str, **row: Any) -> UUID:
        comment_id, issue = id_of(name), row.pop("issue", "one")
        self.comments.append(
            {"id": comment_id, "issue_id": id_of(issue), "body": body, "created_at": at(when)}
            | {"task_id": None, "author_agent_id": None} | row
        )  # fmt: skip
        told = {"comment_id": str(comment_id), "issue_id": str(id_of(issue))}
        self.tell(when, "comment:created", **told)
        return comment_id

    def why(self, task_id: UUID, when: float, constraint: str | None, **said: Any) -> None:
        told = {"sentence": "so", "constraint": constraint, "changes": "then", "changes_at": None}
        self.machines.explained.append(Explained(when, when, task_id, told | said))

    def hear(self, machine: str, *times: float) -> None:
        self.machines.heard[machine] = [(each, each) for each in times]
        self.machines.promises[machine] = [(each, each) for each in times]


A = id_of("a")


def lawful() -> Made:
    """Nia does `a` on mac, Bo fails at `b` on vm; somebody asks why."""
    made = Made()
    made.online("mac", 0.0)
    made.online("vm", 0.0)
    made.hear("mac", *range(0, 200, 15))
    made.hear("vm", *range(0, 200, 15))
    made.machines.disturbed_at = -300.0  # It was calm from the beginning.
    made.claimed("a", 10.0)
    made.issue(12.0, "in_progress")
    run = made.run(A, 12.1, 50.0, messages=2, tokens=7, has_finished=True, is_acknowledged=True)
    made.why(A, 20.0, "working", status="running")
    made.move(A, 50.1, "complete", result={"output": run.output})
    made.comment("said", 50.1, run.output, task_id=A, author_agent_id=id_of("nia"))
    made.issue(50.1, "in_review")
    made.busy(50.1, "nia", "idle")
    made.messages[A], made.usage[A] = [0, 1], 7
    made.machines.let_go["mac", A] = 50.2
    made.machines.tokens.append((id_of("token"), A, "mac"))
    made.machines.told["reader"] = Told([1, 2], [1, 2])
    made.machines.left_over.append(LeftOver("mac"))
    b = made.claimed("b", 60.0, agent="bo", issue="two", machine="vm")
    made.run(b, 62.1, 70.0, "vm", reason="auth", has_finished=True, is_acknowledged=True)
    made.failed(b, 70.1, "auth")
    return made


RED: dict[str, Callable[[Made], None]] = {}


def breaks(law: str) -> Callable[[Callable[[Made], None]], Callable[[Made], None]]:
    def enter(tamper: Callable[[Made], None]) -> Callable[[Made], None]:
        assert law not in RED, law
        RED[law] = tamper
        return tamper

    return enter


def test_a_lawful_world_breaks_no_law() -> None:
    assert list(broken(lawful().evidence())) == []


def test_there_are_more_than_thirty_laws_and_each_is_seen_red() -> None:
    assert len(LAWS) >= 60
    assert RED.keys() == LAWS.keys()


@pytest.mark.parametrize("law", LAWS)
def test_what_a_law_forbids_breaks_it(law: str) -> None:
    made = lawful()
    RED[law](made)
    found = list(broken(made.evidence()))
    assert any(violation.startswith(f"{law}: ") for violation in found), found


# Tasks


@breaks("moves-are-legal")
def _a_claim_leads_to_an_end(made: Made) -> None:
    task_id = made.task("c", 80.0)
    made.move(task_id, 81.0, "claim", "mac")
    made.move(task_id, 82.0, "complete")


@breaks("every-move-has-its-event")
def _a_row_moves_in_silence(made: Made) -> None:
    made.tasks[made.claimed("c", 80.0)] |= {"status": "cancelled", "completed_at": at(90.0)}


@breaks("machines-come-and-go-on-record")
def _a_machine_is_there_unrecorded(made: Made) -> None:
    row = {"id": id_of("mac runtime"), "daemon_id": "mac", "status": "online"}
    made.runtimes.append(row | {"online_since": at(5.0)})


@breaks("an-end-is-an-end")
def _what_is_cancelled_is_completed(made: Made) -> None:
    task_id = made.claimed("c", 80.0)
    made.move(task_id, 90.0, "cancel", failure_reason="cancelled")
    made.move(task_id, 91.0, "complete", failure_reason=None)


@breaks("everything-ends")
def _a_task_runs_to_this_day(made: Made) -> None:
    made.claimed("c", 80.0)


@breaks("a-failure-has-a-reason")
def _a_failure_says_nothing(made: Made) -> None:
    made.tasks[id_of("b")]["error"] = ""


@breaks("a-late-success-supersedes")
def _the_heir_of_a_late_success_completes_too(made: Made) -> None:
    task_id = made.claimed("c", 80.0)
    made.failed(task_id, 90.0, "runtime_offline", "lose")
    heir = made.claimed("d", 90.0, attempt=2, parent_task_id=task_id)
    made.move(task_id, 95.0, "complete_late", failure_reason=None)
    made.move(heir, 99.0, "complete")


@breaks("only-the-superseded-are-superseded")
def _a_task_is_superseded_by_a_failure(made: Made) -> None:
    heir = made.task("c", 80.0, attempt=2, parent_task_id=id_of("b"))
    made.move(heir, 81.0, "cancel", failure_reason="superseded", error="so")


# Retries


@breaks("a-failure-has-one-heir-or-none")
def _what_may_be_tried_again_is_not(made: Made) -> None:
    made.failed(made.claimed("c", 80.0), 90.0, "timeout")


@breaks("attempts-count-up")
def _an_attempt_is_skipped(made: Made) -> None:
    made.task("c", 80.0, attempt=3, parent_task_id=id_of("b"))


@breaks("attempts-come-to-an-end")
def _a_timeout_has_a_third_attempt(made: Made) -> None:
    made.tasks[id_of("b")] |= {"attempt": 2, "failure_reason": "timeout"}
    made.task("c", 80.0, attempt=3, parent_task_id=id_of("b"))


@breaks("retries-wait-their-time")
def _an_overloaded_provider_is_asked_at_once(made: Made) -> None:
    made.failed(made.claimed("c", 80.0), 90.0, "provider_overloaded")
    made.claimed("d", 95.0, attempt=2, parent_task_id=id_of("c"))


@breaks("deferred-tasks-wait-their-time")
def _what_is_deferred_is_queued_at_once(made: Made) -> None:
    task_id = made.task("c", 80.0, move="defer", fire_at=at(100.0))
    made.move(task_id, 90.0, "promote")


@breaks("quotas-are-respected")
def _a_machine_without_quota_is_given_more(made: Made) -> None:
    made.failed(made.claimed("c", 80.0), 90.0, "quota_exhausted")
    made.claimed("d", 100.0, issue="two")


@breaks("what-brings-hosts-down-is-given-up")
def _a_task_has_brought_down_two_hosts(made: Made) -> None:
    made.tasks[A]["host_crashes"] = 2


# Limits


@breaks("agents-keep-their-limits")
def _an_agent_runs_two_of_one(made: Made) -> None:
    made.limits[id_of("nia")] = 1
    made.claimed("c", 20.0, issue="two")


@breaks("what-waits-is-bound-as-its-agent-is")
def _what_is_given_back_stays_there(made: Made) -> None:
    task_id = made.task("c", 80.0)
    made.move(task_id, 81.0, "claim", "mac")
    made.move(task_id, 90.0, "requeue", "mac")


@breaks("an-agent-is-on-an-issue-once")
def _an_agent_is_twice_on_an_issue(made: Made) -> None:
    made.claimed("c", 20.0)


@breaks("one-task-waits-for-an-agent-on-an-issue")
def _two_tasks_are_queued(made: Made) -> None:
    made.task("c", 80.0)
    made.task("d", 81.0)


@breaks("agents-stay-where-they-are-bound")
def _a_bound_agent_works_elsewhere(made: Made) -> None:
    made.bound["nia"] = "vm"


@breaks("tokens-are-new")
def _a_token_is_given_twice(made: Made) -> None:
    made.machines.tokens.append((id_of("token"), id_of("b"), "vm"))


@breaks("an-agent-works-once-at-an-issue")
def _two_processes_overlap(made: Made) -> None:
    made.run(made.claimed("c", 20.0, machine="vm"), 40.0, 60.0, "vm")


@breaks("a-task-is-begun-once")
def _a_task_is_begun_again(made: Made) -> None:
    made.run(A, 51.0, 52.0)


@breaks("a-refused-session-is-retired")
def _a_refused_session_is_nowhere_on_record(made: Made) -> None:
    made.machines.runs[A].offered, made.machines.runs[A].has_refused = "s1", True


@breaks("a-retired-session-is-not-offered")
def _another_task_is_to_continue_a_refused_session(made: Made) -> None:
    made.retired_at["s1"] = 10.9
    made.machines.runs[A].offered = "s1"


@breaks("machines-keep-their-slots")
def _three_agents_live_in_two_slots(made: Made) -> None:
    for name in ("c", "d"):
        made.run(made.claimed(name, 15.0, issue=name), 20.0, 30.0)


@breaks("the-first-in-line-is-claimed")
def _the_later_one_is_claimed(made: Made) -> None:
    made.task("c", 80.0, issue="two", rank=at(0.0))
    made.claimed("d", 90.0, issue="three")


# Patience


@breaks("only-the-silent-are-offline")
def _who_was_heard_is_offline(made: Made) -> None:
    made.offline("mac", 70.0)


@breaks("the-lost-were-silent")
def _a_run_is_lost_after_a_minute(made: Made) -> None:
    made.hear("mac", 100.0)
    made.failed(made.claimed("c", 80.0), 160.0, "runtime_offline", "lose")


@breaks("clocks-judge-only-the-silent")
def _a_run_times_out_on_a_machine_that_is_heard(made: Made) -> None:
    made.hear("mac", 590.0)
    made.failed(made.claimed("c", 80.0), 600.0, "timeout", "time_out")


@breaks("a-living-machine-gives-back-what-it-does-not-start")
def _a_living_machine_prepares_for_ever(made: Made) -> None:
    made.hear("mac", *range(0, 500, 15))
    task_id = made.task("c", 80.0)
    made.move(task_id, 81.0, "claim", "mac")
    made.failed(task_id, 390.0, "timeout", "time_out")


@breaks("queues-are-patient")
def _a_task_expires_at_once(made: Made) -> None:
    made.failed(made.task("c", 80.0), 90.0, "queued_expired", "expire")


@breaks("what-a-machine-names-is-not-orphaned")
def _what_was_named_is_orphaned(made: Made) -> None:
    token = id_of("another token")
    task_id = made.claimed("c", 80.0, claim_token=token)
    made.machines.registering["mac"] = [Registering(89.0, frozenset({(task_id, token)}), 91.0)]
    made.failed(task_id, 90.0, "runtime_recovery", "orphan")


@breaks("what-a-machine-has-begun-it-names")
def _what_was_begun_is_orphaned(made: Made) -> None:
    made.failed(made.claimed("c", 80.0), 90.0, "runtime_recovery", "orphan")


@breaks("promises-are-kept")
def _a_run_is_given_up_under_a_promise(made: Made) -> None:
    made.machines.promises["mac"] = [(80.0, 170.0)]
    made.failed(made.claimed("c", 80.0), 160.0, "runtime_offline", "lose")


@breaks("promises-are-covered")
def _a_machine_is_promised_more_than_the_others_keep(made: Made) -> None:
    made.machines.promises["mac"] = [(60.0, 155.0)]


@breaks("who-is-trusted-works-on")
def _a_trusted_run_is_stopped(made: Made) -> None:
    made.machines.promises["mac"] = [(60.0, 150.0), (75.0, 165.0)]
    task_id = made.claimed("c", 80.0)
    made.run(task_id, 82.1, 90.0)
    made.failed(task_id, 90.0, "runtime_offline")


@breaks("no-claim-outlives-its-time")
def _a_claim_lasts_for_an_hour(made: Made) -> None:
    task_id = made.task("c", 80.0)
    made.move(task_id, 81.0, "claim", "mac")
    made.move(task_id, 3681.0, "requeue")


@breaks("no-queue-outlives-its-time")
def _a_task_is_queued_for_an_hour(made: Made) -> None:
    made.move(made.task("c", 80.0), 3680.0, "cancel", failure_reason="cancelled")


@breaks("no-machine-idles-while-work-waits")
def _nobody_takes_what_could_be_taken(made: Made) -> None:
    made.hear("mac", *range(0, 400, 15))
    task_id = made.task("c", 80.0)
    made.issue(85.0, "todo")
    made.move(task_id, 200.0, "cancel", failure_reason="cancelled")


# Runs


@breaks("reports-are-taken")
def _a_report_is_not_taken(made: Made) -> None:
    made.machines.runs[A].is_acknowledged = False


@breaks("results-are-kept")
def _a_result_is_another(made: Made) -> None:
    made.tasks[A]["result"] = {"output": "something else"}


@breaks("successes-stay-successes")
def _a_success_is_failed(made: Made) -> None:
    made.tasks[A] |= {"status": "failed", "failure_reason": "auth", "error": "so"}


@breaks("failures-stay-failures")
def _a_failure_has_another_reason(made: Made) -> None:
    made.tasks[id_of("b")]["failure_reason"] = "unknown"


@breaks("who-was-ended-did-not-leave")
def _a_killed_agent_has_left(made: Made) -> None:
    task_id = made.claimed("c", 80.0)
    made.run(task_id, 82.1, 90.0, reason="keeper_lost")
    made.failed(task_id, 90.0, "no_result")


@breaks("successes-are-not-invented")
def _a_success_is_invented(made: Made) -> None:
    made.machines.runs[A].has_finished = False


@breaks("nothing-is-done-twice")
def _a_completed_task_has_an_heir_that_began(made: Made) -> None:
    made.run(made.claimed("c", 80.0, attempt=2, parent_task_id=A), 83.0, 84.0)
    made.move(id_of("c"), 85.0, "fail", failure_reason="auth", error="so")


@breaks("no-agent-works-to-this-day")
def _an_agent_never_ends(made: Made) -> None:
    made.machines.runs[A].spans = [(12.1, math.inf)]


@breaks("agents-begin-what-has-started")
def _an_agent_begins_before_its_start(made: Made) -> None:
    made.machines.runs[A].spans = [(11.0, 50.0)]


def _cancelled(made: Made, error: str | None) -> None:
    task_id = made.claimed("c", 80.0, cancel_requested_at=at(90.0))
    made.run(task_id, 82.1, 120.0)
    made.move(task_id, 100.0, "cancel", failure_reason="cancelled", error=error)


@breaks("cancelled-means-gone")
def _what_is_cancelled_is_alive(made: Made) -> None:
    _cancelled(made, None)


@breaks("what-was-called-off-is-cancelled")
def _what_was_to_be_stopped_fails(made: Made) -> None:
    made.tasks[id_of("b")]["cancel_requested_at"] = at(65.0)


@breaks("who-is-called-off-stops-soon")
def _who_is_called_off_works_on(made: Made) -> None:
    made.tasks[A]["cancel_requested_at"] = at(20.0)
    made.machines.runs[A].spans = [(12.1, 100.0)]


@breaks("who-has-lost-its-task-stops")
def _who_was_given_up_works_on(made: Made) -> None:
    made.hear("mac", *range(0, 500, 15))
    task_id = made.claimed("c", 80.0)
    made.failed(task_id, 90.0, "runtime_offline", "lose")
    made.run(task_id, 82.1, 400.0, spoke_at=[100.0])


@breaks("who-is-told-that-he-has-lost-stops")
def _who_was_fenced_works_on(made: Made) -> None:
    made.run(made.claimed("c", 80.0), 82.1, 130.0)
    made.machines.fenced.append(Fenced("mac", id_of("c"), 100.0))


@breaks("a-rerun-replaces-what-runs")
def _a_rerun_runs_beside_another(made: Made) -> None:
    made.machines.replacing.append(made.task("c", 30.0, trigger="rerun"))


@breaks("unconfirmed-means-unheard")
def _who_was_there_was_not_asked(made: Made) -> None:
    _cancelled(made, "unconfirmed")


@breaks("transcripts-have-no-gap")
def _a_message_is_missing_in_the_middle(made: Made) -> None:
    made.messages[A] = [0, 2]


@breaks("transcripts-are-whole")
def _the_last_message_is_missing(made: Made) -> None:
    made.messages[A] = [0]


@breaks("bills-add-up")
def _a_run_is_billed_twice(made: Made) -> None:
    made.usage[A] = 14


@breaks("nothing-undelivered-is-dropped")
def _a_run_is_dropped_before_its_report(made: Made) -> None:
    made.machines.let_go["mac", A] = 49.0


# Calls


def _called(made: Made) -> UUID:
    return made.comment("call", 60.0, "do it, @nia.")


@breaks("who-is-called-is-told")
def _nobody_tells_the_agent(made: Made) -> None:
    _called(made)


@breaks("the-next-attempt-is-told-the-same")
def _a_retry_does_not_hear_who_called(made: Made) -> None:
    task_id = made.claimed("c", 80.0)
    made.run(task_id, 82.1, 90.0, brief="Ada: @nia. look")
    made.failed(task_id, 90.0, "timeout")
    heir = made.claimed("d", 90.0, attempt=2, parent_task_id=task_id)
    made.run(heir, 92.1, 95.0, brief="")


@breaks("no-call-waits-for-ever")
def _a_call_has_no_task(made: Made) -> None:
    made.calls.append({"comment_id": _called(made), "agent_id": id_of("nia"), "task_id": None})


@breaks("chains-of-calls-end")
def _nine_agents_call_one_another(made: Made) -> None:
    before = A
    for number in range(9):
        said = made.comment(f"call {number}", 60.0, "and you", task_id=before)
        before = made.task(f"hop {number}", 80.0, issue=f"{number}", trigger_comment_id=said)


# Words


@breaks("a-success-is-said-once")
def _a_success_is_said_twice(made: Made) -> None:
    made.comment("again", 51.0, "done", task_id=A)


@breaks("each-comment-is-told-once-and-in-order")
def _two_comments_are_told_in_another_order(made: Made) -> None:
    made.comment("first", 51.0, "one")
    made.comment("second", 52.0, "two")
    made.comments[-1]["created_at"] = at(50.5)


@breaks("what-was-written-stays")
def _an_acknowledged_comment_is_gone(made: Made) -> None:
    made.machines.posted.append(str(id_of("gone")))


@breaks("an-issue-in-progress-is-worked-on")
def _an_issue_is_in_progress_by_nobody(made: Made) -> None:
    made.issue(55.0, "in_progress")


@breaks("agents-are-as-they-are-said-to-be")
def _an_agent_is_not_said_to_be_idle(made: Made) -> None:
    made.events = [each for each in made.events if each.body.get("status") != "idle"]


@breaks("workspaces-keep-apart")
def _another_workspace_s_machine_claims_a_task(made: Made) -> None:
    made.workspace_of |= {A: id_of("home"), id_of("mac runtime"): id_of("away")}


@breaks("what-is-elsewhere-is-not-there")
def _somebody_is_told_what_another_workspace_has(made: Made) -> None:
    made.machines.pried.append(("get /api/issues/one", 200))


@breaks("streams-tell-of-one-workspace")
def _a_reader_hears_what_is_not_his(made: Made) -> None:
    made.machines.told["reader"] = Told([1, 2, 3], [1, 2])


@breaks("streams-have-no-gap")
def _a_reader_misses_an_event(made: Made) -> None:
    made.machines.told["reader"] = Told([1, 3], [1, 2, 3])


@breaks("no-answer-is-500")
def _somebody_is_told_500(made: Made) -> None:
    made.machines.broken_answers.append("GET /: KeyError")


@breaks("nothing-crashes-unforeseen")
def _something_crashes(made: Made) -> None:
    made.machines.surprises.append("server/sweeps: KeyError")


# Explanations


@breaks("everything-is-explained")
def _nobody_knows_why(made: Made) -> None:
    made.why(A, 20.0, "working", status="running", sentence="")


@breaks("explanations-are-true")
def _an_online_machine_is_said_to_be_offline(made: Made) -> None:
    made.why(A, 10.5, "runtime_offline", status="queued")


@breaks("told-times-are-kept")
def _what_was_to_wait_is_queued_early(made: Made) -> None:
    task_id = made.task("c", 80.0, move="defer")
    made.why(task_id, 85.0, "backoff", status="deferred", changes_at=at(100.0).isoformat())
    made.move(task_id, 90.0, "promote")


# Rest


def _left(made: Made, **found: list[str]) -> None:
    made.machines.left_over.append(LeftOver("vm", **found))


@breaks("no-process-is-left")
def _a_child_lives_on(made: Made) -> None:
    _left(made, processes=["node of a"])


@breaks("no-directory-is-locked")
def _a_lock_is_held(made: Made) -> None:
    _left(made, locked=["work/a.lock"])


@breaks("no-run-is-left-on-disk")
def _a_run_stays(made: Made) -> None:
    _left(made, runs=["a"])


@breaks("no-slot-is-taken")
def _a_slot_is_not_given_back(made: Made) -> None:
    _left(made, slots=["1 of 3"])


@breaks("no-report-is-left")
def _a_report_stays(made: Made) -> None:
    _left(made, reports=["a"])


@breaks("no-connection-is-left")
def _connections_are_never_closed(made: Made) -> None:
    _left(made, connections=["machine-0"] * 20)


def _a_handover_to_another_workspace(made: Made) -> None:
    made.machines.workspaces["mac"] = id_of("away")


def _an_agent_of_another_workspace(made: Made) -> None:
    made.workspace_of[id_of("nia")] = id_of("away")


def _an_issue_of_another_workspace(made: Made) -> None:
    made.workspace_of[id_of("one")] = id_of("away")


def _an_event_of_another_workspace(made: Made) -> None:
    made.events.append(Happened(199.0, "task:progress", A, {}, id_of("away")))


def _a_comment_of_another_workspace(made: Made) -> None:
    made.workspace_of |= {id_of("said"): id_of("away"), id_of("one"): id_of("home")}


def _a_call_of_another_workspace_s_agent(made: Made) -> None:
    made.calls.append({"comment_id": id_of("said"), "agent_id": id_of("bo"), "task_id": A})
    made.workspace_of |= {id_of("said"): id_of("home"), id_of("bo"): id_of("away")}


def _a_page_of_another_workspace(made: Made) -> None:
    made.machines.shown.append((id_of("away"), A))


@pytest.mark.parametrize(
    "tamper",
    [
        _a_handover_to_another_workspace,
        _an_agent_of_another_workspace,
        _an_issue_of_another_workspace,
        _an_event_of_another_workspace,
        _a_comment_of_another_workspace,
        _a_call_of_another_workspace_s_agent,
        _a_page_of_another_workspace,
    ],
)
def test_nothing_of_one_workspace_is_another_s(tamper: Callable[[Made], None]) -> None:
    made = lawful()
    made.workspace_of |= {A: id_of("home"), id_of("away"): id_of("away")}
    assert list(broken(made.evidence())) == []
    tamper(made)
    assert any(each.startswith("workspaces-keep-apart: ") for each in broken(made.evidence()))


@pytest.mark.parametrize(
    ("retired_at", "begun_at", "found"),
    [
        (20.0, [21.0], set()),
        (22.0, [21.0], {"a-refused-session-is-retired"}),
        (20.0, [21.0, 31.0], {"a-task-is-begun-once"}),
    ],
)
def test_who_would_not_continue_is_replaced_once_and_when_that_is_on_record(
    retired_at: float, begun_at: list[float], found: set[str]
) -> None:
    """R5.10"""
    made = lawful()
    refuser = made.machines.runs[A]
    refuser.offered, refuser.has_refused, refuser.has_finished = "s1", True, False
    refuser.spans = [(12.1, 19.0)]
    made.retired_at["s1"] = retired_at
    for begins in begun_at:
        run = made.run(A, begins, begins + 5.0, is_afresh=True)
        run.has_finished = run.is_acknowledged = True
    assert {violation.partition(": ")[0] for violation in broken(made.evidence())} == found
