from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from understudy.core.gaps import Finality


def test_nothing_behind_a_gap_is_final_while_its_transaction_may_be_open() -> None:
    """R11.4"""
    order = Finality(0)
    assert order.settle([1, 2, 4], oldest_open=90, next_new=100) == 2
    assert order.settle([4, 5], oldest_open=99, next_new=120) == 2
    assert order.settle([3, 4, 5], oldest_open=99, next_new=120) == 5


def test_a_gap_whose_transactions_have_all_ended_was_a_rollback() -> None:
    order = Finality(0)
    order.settle([2], oldest_open=90, next_new=100)
    assert order.settle([2, 3], oldest_open=100, next_new=130) == 3


def test_a_gap_met_later_is_not_excused_by_an_earlier_one() -> None:
    order = Finality(0)
    order.settle([2], oldest_open=90, next_new=100)
    assert order.settle([2, 4], oldest_open=100, next_new=130) == 2


@given(st.data())
def test_every_committed_event_is_delivered_once_and_in_order(data: st.DataObject) -> None:
    """A model of transactions that draw an id after they began, and end in any order."""
    order, delivered = Finality(0), list[int]()
    open_ids: dict[int, int] = {}
    visible: set[int] = set()
    next_transaction = next_id = 1
    steps = st.lists(st.sampled_from(["begin", "commit", "roll", "read"]), max_size=60)
    for step in data.draw(steps):
        if step == "begin":
            open_ids[next_transaction] = next_id
            next_transaction, next_id = next_transaction + 1, next_id + 1
        elif step == "read" or not open_ids:
            before = order.cursor
            ids = sorted(each for each in visible if each > before)
            order.settle(
                ids,
                oldest_open=min(open_ids, default=next_transaction),
                next_new=next_transaction,
            )
            delivered += [each for each in ids if each <= order.cursor]
        else:
            ending = data.draw(st.sampled_from(sorted(open_ids)))
            drawn = open_ids.pop(ending)
            if step == "commit":
                assert drawn > order.cursor, "an event appeared behind the cursor"
                visible.add(drawn)
    assert delivered == sorted(set(delivered))
    assert set(delivered) == {each for each in visible if each <= order.cursor}
