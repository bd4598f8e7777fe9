"""What the torture does with seeds and outcomes, on a world that is none; one test on ours."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import trio
from click.testing import CliRunner, Result

from understudy.cli.main import cli
from understudy.testing.excerpt import excerpt, whole
from understudy.testing.torture import Tally, torture
from understudy.testing.trial import Outcome, Trial, conduct, read_regression
from understudy.testing.worker import Worker

WORLD = "fake_world"
VIOLATED, RAISES, DIES, HANGS, HASHES = 7, 8, 9, 10, 11
Run: TypeAlias = Callable[..., Result]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", here, prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(directory: Path) -> Run:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["torture", "--world", WORLD, *arguments])

    return run


def last_line(result: Result) -> Any:
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture
async def worker(directory: Path) -> Any:
    worker = Worker("dsn", 1, stderr=directory / "stderr", world=WORLD, limit_s=0.5)
    yield worker
    await worker.aclose()


def test_clean_seeds_exit_with_0_and_say_what_was_done(run: Run) -> None:
    result = run("--seeds", "5", "--first", "20", "--jobs", "2", "--json")
    assert result.exit_code == 0
    found = last_line(result)
    assert set(found) == {
        "seeds", "violations", "history", "faults", "kinds", "seconds", "virtual_seconds",
        "seeds_per_hour_per_core", "first", "failed",
    }  # fmt: skip
    assert (found["seeds"], found["violations"], found["first"]) == (5, 0, 20)
    assert (found["faults"], found["kinds"], found["virtual_seconds"]) == (200, 2, 300.0)
    assert found["failed"] == []


def test_a_violation_exits_with_1_is_shortened_and_its_file_replays_it(
    run: Run, directory: Path
) -> None:
    result = run("--seeds", "3", "--first", "6", "--jobs", "1", "--json")
    assert result.exit_code == 1
    found = last_line(result)
    assert found["seeds"] == 2, "seeds after the violation are not begun"
    left = ["machine-1/kill#3", "machine-0/lost_answer#8"]
    assert found["failed"] == [
        {"seed": VIOLATED, "violations": ["7 is done twice"], "shrunk": left}
    ]
    assert "torture --replay torture-7.json" in result.stderr
    assert "!!     0.000 fault machine-1/kill#3" in result.stderr
    replayed = run("--replay", "torture-7.json")
    assert replayed.exit_code == 1
    assert (
        "!!     1.000 fault machine-0/lost_answer#8\nviolated: 7 is done twice" in replayed.stdout
    )


def test_with_all_a_violation_stops_nothing(run: Run) -> None:
    result = run("--seeds", "3", "--first", "107", "--jobs", "1", "--all", "--json")
    assert result.exit_code == 1
    assert last_line(result)["seeds"] == 3


def test_keep_writes_a_regression_into_the_project(run: Run, directory: Path) -> None:
    seeds = directory / "tests" / "simulation" / "seeds"
    seeds.mkdir(parents=True)
    assert run("--seed", "7", "--keep").exit_code == 1
    kept = read_regression(seeds / "7.json")
    assert kept.bug == "7 is done twice"
    assert kept.only == ("machine-1/kill#3", "machine-0/lost_answer#8")


def test_only_the_kinds_that_were_asked_for_strike(run: Run) -> None:
    found = last_line(run("--seed", "7", "--faults", "kill", "--json"))
    assert (found["kinds"], found["faults"], found["violations"]) == (1, 20, 0)


def test_a_kind_that_does_not_exist_is_refused_with_those_that_do(directory: Path) -> None:
    result = CliRunner().invoke(cli, ["torture", "--faults", "node-killed,meteor"])
    assert result.exit_code == 2
    assert "no such faults: meteor." in result.stderr
    assert "node-killed" in result.stderr


def test_histories_that_depend_on_the_hash_seed_are_a_violation(run: Run) -> None:
    result = run("--seed", str(HASHES), "--twice", "--json")
    assert result.exit_code == 1
    assert (
        "two histories of one seed: line 41 is" in last_line(result)["failed"][0]["violations"][0]
    )
    assert run("--seed", "12", "--twice").exit_code == 0


def test_ctrl_c_leaves_no_process_and_no_database_and_tells_how_far_it_came(
    directory: Path,
) -> None:
    command = [sys.executable, "-m", "understudy", "torture", "--world", WORLD, "--json"]
    torture = subprocess.Popen(
        [*command, "--seeds", "100000000", "--first", "100", "--jobs", "1", "--all"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    seen = directory / "seen"
    while not (seen.exists() and seen.read_text()):
        assert torture.poll() is None
    torture.send_signal(signal.SIGINT)
    output, _ = torture.communicate(timeout=60)
    pid, _, dsn = seen.read_text().partition(" ")
    database = dsn.split("host=")[1].split("/postgres")[0]
    assert torture.returncode in {1, 130}
    assert json.loads(output.splitlines()[-1])["first"] == 100
    assert not Path("/proc", pid).exists()
    assert not Path(database).exists()


@pytest.mark.parametrize(
    ("seed", "violation"),
    [
        (RAISES, "the world raised RuntimeError: no such world"),
        (DIES, "the world's process died: exit code -9"),
        (HANGS, "the world hangs: no end within 0.5 s"),
    ],
)
async def test_a_world_that_raises_dies_or_hangs_is_a_finding_and_the_next_seed_goes_on(
    worker: Worker, seed: int, violation: str
) -> None:
    outcome = await worker.conduct(Trial(seed=seed))
    assert outcome.violations == [violation]
    if seed == HANGS:
        assert any("fake_world.py" in line for line in outcome.log), "where it hangs"
    assert (await worker.conduct(Trial(seed=1))).violations == []


@pytest.mark.parametrize(("limit_s", "is_left"), [("600", True), ("0.2", False)])
def test_a_worker_ends_in_mid_trial_when_nobody_waits_for_it_or_it_takes_too_long(
    directory: Path, limit_s: str, *, is_left: bool
) -> None:
    command = [sys.executable, "-m", "understudy.testing.trial_worker", "dsn", WORLD, limit_s]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as worker:
        assert worker.stdin is not None
        worker.stdin.write(b'{"seed": %d}\n' % HANGS)
        worker.stdin.flush()
        if is_left:
            worker.stdin.close()
        try:
            assert worker.wait(30) == (0 if is_left else 1)
        finally:
            worker.kill()


async def test_what_has_begun_when_a_seed_fails_is_finished_and_nothing_else_begun() -> None:
    begun: list[int] = []

    async def conduct(trial: Trial) -> Outcome:
        begun.append(trial.seed)
        await trio.lowlevel.checkpoint()
        return Outcome(seed=trial.seed, violations=["broken"] if trial.seed == 5 else [])

    tally = Tally()
    await torture([conduct, conduct], (Trial(seed=seed) for seed in count()), tally)
    assert [outcome.seed for outcome in tally.failed] == [5]
    assert set(begun) == set(tally.digests)
    assert len(begun) <= 8


def test_the_history_is_one_hash_whoever_finishes_first() -> None:
    outcomes = [Outcome(seed=seed, violations=[], digest=f"{seed:x}") for seed in range(5)]
    tallies = [Tally(), Tally(), Tally()]
    for tally, order in zip(tallies, ([0, 1, 2, 3, 4], [4, 2, 0, 1, 3], [0, 1, 2, 3]), strict=True):
        for index in order:
            tally.add(outcomes[index])
    one, same, shorter = (tally.history for tally in tallies)
    assert one == same != shorter


TASK = "580de5e5-4c8d-f622-3354-ba7d2e187c05"


def test_the_excerpt_has_the_faults_what_befell_the_world_and_the_subject() -> None:
    log = [f"{number} is quiet" for number in range(100)]
    log[10], log[20] = f"10 {TASK} begins", "20 fault a/kill#1"
    log[30], log[21] = "30 fault a/kill#11", "21 machine-1's daemon is down"
    log[40] = f"40 machine-1 began {TASK.replace('5', '6')}"
    outcome = Outcome(seed=1, violations=[f"{TASK} is lost"], faults=["a/kill#1"], log=log)
    assert list(excerpt(outcome)) == [
        "      … 10 lines",
        "   10 580de5e5 begins",
        "      … 9 lines",
        "!! 20 fault a/kill#1",
        "   21 machine-1's daemon is down",
    ]


def test_of_a_violation_that_names_nothing_the_excerpt_has_the_end() -> None:
    log = [f"{number} is quiet" for number in range(100)]
    told = list(excerpt(Outcome(seed=1, violations=["it is bad"], log=log)))
    assert (told[0], told[-1]) == ("      … 75 lines", "   99 is quiet")


def test_events_are_told_in_words_with_the_names_that_others_gave() -> None:
    machine = {"id": "r1", "daemon_id": "machine-2", "problem": None}
    claim = {"move": "claim", "status": "dispatched", "attempt": 1, "task_id": TASK}
    claim |= {"issue_id": "i1", "runtime_id": "r1", "retry_pending": False}
    log = [
        f"0.000 daemon:register None {{'action': 'register', 'runtimes': [{machine}]}}",
        "0.010 issue:created None {'title': 'Issue 0', 'issue_id': 'i1', 'status': 'todo'}",
        f"0.020 task:dispatch {TASK} {claim}",
    ]
    assert list(whole(Outcome(seed=1, violations=[], log=log))) == [
        "   0.000 daemon:register action register, runtimes machine-2",
        "   0.010 issue:created title Issue 0, issue Issue 0, status todo",
        "   0.020 task:dispatch 580de5e5 move claim, attempt 1, issue Issue 0, runtime machine-2",
    ]


def test_only_those_faults_strike_that_a_trial_names(dsn: str) -> None:
    """On our own world, which asks of each fault whether it is muted."""
    every = conduct(dsn, Trial(seed=3))
    names = tuple(every.faults[-3:])
    some = conduct(dsn, Trial(seed=3, only=names))
    assert set(some.faults) <= set(names)
    assert conduct(dsn, Trial(seed=3, only=tuple(every.faults))).digest == every.digest
