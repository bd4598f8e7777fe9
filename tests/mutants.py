"""Break the guards one by one: each broken guard must turn a test red (`make mutants`).

A mutant is a change to a copy of `src`, never in place. `--only WORD` takes those whose name has
the word in it; `--simulate N` asks what N simulated worlds alone would notice.
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
RUNTIME, TASK = "tests/actors/test_runtime_actor.py", "tests/actors/test_task_actor.py"
FENCES: Final = "tests/store/test_fences.py"
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
    Mutant("messages: any token", SCHEMA, "function understudy.append_messages",
           "and claim_token is not distinct from p_token", "", MOVES),
    Mutant("refusal: a stranger hears replayed", SCHEMA, "function understudy.refusal",
           "when task.claim_token is distinct from p_token then 'fenced'", "", FENCES),
    Mutant("requeue: before the lease is over", SCHEMA, "function understudy.claim_tasks",
           "and claim_expires_at <= understudy.now()", "", MOVES + " " + CONCURRENCY),
    Mutant("requeue: what others hold", SCHEMA, "function understudy.claim_tasks",
           "where runtime_id = p_runtime and status = 'dispatched'",
           "where status = 'dispatched'", MOVES),
    Mutant("requeue: bound to who gave it back", SCHEMA, "function understudy.claim_tasks",
           "(select a.runtime_id from understudy.agents a where a.id = t.agent_id)", "t.runtime_id",
           FENCES),
    Mutant("claim: agents not locked", SCHEMA, "function understudy.claim_tasks",
           "order by id for no key update;", "order by id;", CONCURRENCY),
    Mutant("claim: dispatched does not count", SCHEMA, "function understudy.claim_tasks",
           "f.status in ('dispatched', 'running')) as free",
           "f.status = 'running') as free", MOVES),
    Mutant("claim: another runtime's task", SCHEMA, "function understudy.claim_tasks",
           "and (t.runtime_id = p_runtime or t.runtime_id is null)", "", MOVES),
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
    Mutant("runtime: no fallback poll", "actors/runtime.py", "BATCH_MAX",
           "POLL_S: Final = 30.0", "POLL_S: Final = 3e6", RUNTIME),
    Mutant("runtime: waits after a crash", "actors/runtime.py", "async def start",
           "now - POLL_S", "now", RUNTIME),
    Mutant("runtime: offline a second later", "actors/runtime.py", "def _silent_at",
           "self._leases.offline_after_s", "self._leases.offline_after_s + 1", RUNTIME),
    Mutant("runtime: heard too late", "actors/cast.py", "def heard",
           "self._presences[runtime_id].heard_at = trio.current_time()", "pass", RUNTIME),
    Mutant("runtime: takes off another node's", "store/runtimes.py", "def go_offline",
           "and ($3::timestamptz is null or last_seen_at = $3)", "and $3::timestamptz is not null",
           RUNTIME),
    Mutant("cast: an end wakes nobody", "actors/cast.py", "def committed",
           "self.wake(row)", "pass", CAST),
    Mutant("task: an end is not told", "actors/task.py", "async def receive",
           "self._newest.raise_to(OVER)", "pass", "tests/http/test_streams.py"),
    Mutant("text: NUL passes", "wire/text.py", "def _cleaned",
           'value.replace("\\x00", "")', "value", "tests/wire/test_text.py"),
    Mutant("text: nesting is free", "wire/text.py", "def _decoded",
           "if _is_deep(raw):", "if False:", "tests/wire/test_text.py"),
    Mutant("keys: a code works twice", "store/tokens.py", "def redeem_login",
           "and revoked_at is null", "", "tests/store/test_tokens.py"),
    Mutant("keys: a task's outlives it", "store/tokens.py", "async def find",
           "and (k.task_id is null or t.status in ('dispatched', 'running'))", "",
           "tests/store/test_tokens.py"),
)  # fmt: skip


def mutated(mutant: Mutant, path: Path) -> None:
    text = path.read_text()
    start = text.index(mutant.anchor)
    before, found, after = text[start:].partition(mutant.old)
    assert found, f"{mutant.name}: the code has changed; find its guard again"
    path.write_text(text[:start] + before + mutant.new + after)


def outcome(mutant: Mutant | None, arguments: list[str]) -> tuple[str, str]:
    """`killed`, `survived` or `broken`, and the test that did it."""
    with TemporaryDirectory(prefix="understudy-mutant-") as directory:
        source = shutil.copytree(ROOT / "src", Path(directory) / "src")
        if mutant is not None:
            mutated(mutant, source / "understudy" / mutant.file)
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
                   "--seed=1", "--tb=no", "--show-capture=no", *arguments]  # fmt: skip
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
    parser.add_argument("--simulate", type=int, default=0, help="by so many worlds alone")
    options = parser.parse_args()
    worlds = ["tests/simulation", f"--seeds={options.simulate}", "--first-seed=1"]
    survivors = 0
    for mutant in MUTANTS:
        if options.only in mutant.name:
            began = time.monotonic()
            verdict, by = outcome(mutant, worlds if options.simulate else mutant.tests.split())
            survivors += verdict != "killed"
            took_s = time.monotonic() - began
            sys.stdout.write(f"{verdict:8} {mutant.name:36} {took_s:5.1f} s  {by}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{survivors} survived\n")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
