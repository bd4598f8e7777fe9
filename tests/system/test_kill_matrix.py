"""SIGKILL of each process at each moment of a run: what becomes of it, what is lost, what doubled.

    pytest -s -m slow tests/system/test_kill_matrix.py      the whole matrix, some minutes

The processes are those of `understudy up`. The agent stops at the gate that `hold` names until the
file is gone, so each kill finds the run where the table says.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import httpx2
import psycopg
import pytest
import trio

from understudy.cli.evidence import Count
from understudy.cli.witness import AGENT, ENDED, Run, Witness, git, make_repository
from understudy.daemon import processes
from understudy.daemon.processes import Process
from understudy.daemon.rundir import STATE, Standing
from understudy.daemon.status import read_status
from understudy.store.embedded import EmbeddedServer
from understudy.store.watchdog import read_postmaster
from understudy.testing.processes import Machine, free_port, open_machine, wait_until

ENDS_S: Final = 150.0
"""A claim of a daemon that died while it prepared runs out after 60 s (R3.4)."""


class Victim(StrEnum):
    KEEPER = "keeper"
    AGENT = "agent"
    SERVER = "server"
    DAEMON = "daemon"
    POSTGRES = "PostgreSQL"


class Phase(StrEnum):
    PREPARING = "preparing"
    BEFORE_SESSION = "before session"
    IN_TEXT = "in text"
    IN_TOOL = "in a tool"
    AT_RESULT = "at the result"
    REPORTING = "while reporting"
    REPLAY = "in the outbox replay"


GIT: Final = """#!/bin/sh
case " $* " in *clone*|*fetch*|*worktree*)
  while [ "$(cat {here}/hold 2>/dev/null)" = preparing ]; do touch {here}/held; sleep 0.05; done;;
esac
exec {git} "$@"
"""
PROGRAM: Final = """
import json, os, pathlib, subprocess, sys, time

HERE, KEY = pathlib.Path(sys.argv[1]), os.environ["UNDERSTUDY_ISSUE"]
GIT = ["git", "-c", "user.name=Nia", "-c", "user.email=nia@example.org"]

def gate(phase):
    while held_at() == phase:
        (HERE / "held").touch()
        time.sleep(0.02)

def held_at():
    try:
        return (HERE / "hold").read_text()
    except FileNotFoundError:
        return None

def say(kind, **fields):
    print(json.dumps({"type": kind, **fields}), flush=True)

def tool():
    gate("in a tool")
    [checkout] = [path.parent for path in pathlib.Path.cwd().glob("**/.git")]
    log = subprocess.run([*GIT, "log", "--format=%s"], cwd=checkout, capture_output=True, text=True)
    if KEY not in log.stdout.splitlines():
        subprocess.run([*GIT, "commit", "--quiet", "--allow-empty", "-m", KEY], cwd=checkout)

if sys.argv[2:] == ["tool"]:
    sys.exit(tool())
with (HERE / "starts").open("a") as starts:
    starts.write(KEY + "\\n")
