"""Why a task is where it is, and what would change that: one answer for every situation (R10.4).

Often several things are in the way; one is named. To go on, a task needs an agent, a machine and a
turn *at once*: of those it lacks, the one that lasts longest binds, because the task stands as long
as that one does, whatever becomes of the others. So what only a person ends comes before what ends
by itself, and a machine that is away before the runs that stand still on it. Of several machines
*one* is enough: of their troubles the one that is over first counts. In this order, then:

    cancelling   its machine is offline; it has not confirmed yet
    deferred     its agent is archived; its time has not come; the agent's other task on the issue
                 is first; nothing: it is being queued
    queued       its agent is archived; no machine of its provider; none fit to run it, for want of
                 quota, of the machine, of a working CLI; the agent's run before it on the issue;
                 the agent's limit; no connection, no slot; nothing: it is being handed over
    dispatched   its machine is offline; its claim ran out; nothing: it is being prepared
    running      its machine is offline; nothing: the agent works

A function below is one of these, None where that is not in the way, and `or` is the order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from msgspec.structs import replace

from understudy.core.graces import given_up_at, has_next_attempt, heirs, unclaimed_at
from understudy.core.leases import Leases
from understudy.core.lifecycle import IN_FLIGHT, Status
from understudy.core.records import Task
from understudy.core.situation import Constraint, Deferral, Explanation, Place, Situation
from understudy.core.words import names_of, one_line, runtimes, span, time_of_day

POLL_S: Final = 30.0
"""A wake-up that was lost costs one poll of the runtime's actor."""
START: Final = "`understudy daemon start` on its machine"
C = Constraint


def explain(situation: Situation, now: datetime, leases: Leases) -> Explanation:
    case = _Case(situation, now, leases)
    if case.task.status in IN_FLIGHT and case.task.cancel_requested_at:
        return _cancelling(case, case.task.cancel_requested_at)
    match case.task.status:
        case Status.DEFERRED:
            return _archived(case) or _early(case) or _issue_pending(case) or _promoting(case)
        case Status.QUEUED:
            return _queued(case)
        case Status.DISPATCHED:
            return _offline_in_flight(case) or _prepared(case)
        case Status.RUNNING:
            return _offline_in_flight(case) or _working(case)
        case Status.COMPLETED | Status.FAILED | Status.CANCELLED:
            raise AssertionError(f"a {case.task.status} task stays where it is")


@dataclass(frozen=True)
class _Case:
    situation: Situation
    now: datetime
    leases: Leases

    @property
    def task(self) -> Task:
        return self.situation.task

    @property
    def fit(self) -> list[Place]:
        return [place for place in self.situation.places if place.is_fit(self.now)]

    def within(self, moment: datetime) -> str:
        """`in 31 s`; `now` for what is due: the next sweep does it."""
        left_s = (moment - self.now).total_seconds()
        return f"in {span(left_s, math.ceil)}" if left_s > 0 else "now"

    def since(self, moment: datetime) -> str:
        return span(max(0.0, (self.now - moment).total_seconds()), math.floor)

    def at(self, moment: datetime) -> str:
        return time_of_day(moment, today=self.now)

    def say(
        self, constraint: Constraint, sentence: str, changes: str, *, at: datetime | None = None
    ) -> Explanation:
        return Explanation(
            constraint=constraint,
            sentence=sentence,
            changes=changes,
            changes_at=at if at and at > self.now else None,
        )


def _archived(case: _Case) -> Explanation | None:
    if not case.situation.is_archived:
        return None
    return case.say(
        C.AGENT_ARCHIVED,
        f"{case.task.status}: agent {case.situation.agent_name} is archived and takes no work",
        "when somebody cancels it",
    )


def _early(case: _Case) -> Explanation | None:
    fire_at, deferred_for = case.situation.fire_at, case.situation.deferred_for
    assert fire_at is not None
    assert deferred_for is not None
    if fire_at <= case.now:
        return None
    return case.say(
        Constraint(deferred_for),
        f"deferred: {_cause(case, deferred_for, fire_at)}",
        f"by itself at {case.at(fire_at)}{_or_rerun(case)}",
        at=fire_at,
    )


def _or_rerun(case: _Case) -> str:
    return ", or at once with a rerun" if case.task.issue_id else ""


