from __future__ import annotations

import msgspec

from understudy.core.tree import Branch, Kind, Node, State


def names(node: Node) -> list[str]:
    return [child.name for child in node.children]


def test_a_branch_shows_while_something_grows_there() -> None:
    root = Branch("server")
    child = root.child("http")
    assert names(root.snapshot(0.0)) == []
    with child.grown(Kind.SERVICE):
        assert names(root.snapshot(0.0)) == ["http"]
    assert names(root.snapshot(0.0)) == []
    assert child.state is State.STOPPED


def test_a_group_shows_for_as_long_as_it_has_children() -> None:
    root = Branch("server")
    group = root.child("sweepers")
    with group.child("offline").grown(Kind.ACTOR):
        with group.child("expire").grown(Kind.ACTOR):
            assert names(root.snapshot(0.0).children[0]) == ["offline", "expire"]
        assert names(root.snapshot(0.0).children[0]) == ["offline"]
    assert names(root.snapshot(0.0)) == []


def test_ended_children_leave_a_count_behind_and_nothing_else() -> None:
    root = Branch("server")
    with root.child("tasks").grown(Kind.SERVICE):
        tasks = next(iter(root._children))
        for number in range(10_000):
            with tasks.child(f"task {number}").grown(Kind.ACTOR):
                pass
        assert tasks._children == {}
        assert root.snapshot(0.0).children[0].ended == 10_000


def test_a_branch_is_called_by_its_path() -> None:
    assert str(Branch("server").child("runtimes").child("r7")) == "server/runtimes/r7"


def test_a_snapshot_crosses_the_wire_and_says_how_long_ago_the_crash_was() -> None:
    root = Branch("server")
    child = root.child("http")
    with child.grown(Kind.SERVICE):
        child.starting()
        child.crashed(ValueError("boom"), now=100.0)
        node = msgspec.json.decode(msgspec.json.encode(root.snapshot(130.0)), type=Node)
    crash = node.children[0].last_crash
    assert crash is not None
    assert (crash.error, crash.message, crash.at, crash.ago_s) == ("ValueError", "boom", 100, 30)
    assert node.children[0].state is State.WAITING
