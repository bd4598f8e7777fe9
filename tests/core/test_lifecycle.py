from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.core.lifecycle import (
    ACTIVE,
    EVENT_KIND,
    MOVES,
    TERMINAL,
    IllegalMove,
    Move,
    Status,
    guard_sql,
    move,
)
from understudy.store.schema import schema_sql

LATE = (Status.FAILED, Move.COMPLETE_LATE, Status.COMPLETED)


def test_every_move_has_its_rule_and_every_status_its_event() -> None:
    """R2.2"""
    assert set(MOVES) == set(Move)
    assert set(EVENT_KIND) == set(Status)
    assert set(Status) == ACTIVE | TERMINAL


@given(st.lists(st.sampled_from(Move)))
def test_no_history_leaves_the_table_or_a_terminal_status(history: list[Move]) -> None:
    """R2.2; R6.5: but for a result that comes after the server gave its run up."""
    status: Status | None = None
    for by in history:
        try:
            after = move(status, by)
        except IllegalMove:
            assert status is not None or MOVES[by].leaves
            continue
        assert status not in TERMINAL or (status, by, after) == LATE
        assert after is MOVES[by].enters
        status = after


def test_an_illegal_move_names_the_move_and_the_status() -> None:
    with pytest.raises(IllegalMove, match="start in completed"):
        move(Status.COMPLETED, Move.START)


def test_the_database_refuses_by_the_same_table() -> None:
    """R2.2: `schema.sql` holds what `guard_sql` makes."""
    assert guard_sql() in schema_sql()


def test_only_what_has_failed_can_be_completed_late() -> None:
    """R6.5"""
    assert MOVES[Move.COMPLETE_LATE].leaves == {Status.FAILED}
    for by, rule in MOVES.items():
        assert by is Move.COMPLETE_LATE or rule.leaves.isdisjoint(TERMINAL)
