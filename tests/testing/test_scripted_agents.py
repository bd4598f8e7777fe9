"""What scripted agents claim of themselves is what the daemon's reader makes of their output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from uuid import UUID

import pytest
import trio

from understudy.core.lifecycle import Move, Status
from understudy.core.records import Priority
from understudy.daemon import reports, rundir
from understudy.daemon.backends.backend import (
    Completed,
    Event,
    Failed,
    ResumeRefused,
    RunSpec,
    Verdict,
)
from understudy.daemon.backends.command import CommandReader
from understudy.daemon.backends.frames import RESULT_LINE
from understudy.daemon.backends.scripted import Scripted
from understudy.daemon.kept import Kept
from understudy.daemon.lines import Line, LineSplitter
from understudy.daemon.record import RunOrder, read_order, write_order
from understudy.daemon.rundir import Spec, write_record
from understudy.daemon.transcript import message_of
from understudy.testing.auditor import Auditor
from understudy.testing.chance import Chance
from understudy.testing.clock import run_virtual
from understudy.testing.evidence import Run
from understudy.testing.scripted_agents import (
    ENDS,
    MISSING,
    QUIRKS,
    SESSION_REFUSED,
    draw,
    fate_of,
)
from understudy.testing.simulated_keepers import Keepers
from understudy.testing.simulated_process import PRIOR_SESSION, Script
from understudy.testing.virtual_process import suspendable
from understudy.wire.daemon import AgentBrief, ClaimedTask

AGENTS: Final = 150
HOUR_S: Final = 3600.0
KINDS: Final = {*ENDS, MISSING, *QUIRKS, SESSION_REFUSED}


def claimed(number: int) -> ClaimedTask:
    at, some = datetime(2026, 1, 1, tzinfo=UTC), UUID(int=7)
    return ClaimedTask(
        id=UUID(int=number),
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


@dataclass
class Played:
    """All that a machine's agents have done, to their end or for an hour."""

    root: Path
    auditor: Auditor = field(default_factory=Auditor)
    scripts: dict[UUID, Script] = field(default_factory=dict)

    async def play(self, chance: Chance) -> None:
        fate = fate_of(chance, "machine-0")

        def remembered(task: ClaimedTask, spec: Spec, earlier: int) -> Script:
            self.scripts[task.id] = fate(task, spec, earlier)
            return self.scripts[task.id]

        with suspendable():
            async with trio.open_nursery() as nursery:
                keepers = Keepers(
                    "machine-0",
                    nursery,
                    self.auditor,
                    remembered,
                    boot_s=trio.current_time,
                    epoch_s=trio.current_time,
                )
                for number in range(AGENTS):
                    assert await keepers.start(self._prepare(number), []) == rundir.KEPT
                await trio.sleep(2 * HOUR_S)
                assert keepers.living() == []
                keepers.kill_all()

    def _prepare(self, number: int) -> Path:
        """Every second one is to continue a session."""
        task, run_dir = claimed(number), self.root / f"{number}"
        resume = f"session-{number}" if number % 2 else None
        order = RunOrder(task=task, spec=RunSpec("", "/", str(run_dir), {}, resume=resume))
        write_order(run_dir, order)
        env = {} if resume is None else {PRIOR_SESSION: resume}
        spec = Spec(str(task.id), [], "/", env, "go", close_stdin=True, done=RESULT_LINE)
        spec = spec._replace(max_s=HOUR_S, orphan_s=2 * HOUR_S, spool_max=2 << 20)
        write_record(run_dir / rundir.SPEC, spec)
        return run_dir

    def runs(self) -> Iterator[tuple[Run, Kept, str]]:
        for run in self.auditor.runs.values():
            kind = self.scripts[run.task.id].kind
            yield run, Kept(self.root / f"{run.task.id.int}"), kind


@contextmanager
def memory() -> Iterator[Path]:
    """A directory where an fsync costs nothing, if there is one."""
    shared = Path("/dev/shm")  # noqa: S108
    with TemporaryDirectory(dir=shared if shared.is_dir() else None) as path:
        yield Path(path)