def _cause(case: _Case, deferred_for: Deferral, fire_at: datetime) -> str:
    provider, within = case.task.provider, case.within(fire_at)
    attempt = f"attempt {case.task.attempt} of {case.task.max_attempts}"
    match deferred_for:
        case "backoff":
            return f"the attempt before it failed, {attempt} follows {within}"
        case "provider":
            return f"provider {provider} was overloaded or out of reach, {attempt} follows {within}"
        case "quota":
            back = f"comes back at {case.at(fire_at)}, {within}"
            return f"the quota of provider {provider} is used up and {back}"
        case "storm":
            return f"this workspace has too many retries, {attempt} has its turn {within}"
        case "schedule":
            return f"it is scheduled for {case.at(fire_at)}, {within}"


def _issue_pending(case: _Case) -> Explanation | None:
    if not case.situation.has_pending_on_issue:
        return None
    agent = case.situation.agent_name
    return case.say(
        C.ISSUE_PENDING,
        f"deferred: it is due, but another task of agent {agent} on this issue is first",
        "when that one has started or ended",
    )


def _promoting(case: _Case) -> Explanation:
    within_s = case.leases.sweep_every_s
    return case.say(
        C.PROMOTING,
        "deferred: it is due, and is being queued",
        f"by itself within {within_s:.0f} s",
    )


def _queued(case: _Case) -> Explanation:
    stuck = (
        _archived(case)
        or _no_runtime(case)
        or _unfit(case)
        or _issue_busy(case)
        or _agent_limit(case)
        or _no_room(case)
    )
    return _or_expires(case, stuck) if stuck else _handing_over(case)


def _or_expires(case: _Case, stuck: Explanation) -> Explanation:
    expires_at = case.situation.queued_at + timedelta(seconds=case.leases.queued_max_s)
    changes_at = min(stuck.changes_at or expires_at, expires_at)
    return replace(
        stuck,
        changes=f"{stuck.changes}; unclaimed, the task expires {case.within(expires_at)}",
        changes_at=changes_at if changes_at > case.now else None,
    )


def _no_runtime(case: _Case) -> Explanation | None:
    if case.situation.places:
        return None
    return case.say(
        C.NO_RUNTIME,
        f"queued: no machine offers provider {case.task.provider}",
        "when a daemon starts where its CLI is installed: `understudy daemon start`",
    )


def _unfit(case: _Case) -> Explanation | None:
    if case.fit:
        return None
    return _out_of_quota(case) or _all_offline(case) or _broken(case)


def _out_of_quota(case: _Case) -> Explanation | None:
    resets = [
        (place.quota_resets_at, place.name)
        for place in case.situation.places
        if place.is_present and place.quota_resets_at is not None
    ]
    if not resets:
        return None
    at, name = min(resets)
    return case.say(
        C.QUOTA,
        f"queued: the quota of runtime {name} is used up and comes back at {case.at(at)},"
        f" {case.within(at)}",
        f"by itself {case.within(at)}{_or_rerun(case)}",
        at=at,
    )


def _all_offline(case: _Case) -> Explanation | None:
    away = {
        place.name: place.offline_since
        for place in sorted(case.situation.places, key=lambda place: str(place.offline_since))
        if place.offline_since is not None and place.problem is None
    }
    if not away:
        return None
    last, is_one = case.at(max(away.values())), len(away) == 1
    return case.say(
        C.RUNTIME_OFFLINE,
        f"queued: {runtimes(away)} offline{'' if is_one else ', the last of them'} since {last}",
        f"when {'it' if is_one else 'one of them'} comes back: {START}",
    )


def _broken(case: _Case) -> Explanation:
    name, problem = min((place.name, place.problem or "") for place in case.situation.places)
    return case.say(
        C.RUNTIME_PROBLEM,
        f"queued: runtime {name} is out of order: {one_line(problem)}",
        "when that is repaired: its daemon looks again every few minutes",
    )


def _issue_busy(case: _Case) -> Explanation | None:
    before, agent = case.situation.running_on_issue, case.situation.agent_name
    if before is None:
        return None
    if case.situation.is_cancelling_on_issue:
        sentence = f"queued: the run of agent {agent} before it on this issue is being cancelled"
        changes = "when its machine confirms that the agent is gone"
    else:
        sentence = f"queued: it follows the run that agent {agent} already has on this issue"
        changes = "when that run ends"
    return case.say(C.ISSUE_BUSY, sentence, f"{changes}: `understudy why {before}`")


