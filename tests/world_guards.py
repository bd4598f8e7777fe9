"""Guards of the production code, and how each can be broken (tests/world_mutants.py).

Chosen over the whole system: what a person who did not know its reason might take out, swap or
count from the wrong moment. A test sees to it that each still finds its place in the code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

SCHEMA: Final = "schema.sql"


class CodeHasChanged(Exception):
    """The guard is no longer where it was: find it again."""


@dataclass(frozen=True)
class WorldMutant:
    """The first `old` after `anchor` in `file` becomes `new`; `breaks` says so in a sentence."""

    name: str
    breaks: str
    file: str
    anchor: str
    old: str
    new: str = ""

    def apply(self, package: Path) -> None:
        """Change the package's file. Raises `CodeHasChanged`."""
        path = package / self.file
        before, anchor, rest = path.read_text().partition(self.anchor)
        head, old, tail = (anchor + rest).partition(self.old)
        if not anchor or not old or self.old == self.new:
            raise CodeHasChanged(f"{self.name}: {self.file}")
        path.write_text(before + head + self.new + tail)


M = WorldMutant
MUTANTS: Final = (
    # Claims
    M("start: any token", "whoever had the task before may start it", SCHEMA,
      "function understudy.start_task", "and claim_token is not distinct from p_token"),
    M("refusal: a stranger hears replayed", "a fence is ignored: who lost a task is told to go on",
      SCHEMA, "function understudy.refusal",
      "when task.claim_token is distinct from p_token then 'fenced'"),
    M("requeue: before the lease is over", "a claim is taken back while its daemon prepares",
      SCHEMA, "with expired as materialized", "and t.claim_expires_at <= understudy.now()"),
    M("requeue: bound to who gave it back", "what nobody started stays where nobody started it",
      SCHEMA, "function understudy.claim_tasks",
      "(select a.runtime_id from understudy.agents a where a.id = t.agent_id)", "t.runtime_id"),
    M("claim: dispatched does not count", "an agent's limit counts only what has started", SCHEMA,
      "with room as materialized", "f.status in ('dispatched', 'running')", "f.status = 'running'"),
    M("claim: another machine's task", "a machine takes what is bound to another", SCHEMA,
      "chosen as materialized", "and (t.runtime_id = p_runtime or t.runtime_id is null)"),
    M("claim: an issue twice at once", "an agent works twice at one issue", SCHEMA,
      "chosen as materialized", "f.agent_id = t.agent_id and f.issue_id = t.issue_id and",
      "false and"),
    M("claim: the newest first", "an order swapped: the last in line is first", SCHEMA,
      "chosen as materialized", "order by t.rank, t.id", "order by t.rank desc, t.id"),
    M("claim: where there is no quota", "a machine without quota is given more", SCHEMA,
      "function understudy.claim_tasks",
      "and coalesce(place.quota_resets_at, '-infinity') <= understudy.now()"),
    M("claim: a token that was given before", "a fence is used again", "store/claims.py",
      "async def claim", "[database.new_id() for _ in range(slots)]", "[runtime_id] * slots"),
    M("claim: no machine is asked again", "what was claimed and not started is never given back",
      SCHEMA, "with expired as materialized", "t.runtime_id = p_runtime and", "false and"),
    # Attempts
    M("retry: none is born", "a failure that may be tried again is not", SCHEMA,
      "function understudy.end_failed", "if it.retry_task_id is not null then", "if false then"),
    M("retry: in spite of what waits", "an attempt is born beside a task that waits", SCHEMA,
      "function understudy.plan_retry",
      "and t.status in ('queued', 'dispatched') and t.id <> it.id", "and false"),
    M("retry: again and again", "nobody counts the attempts", SCHEMA,
      "function understudy.plan_retry",
      "or it.attempt >= coalesce(policy.attempts_max, it.max_attempts)"),
    M("retry: what nobody may try again", "a failure that stays one is tried again", SCHEMA,
      "function understudy.plan_retry", "if not coalesce(policy.is_retryable, false) or", "if"),
    M("retry: at once", "nobody waits before the next attempt", SCHEMA,
      "function understudy.plan_retry", "make_interval(secs => delay_s)", "interval '0'"),
    M("retry: a call is not inherited", "the next attempt does not hear who called", SCHEMA,
      "function understudy.bear_retry", "where task_id = failed.id", "where false"),
    M("quota: the others find out themselves", "a machine's quota is not noted", SCHEMA,
      "function understudy.fail_task", "if task.failure_reason = 'quota_exhausted' then",
      "if false then"),
    # Late results
    M("late: though its successor has started", "a result counts beside its successor's", SCHEMA,
      "function understudy.complete_late",
      "if exists (select from unnest(heirs) where started_at is not null) then", "if false then"),
    M("late: its successor goes on", "what has succeeded is done again", SCHEMA,
      "function understudy.complete_late",
      "if heir.status in ('deferred', 'queued', 'dispatched') then", "if false then"),
    M("late: is lost", "a result that came too late is thrown away", SCHEMA,
      "function understudy.complete_late",
      "update understudy.tasks set result = p_result where id = p_task returning * into task;"),
    M("late: does not count", "a result counts only while the server waits for it", SCHEMA,
      "function understudy.complete_late", "and understudy.was_given_up(t)", "and false"),
    # Cancelling
    M("cancel: over before it is confirmed", "a run is cancelled while its process lives", SCHEMA,
      "function understudy.cancel_row", "if it.status in ('deferred', 'queued', 'dispatched') then",
      "if it.status in ('deferred', 'queued', 'dispatched', 'running') then"),
    M("cancel: tried again", "what was to be stopped fails, and is tried again", SCHEMA,
      "function understudy.end_failed", "if it.cancel_requested_at is not null then",
      "if false then"),
    M("cancel: said only once", "the order to stop is not repeated with each heartbeat",
      "actors/cast.py", "def cancel_requested", "presence.stops.add(task_id)", "pass"),
    M("cancel: at this node alone", "machines at other nodes are not told to stop",
      "actors/courier.py", "def _deliver", "self._stop(event)", "pass"),
    M("rerun: beside what runs", "who runs an issue again does not stop what runs", SCHEMA,
      "function understudy.rerun_issue", "and not p_after", "and false"),
    # Recovery and sweeps
    M("recovery: what the machine has", "a machine that registers loses what it works on", SCHEMA,
      "function understudy.recover_runtime", "and t.id <> all (p_kept)"),
    M("recovery: another machine's tasks", "recovery steals what other machines work on", SCHEMA,
      "function understudy.recover_runtime",
      "t.runtime_id = p_runtime and t.status", "t.status"),
    M("recovery: poison is tried again", "what brings machines down goes from one to the next",
      SCHEMA, "function understudy.recover_runtime",
      "it.started_at is not null and it.host_crashes > 0", "false"),
    M("recovery: what has finished", "what a machine is about to report is given up",
      "http/calls.py", "def _take_stock", "(*held, *inventory.finished)]", "held]"),
    M("lose: without any grace", "a machine that is offline loses its runs at once", SCHEMA,
      "function understudy.lose_tasks",
      "r.offline_since <= understudy.now() - least(p_takeover, p_alone)", "true"),
    M("lose: where nobody takes over", "the short grace holds for everybody", SCHEMA,
      "function understudy.lose_tasks", "or understudy.may_be_taken_over(t, r)", "or true"),
    M("lose: to one that came too late", "runs are taken whose machine was promised more", SCHEMA,
      "function understudy.may_be_taken_over",
      "and o.online_since <= p_from.last_seen_at - interval '15 seconds'"),
    M("time out: on a machine that is heard", "a clock judges what a living daemon looks after",
      SCHEMA, "function understudy.time_out_tasks",
      "and r.status = 'offline' and r.node_id is null"
      " and r.offline_since <= understudy.now() - p_silent"),
    M("expire: counted from its birth", "a task that was given back expires too soon", SCHEMA,
      "function understudy.guard_move", "if new.status = 'queued' then",
      "if new.status = 'queued' and leaves = '' then"),
    M("judge: while their node may live", "a node judges the machines of one that lives", SCHEMA,
      "with left_alone as materialized", "and n.lease_expires_at > understudy.now() - p_grace",
      "and false"),
    M("judge: by a node that has just come", "a node judges before anybody could come back",
      SCHEMA, "function understudy.judge_runtimes",
      "and me.lease_since <= understudy.now() - p_grace"),
    M("sweep: only once", "a node sweeps when it starts, and never again",
      "actors/sweepers.py", "async def _run", "began_at + self._sweep.every_s", "float('inf')"),
    # Who is called, and what is told
    M("calls: who waits is not answered", "a call during a run is forgotten", SCHEMA,
      "function understudy.after_end", "perform understudy.answer_calls(ended);"),
    M("calls: what was said to a running task", "a call joins a task that was told already",
      SCHEMA, "function understudy.lock_waiting", "t.status in ('deferred', 'queued')",
      "t.status in ('deferred', 'queued', 'dispatched')"),
    M("calls: agents without end", "agents call one another for ever", SCHEMA,
      "function understudy.hops_max", "select 8", "select 8000"),
    M("issue: in progress by nobody", "an issue stays in progress when nobody works on it",
      SCHEMA, "function understudy.after_end", "and (status = 'in_progress' or", "and (false or"),
    M("agent: at work for ever", "an agent is said to work when its run has ended", SCHEMA,
      "function understudy.complete_task",
      "perform understudy.note_agents(array[task.agent_id]);"),
    M("events: moves are not recorded", "the record has births alone", SCHEMA,
      "create trigger task_moved_event", "when (old.status is distinct from new.status)",
      "when (false)"),
    M("messages: twice is an error", "a batch that is sent again is refused", SCHEMA,
      "function understudy.append_messages", "on conflict (task_id, seq) do nothing"),
    M("bill: sent twice, paid twice", "a bill that is sent again is added", SCHEMA,
      "function understudy.report_usage", "output_tokens = excluded.output_tokens",
      "output_tokens = understudy.usage.output_tokens + excluded.output_tokens"),
    M("register: its event comes later", "a transaction is split: a machine comes, unrecorded",
      "store/runtimes.py", "async def register", "database.pool.transaction()",
      "database.pool.connection()"),
    M("stream: history is what is in memory", "who comes back to another node misses events",
      "actors/broadcast.py", "def since", "if self.recent and self.recent[0].id <= after + 1:",
      "if self.recent:"),
    M("explain: who works on the issue", "the run before it on the issue is not named",
      "store/situations.py", "FACTS", "f.agent_id = t.agent_id and f.issue_id = t.issue_id",
      "f.agent_id = t.agent_id"),
    # Nodes
    M("trust: of a node without the database", "a node that has lost the database promises",
      "actors/cast.py", "def trust_s", "max(0.0, now - self.leased_until())", "0.0"),
    M("trust: others may not be there", "nobody thinks of machines at other nodes",
      "actors/cast.py", "def trust_s", "may_be_replaced=self.has_peers or any(others)",
      "may_be_replaced=False"),
    M("trust: before it is on record", "a node promises for a machine that is another's",
      "http/calls.py", "def _heartbeats", "if await self._cast.own(each)"),
    M("lease: counted from the answer", "a node trusts its lease for longer than it lasts",
      "actors/node.py", "async def _renew", "self._expires_at = asked_at + lease_s",
      "self._expires_at = trio.current_time() + lease_s"),
    M("take-over: whoever was heard before", "a node takes off whom another node hears",
      "store/runtimes.py", "async def go_offline", "node_id = $3)", "true)"),
    M("runtime: heard too late", "a heartbeat is not noted", "actors/cast.py", "def heard",
      "presence.heard_at = trio.current_time()", "pass"),
    M("link: pushes are not counted", "a machine is pushed more than it has room for",
      "actors/link.py", "def settle", "self._pushed += used", "pass"),
    M("task: who crashes stays dead", "a service that crashes is not started again",
      "supervisor.py", "async def supervise", "await trio.sleep(policy.delay_s)", "return"),
    # Daemons
    M("trust: counted from the answer", "the trust window begins when the answer comes",
      "daemon/link.py", "async def _heartbeat_forever", "host.trusted(asked_at, heard.trust_s)",
      "host.trusted(trust.now(), heard.trust_s)"),
    M("trust: the keeper is not told", "a keeper without a daemon trusts for ever",
      "daemon/run.py", "async def _tell_promises", "if trust.is_promised(runtime_id):",
      "if False:"),
    M("inventory: without what runs", "a daemon does not name what it works on",
      "daemon/main.py", "def _inventory", "(finished if is_ending else running).append(held)",
      "pass"),
    M("start: is recovery no more", "a daemon does not look for what its predecessor left",
      "daemon/main.py", "def _on_disk", "named | record.runs_in(self._shop.runs).keys()", "named"),
    M("slot: a wake-up is lost", "the server does not hear that a slot is free",
      "daemon/main.py", "def _run_over", "self._shop.link.offer(self.free_slots())", "pass"),
    M("slot: never free again", "a run that is over keeps its slot", "daemon/run.py",
      "case Over():", "self._shop.slots.release(self._id)", "pass"),
    M("credit: counted twice", "slots are offered that were offered before", "daemon/session.py",
      "def _total", "max(self._credit.total, self._taken + free)", "self._credit.total + free"),
    M("fence: ignored by who is told", "a daemon does not take 409 for an answer",
      "daemon/hold.py", "LOST_TO", "frozenset({404, 409})", "frozenset({404})"),
    M("run: its agent outlives its claim", "who has lost a task lets its agent work on",
      "daemon/hold.py", "async def _tell", "self._lost()", "pass"),
    M("run: starts before it is told", "an agent begins before the server says that it may",
      "daemon/run.py", "def _prepare_and_start", "await self._hold.start()", "pass"),
    M("report: sent once", "a report is not sent again", "daemon/run.py",
      "async def _deliver_reports", "await self._hold.report(report)",
      "with suppress(Exception): await self._shop.link.call("
      "report.kind, reports.body_of(report), self._id)"),
    M("report: unknown is good enough", "what may have arrived is taken to have", "daemon/link.py",
      "async def deliver", 'logger.info("%s may have been done (%s): asking again", name, error)',
      "return None"),
    M("report: forgotten, then sent", "an order swapped: the report goes from disk, then out",
      "daemon/run.py", "async def _deliver_reports",
      "for report in waiting:\n            await self._hold.report(report)\n"
      "        self._forget(waiting)",
      "self._forget(waiting)\n        for report in waiting:\n"
      "            await self._hold.report(report)"),
    M("refusal: 503 is a no", "a server that is busy has refused", "daemon/link.py",
      "def _will_pass", "or status >= 500"),
    M("keeper: a lost one has ended well", "an agent whose keeper was killed has left by itself",
      "daemon/reports.py", "def exit_of", "Exit(why=str(FailureReason.KEEPER_LOST))",
      'Exit(why="exited", code=0)'),
    M("keeper: what it leaves behind stays", "what a lost keeper leaves is not killed",
      "daemon/following.py", "async def _judge", "await self.kept.sweep()", "pass"),
    M("messages: noted, then sent", "an order swapped: a batch counts as heard before it is",
      "daemon/following.py", "async def _send",
      "await self.hold.say(batch)\n        note_heard(self.kept.run_dir, batch[-1].seq)",
      "note_heard(self.kept.run_dir, batch[-1].seq)\n        await self.hold.say(batch)"),
    M("agent: may be silent for ever", "an agent that hangs is not stopped",
      "daemon/following.py", "async def _stop_when_stalled", "await self.kept.end(stall.why)",
      "pass"),
    M("disk: an exit before its spool", "an fsync is gone: an end is on disk before what was said",
      "daemon/rundir.py", "def write_exit", "_sync_file(run_dir / name)", "pass"),
    M("disk: a record is not flushed", "an fsync is gone: a keeper's record may be torn",
      "daemon/rundir.py", "def write_record", "os.fsync(file.fileno())", "pass"),
    M("disk: an order is not flushed", "an fsync is gone: an order may be torn",
      "daemon/files.py", "def replace_file", "os.fsync(file.fileno())", "pass"),
    # Workspaces
    M("workspace: claims anybody's tasks", "a machine is given tasks of another workspace", SCHEMA,
      "with room as materialized", "a.workspace_id = place.workspace_id and "),
    M("workspace: streams everybody's events", "who follows a board follows all of them",
      "actors/broadcast.py", "async def follow", "event.workspace_id == workspace_id and "),
    M("workspace: an id opens every issue", "an issue of another workspace is found by its id",
      "store/issues.py", "async def get", "i.workspace_id = $1", "$1::uuid is not null"),
    M("workspace: a number is anybody's", "an issue of another workspace is found by its key",
      "store/issues.py", "async def find", "i.workspace_id = $1", "$1::uuid is not null"),
    M("workspace: calls anybody by name", "a comment calls an agent of another workspace", SCHEMA,
      "function understudy.mentioned", "workspace_id = p_workspace and "),
    M("workspace: an id opens every task", "a task of another workspace is found by its id",
      "store/tasks.py", "async def find", "workspace_id = $2", "$2::uuid is not null"),
    # Sessions
    M("session: a refused one is not retired", "nobody notes which session is dead", SCHEMA,
      "function understudy.refuse_session", "if p_session is null then", "if true then"),
    M("session: a refusal is not told", "a daemon keeps to itself which session is dead",
      "daemon/hold.py", "async def retire", 'await self._deliver("session", body)', "pass"),
    M("session: a retired one is offered", "a dead session is offered to whoever is next", SCHEMA,
      "function understudy.brief_claims", "r.session_id = p.session_id", "false"),
    M("afresh: with the old session", "who begins afresh is to continue what was refused",
      "daemon/orders.py", "def afresh", "resume=None,", "resume=order.spec.resume,"),
)  # fmt: skip