gate("before session")
say("session", id=KEY, resumable=True)
line = json.dumps({"type": "text", "text": "one"})
print(line[:9], end="", flush=True)
gate("in text")
print(line[9:], flush=True)
say("tool_use", id="1", name="commit", input={})
subprocess.run([sys.executable, *sys.argv, "tool"], start_new_session=True)
say("tool_result", id="1", output="two", is_error=False)
say("text", text="three")
say("usage", model="none", input_tokens=6, output_tokens=1)
say("result", output="done")
gate("at the result")
"""
MESSAGES: Final = ("text", "tool_use", "tool_result", "text")
TOKENS: Final = 7


@dataclass(frozen=True)
class Cell:
    """`counts` is empty where there was nobody to kill."""

    victim: Victim
    phase: Phase
    outcome: str = "not there"
    agents: int = 1
    counts: tuple[Count, ...] = ()

    @property
    def restarts(self) -> int:
        return self.agents - 1

    @property
    def lost(self) -> list[Count]:
        return [each for each in self.counts if each.found < each.expected]

    @property
    def doubled(self) -> list[Count]:
        return [each for each in self.counts if each.found > each.expected]


@dataclass(frozen=True)
class Scene:
    machine: Machine
    http: httpx2.AsyncClient
    witness: Witness

    @property
    def here(self) -> Path:
        return self.machine.directory

    async def play(self, victim: Victim, phase: Phase) -> Cell:
        await wait_until(self._is_well)
        with self._held_at(phase):
            run = await self.witness.assign(f"{victim} {phase}")
            await wait_until((self.here / "held").exists)
            if phase in {Phase.REPORTING, Phase.REPLAY}:
                with self._locked() as asleep:
                    was_there = await self._kill_at_the_report(victim, phase, asleep)
            else:
                was_there = await self._kill(victim)
        ended = await self._wait_ended(run)
        return await self._cell(run, victim, phase, ended) if was_there else Cell(victim, phase)

    async def _kill_at_the_report(
        self, victim: Victim, phase: Phase, asleep: psycopg.Connection[Any]
    ) -> bool:
        """The server is in the transaction that completes the task, and gets no further."""
        (self.here / "hold").unlink()
        await wait_until(lambda: _reports(asleep))
        if phase is Phase.REPLAY:
            await self._kill(Victim.DAEMON)
            await wait_until(self._is_well)  # The report is behind the first, in the task's actor.
        return await self._kill(victim)

    async def _kill(self, victim: Victim) -> bool:
        """False where there is no such process. Returns when it is gone."""
        process = self._find(victim)
        if process is None:
            return False
        processes.send([process], signal.SIGKILL)
        await wait_until(lambda: processes.identify(process.pid) != process)
        return True

    def _find(self, victim: Victim) -> Process | None:
        match victim:
            case Victim.DAEMON:
                return self.machine.running("daemon", "run")
            case Victim.SERVER:
                return self.machine.running("serve")
            case Victim.POSTGRES:
                postmaster = read_postmaster(self.machine.home / "postgres")
                return processes.identify(postmaster.pid) if postmaster else None
            case Victim.KEEPER | Victim.AGENT:
                return self._find_kept(victim)

    def _find_kept(self, victim: Victim) -> Process | None:
        for kept in self.machine.runs():
            if kept.look() is Standing.KEPT and (kept.run_dir / STATE).exists():
                state = kept.state()
                pid = state.keeper_pid if victim is Victim.KEEPER else state.agent_pid
                return processes.identify(pid) if pid else None
        return None

    def _is_well(self) -> bool:
        daemon = self.machine.running("daemon", "run")
        found = read_status(self.machine.home / "daemon")
        return bool(daemon and found and found.pid == daemon.pid and found.is_linked)

    @contextmanager
    def _held_at(self, phase: Phase) -> Iterator[None]:
        """Whoever reports has first printed its result."""
        at = Phase.AT_RESULT if phase in {Phase.REPORTING, Phase.REPLAY} else phase
        (self.here / "held").unlink(missing_ok=True)
        (self.here / "hold").write_text(at)
        try:
            yield
        finally:
            (self.here / "hold").unlink(missing_ok=True)

    def _locked(self) -> AbstractContextManager[psycopg.Connection[Any]]:
        return locked(EmbeddedServer(self.machine.home / "postgres").dsn("understudy"))

    async def _wait_ended(self, run: Run) -> list[Any]:
        """All tasks of the issue. A failure that nobody tries again is tried again by a person."""
        is_rerun = False
        with trio.fail_after(ENDS_S):
            while True:
                shown = await self._get(f"/api/issues/{run.key}")
                tasks: list[Any] = sorted(shown["tasks"] if shown else [], key=_born)
                statuses = {task["status"] for task in tasks}
                if "completed" in statuses and statuses <= ENDED:
                    return tasks
                if tasks and statuses <= ENDED and not is_rerun:
                    asked = await self.http.post(f"/api/issues/{run.key}/rerun", json={})
                    is_rerun = asked.is_success
                await trio.sleep(0.1)

    async def _cell(self, run: Run, victim: Victim, phase: Phase, tasks: list[Any]) -> Cell:
        said = [_verdict(number, task) for number, task in enumerate(tasks)]
        starts = (self.here / "starts").read_text().split().count(run.key)
        counts = [each async for each in self._counts(run, tasks)]
        started = sum(task["started_at"] is not None for task in tasks)
        counts.append(Count("agents, one for each attempt that started", started, starts))
        return Cell(victim, phase, ", then ".join(said), starts, tuple(counts))

    async def _counts(self, run: Run, tasks: list[Any]) -> AsyncIterator[Count]:
        done = [task["id"] for task in tasks if task["status"] == "completed"]
        yield Count("completed tasks", 1, len(done))
        messages = await self._get(f"/api/tasks/{done[0]}/messages") or []
        yield Count("messages", len(MESSAGES), len(messages))
        yield Count("kinds in order", 1, int(tuple(each["type"] for each in messages) == MESSAGES))
        usage = ((await self._get(f"/api/tasks/{done[0]}")) or {"usage": []})["usage"]
        spent = sum(each["input_tokens"] + each["output_tokens"] for each in usage)
        yield Count("tokens", TOKENS, spent)
        comments = ((await self._get(f"/api/issues/{run.key}")) or {"comments": []})["comments"]
        yield Count("answers", 1, [each["body"] for each in comments].count("done"))
        branch = f"--branches=understudy/{AGENT.lower()}/{run.key.lower()}*"
        commits = await git(self.here / "project", "log", "--format=%s", branch)
        yield Count("commits", 1, commits.splitlines().count(run.key))

    async def _get(self, path: str) -> Any:
        """None while the server, or its database, is away."""
        with suppress(httpx2.TransportError):
            answer = await self.http.get(path)
            return answer.json() if answer.is_success else None


def _born(task: Any) -> tuple[str, int]:
    return task["created_at"], task["attempt"]


def _verdict(number: int, task: Any) -> str:
    by_hand = " (run again by a person)" if number and task["attempt"] == 1 else ""
    return str(task["failure_reason"] or task["status"]) + by_hand


@contextmanager
def locked(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """Nobody completes a task meanwhile; yields another connection, which may look on."""
    with psycopg.connect(dsn, autocommit=True) as onlooker:
        connection = psycopg.connect(dsn)
        connection.execute("select 1 from understudy.issues for no key update")
        try:
            yield onlooker
        finally:
            connection.close()


def _reports(onlooker: psycopg.Connection[Any]) -> list[int]:
    """Transactions that complete a task and wait for the lock."""
    rows = onlooker.execute(
        "select pid from pg_stat_activity"
        " where wait_event_type = 'Lock' and query like '%complete_task%'"
    )
    return [pid for (pid,) in rows.fetchall()]


@asynccontextmanager
async def open_scene() -> AsyncIterator[Scene]:
    async with open_machine(UNDERSTUDY_PORT=str(free_port())) as machine:
        repository, program = machine.directory / "project", machine.directory / "agent.py"
        await make_repository(repository)
        _put_before_git(machine)
        program.write_text(PROGRAM)
        await machine.start("up")
        await wait_until(lambda: "Ctrl-C stops" in machine.said("up"))
        key = re.search(r'"key":"([^"]+)"', (machine.home / "credentials.json").read_text())
        assert key
        async with httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{machine.environment['UNDERSTUDY_PORT']}",
            headers={"Authorization": f"Bearer {key[1]}"},
            trust_env=False,
            timeout=60,
        ) as http:
            arguments = [sys.executable, str(program), str(machine.directory)]
            agent = {"name": AGENT, "provider": "command", "custom_args": arguments}
            (await http.post("/api/agents", json=agent)).raise_for_status()
            yield Scene(machine, http, Witness(http, repository))


def _put_before_git(machine: Machine) -> None:
    program = machine.directory / "bin" / "git"
    program.parent.mkdir()
    program.write_text(GIT.format(here=machine.directory, git=shutil.which("git")))
    program.chmod(0o755)
    machine.environment["PATH"] = f"{program.parent}:{os.environ['PATH']}"


async def play(cells: Iterable[tuple[Victim, Phase]]) -> list[Cell]:
    async with open_scene() as scene:
        return [await scene.play(victim, phase) for victim, phase in cells]


def check(cells: list[Cell]) -> None:
    print("", *map(_line, cells), sep="\n")  # noqa: T201  The table is what this test is for.
    assert [(cell, cell.lost, cell.doubled) for cell in cells if cell.lost or cell.doubled] == []
    spared = [cell for cell in cells if cell.victim not in {Victim.KEEPER, Victim.AGENT}]
    assert [cell for cell in spared if cell.restarts] == []


def _line(cell: Cell) -> str:
    moment = f"{cell.phase}: {cell.victim}"
    if not cell.counts:
        return f"{moment:34} {cell.outcome}"
    figures = f"restarts {cell.restarts}  lost {len(cell.lost)}  doubled {len(cell.doubled)}"
    return f"{moment:34} {figures}  {cell.outcome}"


async def test_no_kill_loses_a_run_or_does_it_twice() -> None:
    """R6.4, R8.1, R2.6: one of each column, and the rows that are hardest."""
    check(
        await play(
            [
                (Victim.KEEPER, Phase.IN_TOOL),
                (Victim.AGENT, Phase.IN_TEXT),
                (Victim.SERVER, Phase.REPORTING),
                (Victim.DAEMON, Phase.REPLAY),
                (Victim.POSTGRES, Phase.BEFORE_SESSION),
            ]
        )
    )


@pytest.mark.slow
async def test_no_kill_at_any_moment_loses_a_run_or_does_it_twice() -> None:
    """R6.4, R8.1, R2.6"""
    check([cell for evening in evenings() for cell in await play(evening)])


def evenings() -> Iterator[list[tuple[Victim, Phase]]]:
    """Each with an `up` of its own, which gives up on what dies more than three times a minute."""
    for phase in Phase:
        row = [(victim, phase) for victim in Victim]
        yield from ([cell] for cell in row) if phase is Phase.REPLAY else [row]
