"""What must be true whatever happens, checked from outside.

The auditor knows nothing of tokens, leases or actors. It compares what machines did and were told
with what the database says at the end, and reads the event table as the log of commits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise
from typing import Any, Final, final
from uuid import UUID

import trio

from understudy.store.connection import Record
from understudy.store.database import Database

TERMINAL: Final = {"task:completed", "task:failed", "task:cancelled"}
FOLLOWS: Final = {
    "task:queued": {"task:dispatch"},
    "task:dispatch": {"task:queued", "task:running", "task:failed"},
    "task:running": {"task:completed", "task:failed"},
}


@dataclass
class Run:
    """What a machine knows of one execution: who, what it said, how it ended."""

    machine: str
    output: str
    is_success: bool
    messages: int = 0
    finished: bool = False
    acknowledged: bool = False


@final
@dataclass
class Auditor:
    log: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    runs: dict[UUID, Run] = field(default_factory=dict)

    def note(self, line: str) -> None:
        self.log.append(f"{trio.current_time():9.3f} {line}")

    def began(self, task_id: UUID, run: Run) -> None:
        """An agent starts to work; for one task that happens once."""
        self.note(f"{run.machine} began {task_id}")
        if task_id in self.runs:
            self.violations.append(f"{task_id} is executed by {run.machine} and was before")
        self.runs[task_id] = run

    def finished(self, task_id: UUID) -> None:
        self.note(f"{self.runs[task_id].machine} finished {task_id}")
        self.runs[task_id].finished = True

    def acknowledged(self, task_id: UUID, status: str) -> None:
        run = self.runs[task_id]
        self.note(f"{run.machine} was told that {task_id} is {status}")
        run.acknowledged = True
        if status != _status(run):
            self.violations.append(f"{task_id} was reported {_status(run)}, the answer: {status}")

    async def examine(self, database: Database, limits: dict[UUID, int]) -> None:
        """Everything has come to rest: compare."""
        pool = database.pool
        events = await pool.fetch("select * from understudy.events order by id")
        self.log += [f"{row['kind']} {row['task_id']} {row['payload']}" for row in events]
        self.violations += list(_limits_broken(events, limits))
        self.violations += list(_illegal_orders(events))
        tasks = await pool.fetch("select * from understudy.tasks order by id")
        self.violations += [
            f"{row['id']} is still {row['status']}" for row in tasks if not row["completed_at"]
        ]
        said = await pool.fetch("select task_id, body from understudy.comments order by id")
        self.violations += self._results_lost(tasks, said)
        rows = await pool.fetch(
            "select task_id, count(*) as n from understudy.task_messages group by task_id"
        )
        self.violations += self._transcripts_torn({row["task_id"]: row["n"] for row in rows})
        rows = await pool.fetch(
            "select task_id, sum(output_tokens) n from understudy.usage group by 1"
        )
        self.violations += [
            f"{row['task_id']} is billed {row['n']} tokens" for row in rows if row["n"] != 1
        ]
        stuck = await pool.fetch(
            "select i.number from understudy.issues i where i.status = 'in_progress'"
            " and not exists (select from understudy.tasks t"
            " where t.issue_id = i.id and t.completed_at is null)"
        )
        self.violations += [f"issue {row['number']} is in progress by nobody" for row in stuck]

    def _results_lost(self, tasks: Iterable[Record], said: list[Record]) -> Iterator[str]:
        rows = {row["id"]: row for row in tasks}
        comments = Counter((row["task_id"], row["body"]) for row in said)
        for task_id, run in self.runs.items():
            row = rows[task_id]
            result: dict[str, Any] = row["result"] or {}
            if not run.finished or not run.acknowledged:
                yield f"{task_id} was begun by {run.machine} and never brought to an end"
            if row["status"] != _status(run):
                yield f"{task_id} ended {_status(run)} and is {row['status']}"
            if run.is_success and result.get("output") != run.output:
                yield f"{task_id} said {run.output}, the row says {result}"
            if comments[task_id, run.output] != run.is_success:
                yield f"{task_id} commented {comments[task_id, run.output]} times"
        if len(said) != sum(run.is_success for run in self.runs.values()):
            yield f"{len(said)} comments"
        for task_id, row in rows.items():
            if row["status"] == "completed" and task_id not in self.runs:
                yield f"{task_id} is completed, and nobody has worked on it"

    def _transcripts_torn(self, stored: dict[UUID, int]) -> Iterator[str]:
        for task_id, run in self.runs.items():
            if stored.get(task_id, 0) != run.messages:
                yield f"{task_id} has {stored.get(task_id, 0)} messages of {run.messages}"

    def check_stream(self, name: str, heard: list[int], written: list[int]) -> None:
        """A reader hears each event once and in order, over all its reconnections."""
        if heard != written:
            missed, twice = set(written) - set(heard), len(heard) - len(set(heard))
            self.violations.append(
                f"{name}: missed {sorted(missed)}, {twice} twice, or out of order"
            )

    def digest(self) -> str:
        """Of everything that happened: the same for the same seed."""
        return blake2b("\n".join(self.log).encode(), digest_size=8).hexdigest()


def _status(run: Run) -> str:
    return "completed" if run.is_success else "failed"


def _limits_broken(events: Iterable[Record], limits: dict[UUID, int]) -> Iterator[str]:
    """At each commit: what each agent runs, and on which issue."""
    in_flight: dict[str, tuple[str, str]] = {}
    for event in events:
        body = event["payload"]
        if event["kind"] == "task:dispatch":
            agent, issue = body["agent_id"], body["issue_id"]
            if (agent, issue) in in_flight.values():
                yield f"{agent} is twice on issue {issue}"
            in_flight[body["task_id"]] = agent, issue
            runs = sum(each[0] == agent for each in in_flight.values())
            if runs > limits[UUID(agent)]:
                yield f"{agent} runs {runs} of {limits[UUID(agent)]}"
        elif event["kind"] in TERMINAL | {"task:queued"}:
            in_flight.pop(body["task_id"], None)


def _illegal_orders(events: Iterable[Record]) -> Iterator[str]:
    stories: dict[UUID, list[str]] = {}
    for event in events:
        if event["kind"].startswith("task:") and event["kind"] != "task:progress":
            stories.setdefault(event["task_id"], []).append(event["kind"])
    for task_id, story in stories.items():
        if story[0] != "task:queued" or story[-1] not in TERMINAL:
            yield f"{task_id}: {story}"
        for before, after in pairwise(story):
            if after not in FOLLOWS.get(before, set()):
                yield f"{task_id}: {after} after {before}"