@pytest.fixture(scope="module", params=[1, 2])
def played(request: pytest.FixtureRequest) -> Iterator[Played]:
    with memory() as root:
        played = Played(root)
        run_virtual(partial(played.play, Chance(request.param)), seed=request.param)
        yield played


def read(kept: Kept) -> tuple[list[Event], CommandReader]:
    order = read_order(kept.run_dir)
    assert order is not None
    splitter, reader = LineSplitter(), Scripted().reader(order.spec)
    pieces = [*splitter.feed((kept.run_dir / rundir.OUT).read_bytes())]
    lines = [piece.text for piece in pieces if isinstance(piece, Line)]
    torn = splitter.finish()
    lines += [torn.text] if torn else []
    return [event for line in lines for event in reader.feed(line)], reader


def judge(kept: Kept, reader: CommandReader) -> Verdict:
    return reader.finish(reports.exit_of(kept), reports.stderr_tail(kept.run_dir))


def test_each_message_that_a_reader_makes_was_counted(played: Played) -> None:
    """R6.9"""
    for run, kept, kind in played.runs():
        events, _ = read(kept)
        messages = [message for event in events if (message := message_of(event, 0))]
        assert len(messages) == run.messages, kind


def test_each_token_that_a_reader_bills_was_counted(played: Played) -> None:
    """R6.7"""
    for run, kept, kind in played.runs():
        _, reader = read(kept)
        assert sum(usage.output_tokens for usage in reader.usage()) == run.tokens, kind


def test_the_verdict_is_what_the_agent_claims(played: Played) -> None:
    """Of one that came to its own end; what was stopped has none of its own."""
    for run, kept, kind in played.runs():
        _, reader = read(kept)
        match judge(kept, reader):
            case Completed(output):
                assert (run.has_finished, run.reason, run.output) == (True, None, output), kind
            case Failed(reason=reason, retry_after_s=retry_after_s) if run.has_finished:
                assert (run.reason, run.retry_after_s) == (reason, retry_after_s), kind
            case ResumeRefused(session_id=offered):
                told = (run.offered, run.has_refused, run.has_finished)
                assert told == (offered, True, False), kind
            case _:
                assert kept.exit().why in {"max_time", "spool_full"}, kind
                assert not run.has_refused, kind


def test_what_is_missing_is_said_and_was_never_at_work(played: Played) -> None:
    missing = {task for task, script in played.scripts.items() if script.cannot_start}
    assert missing == played.scripts.keys() - played.auditor.runs.keys()
    for task in missing:
        record = Kept(played.root / f"{task.int}").exit()
        assert (record.why, record.code) == ("spawn_failed", None)
        assert "No such file" in (record.error or "")


def test_every_kind_of_agent_comes_up_and_most_are_honest() -> None:
    chance = Chance(1)
    places = [f"machine-0/agent {number}" for number in range(1500)]
    kinds = [draw(chance, place, is_to_resume=True).kind for place in places]
    seen = {name for kind in kinds for name in kind.split(", ")}
    assert seen == {kind.name for kind in KINDS} | {"honest"}
    assert sum(any(end.name in kind for end in ENDS) for kind in kinds) < len(kinds) / 2


def test_to_mute_one_fault_changes_no_other() -> None:
    def struck(muted: frozenset[str]) -> list[str]:
        chance = Chance(1, muted)
        for number in range(20):
            draw(chance, f"machine-0/agent {number}")
        return chance.struck

    every = struck(frozenset())
    for name in every:
        assert struck(frozenset({name})) == [each for each in every if each != name]


def test_the_same_seed_writes_the_same_bytes() -> None:
    assert written(3) == written(3)


def written(seed: int) -> dict[Path, bytes]:
    with memory() as root:
        run_virtual(partial(Played(root).play, Chance(seed)), seed=seed)
        return {
            path.relative_to(root): path.read_bytes().replace(bytes(root), b"")
            for path in root.rglob("*")
            if path.is_file()
        }
