"""How many runs at once."""

from __future__ import annotations

from uuid import UUID, uuid4

from hypothesis import given
from hypothesis import strategies as st

from understudy.daemon.slots import Slots

TASKS = [uuid4() for _ in range(6)]


@given(st.lists(st.tuples(st.sampled_from(["take", "release"]), st.sampled_from(TASKS))))
def test_a_run_holds_one_slot_however_often_it_is_taken_or_released(
    moves: list[tuple[str, UUID]],
) -> None:
    """R9.6: no slot leaks, none is freed twice; more runs than slots are kept."""
    slots, held, freed = Slots(4), set[UUID](), list[UUID]()
    slots.freed = freed.append
    for move, task in moves:
        expected = [task] if move == "release" and task in held else []
        freed.clear()
        if move == "take":
            slots.take(task)
            held.add(task)
        else:
            slots.release(task)
            held.discard(task)
        assert freed == expected
        assert slots.free == max(0, 4 - len(held))
        assert {each for each in TASKS if slots.holds(each)} == held