def _agent_limit(case: _Case) -> Explanation | None:
    runs, limit = case.situation.agent_runs, case.situation.agent_limit
    if runs < limit:
        return None
    too_many = runs - limit + 1
    ends = "one of its {} runs ends" if too_many == 1 else f"{too_many} of its {{}} runs have ended"
    return case.say(
        C.AGENT_LIMIT,
        f"queued: agent {case.situation.agent_name} runs {runs} of {limit}",
        f"when {ends.format(runs) if runs > 1 else 'its run ends'}, or its limit is raised",
    )


def _no_room(case: _Case) -> Explanation | None:
    """Who is not connected may ask at any moment, so it comes before who is full."""
    if any(place.has_room for place in case.fit):
        return None
    if unconnected := [place.name for place in case.fit if place.is_attached is False]:
        return case.say(
            C.NOT_CONNECTED,
            f"queued: {runtimes(unconnected)} online, but not connected to be handed work",
            "when it connects or asks; after"
            f" {case.leases.offline_after_s:.0f} s of silence it counts as offline",
        )
    full = [place.name for place in case.fit]
    return case.say(
        C.NO_SLOT,
        f"queued: {runtimes(full)} without a free slot",
        "when a run ends there, or a daemon that drains is started again",
    )


def _handing_over(case: _Case) -> Explanation:
    takers = [place.name for place in case.fit if place.has_room]
    return case.say(
        C.HANDING_OVER,
        f"queued: it is being handed to {names_of(takers, 'or')}",
        f"by itself within {POLL_S:.0f} s",
    )


def _offline_in_flight(case: _Case) -> Explanation | None:
    ours, mine = case.situation, case.situation.mine
    if mine.offline_since is None:
        return None
    ends_at, is_last = given_up_at(ours, case.leases), not has_next_attempt(ours)
    names, within = [place.name for place in heirs(ours)], case.within(ends_at)
    if names and not is_last:
        then = f"{names_of(names, 'or')} takes over {within}"
    else:
        then = f"{'' if names else 'no other can take over, '}it is given up {within}"
    return case.say(
        C.TAKEOVER_GRACE if names else C.ALONE_GRACE,
        f"{case.task.status}: {_gone(case, mine)}, {then}",
        f"when {_back(mine)}; else it fails {within}{'' if is_last else ' and is tried again'}",
        at=ends_at,
    )


def _gone(case: _Case, place: Place) -> str:
    assert place.offline_since is not None
    said = f" ({one_line(place.problem)})" if place.problem else ""
    return f"runtime {place.name} is offline since {case.at(place.offline_since)}{said}"


def _back(place: Place) -> str:
    return "that is repaired" if place.problem else f"it comes back: {START}"


def _prepared(case: _Case) -> Explanation:
    expires_at, dispatched_at = case.situation.claim_expires_at, case.task.dispatched_at
    name, ends_at = case.situation.mine.name, unclaimed_at(case.situation, case.leases)
    assert expires_at is not None
    assert dispatched_at is not None
    if expires_at <= case.now:
        return case.say(
            C.CLAIM_EXPIRED,
            f"dispatched: the claim of runtime {name} ran out {case.since(expires_at)} ago",
            "when that runtime next asks for work, and the task is queued again;"
            f" else it fails {case.within(ends_at)}",
            at=ends_at,
        )
    return case.say(
        C.PREPARING,
        f"dispatched: {name} prepares the work directory, for {case.since(dispatched_at)} now",
        f"when the agent starts; its claim ends {case.within(expires_at)} unless it is renewed",
        at=expires_at,
    )


def _working(case: _Case) -> Explanation:
    assert case.task.started_at is not None
    return case.say(
        C.WORKING,
        f"running on {case.situation.mine.name} for {case.since(case.task.started_at)}",
        "when the agent ends, or somebody cancels it",
    )


def _cancelling(case: _Case, requested_at: datetime) -> Explanation:
    mine = case.situation.mine
    ends_at = requested_at + timedelta(seconds=case.leases.cancel_unconfirmed_s)
    if mine.offline_since is None:
        constraint, confirms = C.STOPPING, "it confirms that the agent is gone"
        said = f"{mine.name} was told {case.since(requested_at)} ago and has not confirmed the end"
    else:
        constraint, confirms = C.STOP_UNCONFIRMED, _back(mine)
        said = f"{_gone(case, mine)}, and cannot confirm the end"
        ends_at = min(ends_at, given_up_at(case.situation, case.leases))
    return case.say(
        constraint,
        f"cancelling: {said}",
        f"when {confirms}; else it counts as cancelled, unconfirmed, {case.within(ends_at)}",
        at=ends_at,
    )
