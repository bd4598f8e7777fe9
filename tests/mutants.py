"""Break the guards one by one: each broken guard must turn a test red (`make guards`).

A mutant is a change to a copy of `src`, never in place. `--only WORD` takes those whose name has
the word in it. What simulated worlds alone notice, tests/world_mutants.py tells.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PATIENCE_S: Final = 180
MOVES, CONCURRENCY = "tests/store/test_moves.py", "tests/store/test_concurrency.py"
RETRIES, LATE = "tests/store/test_retries.py", "tests/store/test_late_results.py"
CANCEL, RERUN = "tests/store/test_cancel.py", "tests/store/test_rerun.py"
CALLS, SWEEPS = "tests/store/test_calls.py", "tests/store/test_sweeps.py"
RECOVERY, CLAIMS = "tests/store/test_recovery.py", "tests/store/test_claims.py"
NODE, COURIER = "tests/actors/test_node.py", "tests/actors/test_courier.py"
LIFE: Final = "tests/http/test_life_api.py"
RUNTIME, TASK = "tests/actors/test_runtime_actor.py", "tests/actors/test_task_actor.py"
FENCES: Final = "tests/store/test_fences.py"
TURNS: Final = "tests/actors/test_turns.py"
CAST, BROADCAST = "tests/actors/test_cast.py", "tests/actors/test_broadcast.py"
SCHEMA: Final = "schema.sql"


@dataclass(frozen=True)
class Mutant:
    """The first `old` after `anchor` in `file` becomes `new`; `tests` are to notice."""

    name: str
    file: str
    anchor: str
    old: str
    new: str
    tests: str


MUTANTS: Final = (
    Mutant("start: any token", SCHEMA, "function understudy.start_task",
           "and claim_token is not distinct from p_token", "", MOVES),
    Mutant("start: an expired claim", SCHEMA, "function understudy.start_task",
           "and claim_expires_at > understudy.now()", "", MOVES),
    Mutant("renew: an expired claim", SCHEMA, "function understudy.renew_claim",
           "and claim_expires_at > understudy.now()", "", TASK),
    Mutant("complete: any token", SCHEMA, "function understudy.complete_task",
           "and claim_token is not distinct from p_token", "", MOVES),
    Mutant("fail: any token", SCHEMA, "function understudy.fail_task",
           "and claim_token is not distinct from p_token", "", MOVES),
    Mutant("messages: any token", SCHEMA, "function understudy.may_tell",
           "it.claim_token is not distinct from p_token or", "true or", MOVES),
    Mutant("refusal: a stranger hears replayed", SCHEMA, "function understudy.refusal",
           "when task.claim_token is distinct from p_token then 'fenced'", "", FENCES),
    Mutant("requeue: before the lease is over", SCHEMA, "with expired as materialized",
           "and t.claim_expires_at <= understudy.now()", "", MOVES + " " + CONCURRENCY),
    Mutant("requeue: what others hold", SCHEMA, "with expired as materialized",
           "t.runtime_id = p_runtime and ", "", MOVES),
    Mutant("requeue: bound to who gave it back", SCHEMA, "function understudy.claim_tasks",
           "(select a.runtime_id from understudy.agents a where a.id = t.agent_id)", "t.runtime_id",
           FENCES),
    Mutant("claim: agents not locked", SCHEMA, "function understudy.claim_tasks",
           "order by id for no key update;", "order by id;", CONCURRENCY),
    Mutant("claim: dispatched does not count", SCHEMA, "function understudy.claim_tasks",
           "f.status in ('dispatched', 'running')) as free",
           "f.status = 'running') as free", MOVES),
    Mutant("claim: another runtime's task", SCHEMA, "function understudy.claim_tasks",
           "and (t.runtime_id = p_runtime or t.runtime_id is null)\n          and", "and", CLAIMS),
    Mutant("claim: a token that was given before", "store/claims.py", "async def claim",
           "[database.new_id() for _ in range(slots)]", "[runtime_id] * slots", CLAIMS),
    Mutant("claim: where there is no quota", SCHEMA, "function understudy.claim_tasks",
           "and coalesce(place.quota_resets_at, '-infinity') <= understudy.now()", "", RETRIES),
    Mutant("claim: an issue twice at once", SCHEMA, "), chosen as materialized",
           "f.agent_id = t.agent_id and f.issue_id = t.issue_id and", "false and", CLAIMS),
    Mutant("retry: none is born", SCHEMA, "function understudy.end_failed",
           "if it.retry_task_id is not null then", "if false then", RETRIES),
    Mutant("retry: in spite of what waits", SCHEMA, "function understudy.plan_retry",
           "and t.status in ('queued', 'dispatched') and t.id <> it.id", "and false", RETRIES),
    Mutant("retry: again and again", SCHEMA, "function understudy.plan_retry",
           "or it.attempt >= coalesce(policy.attempts_max, it.max_attempts)", "", RETRIES),
    Mutant("retry: at once", SCHEMA, "function understudy.plan_retry",
           "make_interval(secs => delay_s)", "interval '0'", RETRIES),
    Mutant("retry: a storm goes on", SCHEMA, "function understudy.plan_retry",
           "or 20 <= (", "or 20000 <= (", RETRIES),
    Mutant("retry: what nobody may try again", SCHEMA, "function understudy.plan_retry",
           "if not coalesce(policy.is_retryable, false) or", "if", RETRIES),
    Mutant("quota: the others find out themselves", SCHEMA, "function understudy.fail_task",
           "if task.failure_reason = 'quota_exhausted' then", "if false then", RETRIES),
    Mutant("late: though its successor has started", SCHEMA, "function understudy.complete_late",
           "if exists (select from unnest(heirs) where started_at is not null) then",
           "if false then", LATE),
    Mutant("late: its successor goes on", SCHEMA, "function understudy.complete_late",
           "if heir.status in ('deferred', 'queued', 'dispatched') then", "if false then", LATE),
    Mutant("late: is lost", SCHEMA, "function understudy.complete_late",
           "update understudy.tasks set result = p_result where id = p_task returning * into task;",
           "", LATE),
    Mutant("late: any token", SCHEMA, "function understudy.complete_late",
           "and claim_token is not distinct from p_token", "", LATE),
    Mutant("late: what its daemon failed", SCHEMA, "function understudy.complete_late",
           "and move in ('time_out', 'lose', 'orphan')", "", LATE),
    Mutant("cancel: over before it is confirmed", SCHEMA, "function understudy.cancel_row",
           "if it.status in ('deferred', 'queued', 'dispatched') then",
           "if it.status in ('deferred', 'queued', 'dispatched', 'running') then", CANCEL),
    Mutant("cancel: any token confirms", SCHEMA, "function understudy.confirm_stop",
           "and claim_token is not distinct from p_token", "", CANCEL),
    Mutant("cancel: confirmed unasked", SCHEMA, "function understudy.confirm_stop",
           "and cancel_requested_at is not null", "", CANCEL),
    Mutant("cancel: tried again", SCHEMA, "function understudy.end_failed",
           "if it.cancel_requested_at is not null then", "if false then", CANCEL),
    Mutant("cancel: waited for for ever", SCHEMA, "function understudy.time_out_tasks",
           "or t.cancel_requested_at <= understudy.now() - p_unconfirmed", "", SWEEPS),
    Mutant("cancel: a new connection ends it", "http/calls.py", "def _take_stock",
           "for each in (*held, *inventory.finished)",
           "for each in (*held, *inventory.finished)"
           " if each.task_id not in found or not found[each.task_id].is_stopping", LIFE),
    Mutant("cancel: no machine is told", "actors/courier.py", "def _deliver",
           "self._stop(event)", "pass", COURIER),
    Mutant("cancel: a heartbeat tells nothing", "http/calls.py", "def _stops",
           "for task_id in sorted(presence.stops)", "for task_id in []", LIFE),
    Mutant("rerun: beside what runs", SCHEMA, "function understudy.rerun_issue",
           "and not p_after", "and false", RERUN),
    Mutant("rerun: behind is instead", SCHEMA, "function understudy.rerun_issue",
           "and not p_after", "", RERUN),
    Mutant("recovery: what the machine has", SCHEMA, "function understudy.recover_runtime",
           "and t.id <> all (p_kept)", "", RECOVERY),
    Mutant("recovery: what is on its way", SCHEMA, "function understudy.recover_runtime",
           "coalesce(p_at, understudy.now()) - p_since", "coalesce(p_at, understudy.now())",
           RECOVERY),
    Mutant("recovery: what came after it", SCHEMA, "function understudy.recover_runtime",
           "coalesce(p_at, understudy.now()) - p_since", "understudy.now() - p_since", RECOVERY),
    Mutant("recovery: poison is tried again", SCHEMA, "function understudy.recover_runtime",
           "it.started_at is not null and it.host_crashes > 0", "false", RECOVERY),
    Mutant("lose: without any grace", SCHEMA, "function understudy.lose_tasks",
           "r.offline_since <= understudy.now() - least(p_takeover, p_alone)", "true", SWEEPS),
    Mutant("lose: where nobody takes over", SCHEMA, "function understudy.lose_tasks",
           "or understudy.may_be_taken_over(t, r)", "or true", SWEEPS),
    Mutant("lose: to one that came too late", SCHEMA, "function understudy.may_be_taken_over",
           "and o.online_since <= p_from.last_seen_at", "and true or o.created_at is null", SWEEPS),
    Mutant("judge: by a node that has just come", SCHEMA, "function understudy.judge_runtimes",
           "and me.lease_since <= understudy.now() - p_grace", "", SWEEPS),
    Mutant("judge: while their node may live", SCHEMA, "with left_alone as materialized",
           "and n.lease_expires_at > understudy.now() - p_grace", "and false", SWEEPS),
    Mutant("sweeps: two nodes at once", SCHEMA, "function understudy.leads",
           "return pg_try", "return true or pg_try", SWEEPS),
    Mutant("calls: who waits is not answered", SCHEMA, "function understudy.after_end",
           "perform understudy.answer_calls(ended);", "", CALLS),
    Mutant("calls: a retry does not hear", SCHEMA, "function understudy.bear_retry",
           "where task_id = failed.id", "where false", CALLS),
    Mutant("calls: agents without end", SCHEMA, "function understudy.hops_max",
           "select 8", "select 8000", CALLS),
    Mutant("calls: what is said while a claim runs out", SCHEMA, "), said_meanwhile as",
           "where l.task_id is null", "where false", CALLS),
    Mutant("calls: what was said to a running task", SCHEMA, "function understudy.lock_waiting",
           "t.status in ('deferred', 'queued')", "t.status in ('deferred', 'queued', 'dispatched')",
           CALLS),
    Mutant("trust: of a node without the database", "actors/cast.py", "def trust_s",
           "max(0.0, now - self.leased_until())", "0.0", NODE),
    Mutant("trust: others may not be there", "actors/cast.py", "def trust_s",
           "may_be_replaced=self.has_peers or any(others)", "may_be_replaced=False", NODE),
    Mutant("trust: before it is on record", "http/calls.py", "def _heartbeats",
           "if await self._cast.own(each)", "", NODE),
    Mutant("take-over: by a sign of long ago", "store/runtimes.py", "async def take_over",
           'if was["last_seen_at"] >= sign_at:', "if False:", COURIER),
    Mutant("take-over: the other is not told", "store/runtimes.py", "async def take_over",
           'or was["node_id"] not in {None, node_id}', "", COURIER),
    Mutant("take-over: not answered, not known", "actors/courier.py", "def _note_machines",
           "await self._attend(", "list(", COURIER),
    Mutant("take-over: whoever was heard before", "store/runtimes.py", "async def go_offline",
           "and ($3::uuid is null or node_id = $3)", "and ($3::uuid is null or true)",
           RUNTIME + " " + NODE),
    Mutant("complete: replayed again and again", SCHEMA, "function understudy.complete_task",
           "status = 'running'", "status in ('running', 'completed')", MOVES),
    Mutant("complete: the issue is not locked", SCHEMA, "function understudy.complete_task",
           "for no key update of i", "", CONCURRENCY),
    Mutant("start: the issue is not locked", SCHEMA, "function understudy.start_task",
           "for no key update of i", "", CONCURRENCY),
    Mutant("messages: twice is an error", SCHEMA, "function understudy.append_messages",
           "on conflict (task_id, seq) do nothing", "", MOVES),
    Mutant("events: moves are not recorded", SCHEMA, "create trigger task_moved_event",
           "when (old.status is distinct from new.status)", "when (false)", MOVES),
    Mutant("events: gaps are skipped", "core/gaps.py", "def settle",
           "if each > self.cursor + 1:", "if False:", BROADCAST),
    Mutant("events: gaps are waited for too long", "core/gaps.py", "def settle",
           "oldest_open >= self.gap.next_new", "oldest_open > self.gap.next_new + 9", BROADCAST),
    Mutant("link: pushes are not counted", "actors/link.py", "def settle",
           "self._pushed += used", "pass", RUNTIME + " tests/actors/test_link.py"),
    Mutant("link: reservations are not counted", "actors/link.py", "def reserve",
           "self._reserved += slots", "pass", RUNTIME + " tests/actors/test_link.py"),
    Mutant("turns: no fallback poll", "actors/place.py", "import Presence",
           "POLL_S: Final = 30.0", "POLL_S: Final = 3e6", RUNTIME),
    Mutant("turns: nobody polls", "actors/cast.py", "def _poll", "self._ask_next(place)", "pass",
           RUNTIME),
    Mutant("turns: all are asked", "actors/cast.py", "def _ask_next",
           "if self._ask(place, runtime_id):", "if self._ask(place, runtime_id) and False:", TURNS),
    Mutant("turns: nothing is passed on", "actors/cast.py", "def _pass_on",
           "self._ask_next(place,", "bool(", TURNS),
    Mutant("turns: nobody hears what is bound", "actors/cast.py", "def _pass_on",
           "self._ask(place, runtime_id)", "pass", TURNS),
    Mutant("turns: the likely one is not asked", "actors/cast.py", "def wake",
           "if runtime_id is None or not self._ask(place, runtime_id):", "if True:", TURNS),
    Mutant("turns: own moves are news", "actors/courier.py", "async def _deliver",
           " and not self._is_known(event)", "", TURNS),
    Mutant("turns: a requeue is no news", "actors/cast.py", "def has_woken_for",
           "self._woken.pop((task_id, move), self) is None",
           "any(each[0] == task_id for each in self._woken)", TURNS),
    Mutant("turns: barred ones are all asked", "actors/cast.py", "def _pass_on",
           "looker.barred_until > now", "False", TURNS),
    Mutant("turns: barred ones are never asked", "actors/place.py", "def in_line",
           "if not spares_barred:", "if False:", TURNS),
    Mutant("turns: a reset is not noticed", "actors/runtime.py", "def _bar",
           "self._look_at = until", "pass", TURNS),
    Mutant("turns: who cannot look keeps it", "actors/runtime.py", "async def receive",
           "self._around.left(FOR_ANYBODY)", "pass", TURNS),
    Mutant("turns: who ends keeps it", "actors/runtime.py", "def stop",
           "self._around.left(FOR_ANYBODY)", "pass", TURNS),
    Mutant("turns: one look is enough", "actors/runtime.py", "async def _claim",
           "self._place.looks()", "pass", TURNS),
    Mutant("turns: an older look counts", "actors/place.py", "def looked",
           "if changes >= self._known_since:", "if True:", TURNS),
    Mutant("turns: what is known is old", "actors/place.py", "def has_nothing_for",
           "self._known_since == self.changes and ", "", "tests/actors/test_shortcut.py"),
    Mutant("turns: each poll asks", "actors/place.py", "def has_nothing_for",
           "return is_new and", "return False and", TURNS),
    Mutant("turns: what is set aside is taken", "actors/link.py", "def may_have_room",
           "self._granted > self._pushed", "self.free > 0", TURNS),
    Mutant("turns: twice at one change", "actors/presence.py", "def may_look",
           " and self.changes_seen < changes", "", TURNS),
    Mutant("turns: always the same one", "actors/place.py", "def to_the_end",
           "if runtime_id in self._line:", "if False:", TURNS),
    Mutant("left: where there is no room", SCHEMA, "function understudy.look_after_claim",
           "and a.max_concurrent_tasks > (", "and 1000000 > (", CLAIMS),
    Mutant("left: what is being done", SCHEMA, "function understudy.look_after_claim",
           "f.agent_id = t.agent_id and f.issue_id = t.issue_id and", "false and", CLAIMS),
    Mutant("left: elsewhere", SCHEMA, "function understudy.look_after_claim",
           "and a.provider = place.provider", "", CLAIMS),
    Mutant("left: of the archived", SCHEMA, "function understudy.look_after_claim",
           "and a.archived_at is null", "", CLAIMS),
    Mutant("left: a problem is no bar", SCHEMA, "function understudy.look_after_claim",
           "when place.problem is not null or", "when", CLAIMS),
    Mutant("runtime: waits after a crash", "actors/runtime.py", "async def start",
           "self._look_at = now", "pass", RUNTIME),
    Mutant("runtime: offline a second later", "actors/runtime.py", "def _silent_at",
           "leases.offline_after_s", "leases.offline_after_s + 1", RUNTIME),
    Mutant("runtime: heard too late", "actors/cast.py", "def heard",
           "presence.heard_at = trio.current_time()", "pass", RUNTIME),
    Mutant("cast: an end wakes nobody", "actors/cast.py", "def committed",
           "self.wake_for(row)", "pass", CAST),
    Mutant("task: an end is not told", "actors/task.py", "async def receive",
           "self._newest.raise_to(OVER)", "pass", "tests/http/test_streams.py"),
    Mutant("text: NUL passes", "wire/text.py", "def _cleaned",
           'value.replace("\\x00", "")', "value", "tests/wire/test_text.py"),
    Mutant("text: nesting is free", "wire/text.py", "def _decoded",
           "if _is_deep(raw):", "if False:", "tests/wire/test_text.py"),
    Mutant("keys: a code works twice", "store/tokens.py", "def redeem_login",
           "and revoked_at is null", "", "tests/store/test_tokens.py"),
    Mutant("keys: a task's outlives it", "store/tokens.py", "async def _agent",
           "and status in ('dispatched', 'running')", "",
           "tests/store/test_tokens.py"),
)  # fmt: skip


def mutated(mutant: Mutant, path: Path) -> None:
    text = path.read_text()
    start = text.index(mutant.anchor)
    before, found, after = text[start:].partition(mutant.old)
    assert found, f"{mutant.name}: the code has changed; find its guard again"
    path.write_text(text[:start] + before + mutant.new + after)


def outcome(mutant: Mutant) -> tuple[str, str]:
    """`killed`, `survived` or `broken`, and the test that did it."""
    with TemporaryDirectory(prefix="understudy-mutant-") as directory:
        source = shutil.copytree(ROOT / "src", Path(directory) / "src")
        mutated(mutant, source / "understudy" / mutant.file)
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
                   "--seed=1", "--tb=no", "-rfE", "--show-capture=no",
                   *mutant.tests.split()]  # fmt: skip
        environment = os.environ | {"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True,
                timeout=PATIENCE_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return "killed", "it never ends"
    red = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    verdict = {0: "survived", 1: "killed"}.get(done.returncode, "broken")
    return verdict, red[0].split(" ", 1)[1].split(" - ")[0] if red else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="mutants whose name has this in it")
    options = parser.parse_args()
    survivors = 0
    for mutant in MUTANTS:
        if options.only in mutant.name:
            began = time.monotonic()
            verdict, by = outcome(mutant)
            survivors += verdict != "killed"
            took_s = time.monotonic() - began
            sys.stdout.write(f"{verdict:8} {mutant.name:36} {took_s:5.1f} s  {by}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{survivors} survived\n")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
