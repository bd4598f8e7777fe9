"""Capacity mode: what a fleet waits for and what it costs the database, in virtual time."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import UUID

import msgspec
import pytest
from click.testing import CliRunner

from understudy.cli.torture import torture
from understudy.core.records import Agent
from understudy.store.embedded import EmbeddedServer
from understudy.testing import fleet_fortune
from understudy.testing.fleet import Fleet, measure
from understudy.testing.fleet_answer import Answer, Row, broken_laws, times
from understudy.testing.fleet_fortune import DAY_S, HOUR_S, Hours
from understudy.testing.fleet_ledger import Ledger, name_of
from understudy.testing.postgres import throwaway_database

TWO_HOURS = Fleet(machines=5, days=2 / 24, tasks_per_day=300, begins_h=9)
QUARTER = Fleet(machines=3, days=1 / 96, tasks_per_day=2000, begins_h=9.5)
OF_THE_WALL = {"wall_s": 0.0, "times_real": 0.0, "tasks_per_wall_s": 0.0}


def told(answer: Answer) -> bytes:
    return msgspec.json.encode(msgspec.structs.replace(answer, **OF_THE_WALL))


def test_a_small_fleet_works_and_breaks_no_law(dsn: str) -> None:
    answer = measure(dsn, TWO_HOURS)
    assert not answer.violations
    assert answer.ends["completed"] > 20
    assert answer.statements.per_task > 5
    assert sum(answer.faults.values()) > 0
    assert 0 < answer.machines_busy < 1
    assert answer.queueing_s["started"].p50 > answer.queueing_s["dispatched"].p50


def test_a_seed_of_a_fleet_has_one_answer(server: EmbeddedServer, dsn: str) -> None:
    with throwaway_database(server) as other:
        one, two = measure(dsn, QUARTER), measure(other, QUARTER)
    assert told(one) == told(two)
    assert told(one) != told(measure(dsn, replace(QUARTER, seed=2)))


def test_runs_of_a_machine_that_is_switched_off_are_taken_over_by_another(dsn: str) -> None:
    """R4.2: the time to recover is that of the silence and of the grace."""
    answer = measure(dsn, Fleet(machines=6, days=1.25 / 24, tasks_per_day=900, begins_h=17))
    assert not answer.violations
    evening = answer.recovery_s["machine-off"]
    assert evening.count > 0
    assert evening.p50 > 60


def row(**fields: Any) -> Row:
    known: dict[str, Any] = {
        "id": UUID(int=len(fields)), "agent_id": AGENT.id, "issue_id": None, "daemon_id": "one",
        "status": "completed", "failure_reason": None, "attempt": 1, "parent_task_id": None,
        "retry_task_id": None, "claimable_at": 0.0, "dispatched_at": 0.0, "started_at": 1.0,
        "completed_at": 9.0,
    }  # fmt: skip
    return Row(**known | fields)


AGENT = Agent(
    id=UUID(int=1),
    workspace_id=UUID(int=2),
    name="Nia",
    provider="scripted",
    max_concurrent_tasks=1,
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)
FIRST, SECOND, THIRD = (UUID(int=number) for number in (11, 12, 13))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(id=FIRST), row(id=SECOND, issue_id=THIRD, dispatched_at=8.0)], "has 2 runs"),
        ([row(id=FIRST), row(id=SECOND, dispatched_at=8.0)], "two runs on issue"),
        (
            [
                row(id=FIRST, dispatched_at=None),
                row(id=SECOND, dispatched_at=None, parent_task_id=FIRST, attempt=2),
                row(id=THIRD, dispatched_at=None, parent_task_id=FIRST, attempt=2),
            ],
            "two successors",
        ),
        (
            [
                row(id=FIRST, dispatched_at=None),
                row(id=SECOND, dispatched_at=None, parent_task_id=FIRST, attempt=3),
            ],
            "attempt 3 after 1",
        ),
    ],
)
def test_a_history_that_breaks_a_law_is_told(rows: list[Row], said: str) -> None:
    assert any(said in each for each in broken_laws(rows, [AGENT], Ledger(0.0)))


def test_who_ends_makes_room_for_who_begins_in_the_same_instant() -> None:
    rows = [row(id=FIRST), row(id=SECOND, dispatched_at=9.0, completed_at=12.0)]
    assert broken_laws(rows, [AGENT], Ledger(0.0)) == []


def test_a_result_that_was_taken_stays() -> None:
    ledger = Ledger(0.0)
    ledger.acknowledged[FIRST] = "completed"
    assert broken_laws([row(id=FIRST, status="failed")], [AGENT], ledger)


def test_times_are_percentiles() -> None:
    found = times(float(number) for number in range(100))
    assert (found.count, found.p50, found.p90, found.p99, found.max) == (100, 50, 90, 99, 99)


def test_one_run_of_a_hundred_takes_two_hours() -> None:
    dice = Random(3)
    found = times(fleet_fortune.work_s(dice) for _ in range(20_000))
    assert math.isclose(found.p50, 600, rel_tol=0.1)
    assert math.isclose(found.p99, 7200, rel_tol=0.2)


def test_people_ask_as_often_as_they_should_and_seldom_at_night_or_on_sundays() -> None:
    dice, now, found = Random(3), 0.0, list[float]()
    while (now := fleet_fortune.next_arrival(now, 300, dice)) < 7 * DAY_S:
        found.append(now)
    thursday = [at for at in found if at < DAY_S]
    assert 250 < len(thursday) < 350
    assert sum(at < 6 * HOUR_S for at in thursday) < len(thursday) / 20
    sunday = [at for at in found if 3 * DAY_S <= at < 4 * DAY_S]
    assert len(sunday) < len(thursday) / 5


def test_a_laptop_is_on_in_its_office_s_hours_and_off_from_friday_to_monday() -> None:
    hours = Hours(9 * HOUR_S, 17 * HOUR_S, is_always_on=False)
    assert hours.next_change(0) == (False, 9 * HOUR_S)
    assert hours.next_change(9 * HOUR_S) == (True, 17 * HOUR_S)
    assert hours.next_change(DAY_S + 17 * HOUR_S) == (False, 4 * DAY_S + 9 * HOUR_S)


@pytest.mark.parametrize(
    ("sql", "name"),
    [
        ("select understudy.brief_claims(array(select understudy.claim_tasks($1)))", "claim_tasks"),
        ("with c as (select understudy.claim_tasks($1)) select understudy.brief(c)", "claim_tasks"),
        ("update understudy.runtimes set last_seen_at = understudy.now()", "update runtimes"),
        ("commit", "commit"),
    ],
)  # fmt: skip
def test_a_statement_is_counted_under_its_function_or_its_table(sql: str, name: str) -> None:
    assert name_of(sql) == name


def test_the_last_line_of_a_fleet_s_torture_is_its_answer() -> None:
    command = ["--fleet", "2", "--days", "0.01", "--seed", "5", "--nodes", "1", "--json"]
    done = CliRunner().invoke(torture, command)
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout.splitlines()[-1])
    assert (answer["machines"], answer["nodes"], answer["seed"]) == (2, 1, 5)
    assert answer["violations"] == []
    assert answer["coarse"]


def test_an_option_of_fleets_alone_is_refused() -> None:
    done = CliRunner().invoke(torture, ["--days", "7"])
    assert done.exit_code == 2
    assert "--fleet" in done.output
