from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.core.failures import FailureReason
from understudy.core.reasons import REASONS
from understudy.core.records import Message
from understudy.core.tree import Branch, Kind, Node
from understudy.http.pages import tree, words
from understudy.http.pages.prose import prose


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (-3, "0s"),
        (59.9, "59s"),
        (60, "1m 00s"),
        (133, "2m 13s"),
        (3840, "1h 04m"),
        (180_000, "2d 2h"),
    ],
)
def test_a_duration_has_at_most_two_units(seconds: float, told: str) -> None:
    assert words.duration(seconds) == told


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (-3, "just now"),
        (59, "just now"),
        (300, "5 min ago"),
        (7200, "2 h ago"),
        (864_000, "10 d ago"),
    ],
)
def test_an_age_has_one_unit(seconds: float, told: str) -> None:
    assert words.age(seconds) == told


@pytest.mark.parametrize("reason", FailureReason)
def test_every_way_to_fail_has_words(reason: FailureReason) -> None:
    """R5.1: the taxonomy is closed, and every screen can say each of it."""
    assert REASONS[reason]


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (Message(seq=0, type="text", content="First.\n\nThen this. \n"), "Then this."),
        (Message(seq=0, type="text", content="\n"), ""),
        (Message(seq=0, type="tool_use", tool="Bash", input={"command": "a \n b"}), "Bash: a b"),
        (Message(seq=0, type="tool_use", tool="Think", input=[1, 2]), "Think"),
        (Message(seq=0, type="tool_use"), "Tool"),
        (Message(seq=0, type="text", content="x" * 1000), "x" * words.LINE_MAX),
    ],
)
def test_the_last_thing_said_fits_on_a_line(message: Message, line: str) -> None:
    assert words.said(message) == line


@pytest.mark.parametrize(
    ("number", "told"), [(0, "0"), (999, "999"), (1000, "1k"), (4249, "4.2k"), (1_300_000, "1.3M")]
)
def test_tokens_are_rounded_to_what_one_can_compare(number: int, told: str) -> None:
    assert words.tokens(number) == told


@pytest.mark.parametrize(
    ("name", "letters"), [("Nia", "N"), ("Ada Lovelace", "AL"), ("build-bot.2", "BB"), ("", "?")]
)
def test_initials_are_at_most_two(name: str, letters: str) -> None:
    assert words.initials(name) == letters


def test_changes_leave_out_what_did_not_change() -> None:
    assert words.changes({"commits": 1, "files": 0, "insertions": 0, "uncommitted": 2}) == (
        "1 commit, 2 files uncommitted"
    )
    assert words.changes({}) == ""


def test_fences_and_marks_become_code() -> None:
    told = prose("Run `make`:\n```sh\na < b\n**not bold**\n```\nIt is **done**.")
    assert told == (
        "Run <code>make</code>:<pre>a &lt; b\n**not bold**</pre>It is <strong>done</strong>."
    )


@given(st.text(alphabet="`*<&\n a", max_size=200))
def test_no_text_becomes_a_tag_of_its_own(text: str) -> None:
    told = str(prose(text))
    for tag in ("pre", "code", "strong"):
        told = told.replace(f"<{tag}>", "").replace(f"</{tag}>", "")
    assert "<" not in told


def forest(size: int) -> Node:
    root = Branch("server")
    with ExitStack() as growing:
        branches = [root.child(f"actor-{number}") for number in range(size)]
        for branch in branches:
            growing.enter_context(branch.grown(Kind.ACTOR))
            branch.running()
        branches[-1].crashed(RuntimeError("it broke"), 1.0)
        return root.snapshot(3.0)


def test_a_thousand_actors_are_a_number_and_the_crashed_one_is_shown() -> None:
    view = tree.laid_out(forest(1000), {})
    assert view.actors == 1000
    assert len(view.rows) == 1 + tree.CHILDREN_MAX
    assert view.rows[0].hidden == 1000 - tree.CHILDREN_MAX
    assert view.rows[1].name == "actor-999"
    assert view.last_crash is not None
    assert view.last_crash.ago_s == 2.0


def test_an_actor_is_called_by_the_name_of_its_row() -> None:
    view = tree.laid_out(forest(1), {"actor-0": "claude studio"})
    assert view.rows[1].name == "claude studio"
