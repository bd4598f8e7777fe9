from __future__ import annotations

import fcntl
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Self

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from understudy.daemon import rundir
from understudy.daemon.lines import Line, LineSplitter, Oversized, Piece, Torn
from understudy.daemon.rundir import Standing
from understudy.daemon.spool import Spool

LINE_MAX = 8
OUTPUT = st.lists(st.sampled_from([b"\n", b"a", b"bc", b"\r", b"0123456789"])).map(b"".join)


def split(chunks: list[bytes], offset: int = 0) -> list[Piece]:
    splitter = LineSplitter(offset, LINE_MAX)
    pieces: list[Piece] = [piece for chunk in chunks for piece in splitter.feed(chunk)]
    torn = splitter.finish()
    return [*pieces, torn] if torn else pieces


@st.composite
def chunked(draw: st.DrawFn) -> list[bytes]:
    output = draw(OUTPUT)
    cuts = draw(st.lists(st.integers(0, len(output))))
    return [output[start:end] for start, end in pairwise(sorted({0, *cuts, len(output)}))]


@given(chunked())
def test_lines_do_not_depend_on_how_they_arrive(chunks: list[bytes]) -> None:
    assert split(chunks) == split([b"".join(chunks)])


@given(OUTPUT)
def test_pieces_are_the_output_end_to_end(output: bytes) -> None:
    pieces = split([output])
    assert [0, *(piece.end for piece in pieces)][:-1] == [piece.start for piece in pieces]
    assert (pieces[-1].end if pieces else 0) == len(output)
    for piece in pieces:
        there = output[piece.start : piece.end]
        match piece:
            case Line(text=text):
                assert text + b"\n" == there
                assert len(text) <= LINE_MAX
            case Oversized():
                assert len(there) > LINE_MAX + 1
                assert there.find(b"\n") == len(there) - 1
            case Torn(text=text):
                assert b"\n" not in there
                assert text == (there if len(there) <= LINE_MAX else b"")


@given(OUTPUT)
def test_any_acknowledged_offset_is_a_place_to_go_on_from(output: bytes) -> None:
    """R8.1: no line lost, none twice."""
    pieces = split([output])
    for seen, piece in enumerate(pieces, start=1):
        assert split([output[piece.end :]], piece.end) == pieces[seen:]


def test_line_of_exactly_the_limit_is_kept_and_one_byte_more_is_not() -> None:
    """R9.2"""
    assert split([b"12345678\n123456789\n1\n"]) == [
        Line(0, 9, b"12345678"),
        Oversized(9, 19),
        Line(19, 21, b"1"),
    ]


def test_splitter_forgets_an_oversized_line_while_it_still_comes() -> None:
    """R9.2: memory has a bound, the stream has none."""
    splitter = LineSplitter(line_max=LINE_MAX)
    for _ in range(1000):
        splitter.feed(b"x" * 1000)
        assert len(splitter._text) <= LINE_MAX


class FakeRun:
    """A run directory whose keeper is a lock and whose agent is this test."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        (run_dir / rundir.STATE).touch()
        self._out = (run_dir / rundir.OUT).open("wb", buffering=0)
        self._lock = (run_dir / rundir.LOCK).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.lose()
        self._out.close()

    def say(self, output: bytes) -> None:
        self._out.write(output)

    def end(self) -> None:
        (self.run_dir / rundir.EXIT).touch()
        self._lock.close()

    def lose(self) -> None:
        self._lock.close()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[FakeRun]:
    with FakeRun(tmp_path) as run:
        yield run


async def collect(run: FakeRun, offset: int = 0) -> list[Piece]:
    with Spool(run.run_dir, offset, line_max=LINE_MAX) as spool:
        return [piece async for pieces in spool for piece in pieces]


async def test_spool_is_read_while_it_grows(run: FakeRun, autojump_clock: MockClock) -> None:
    async def work() -> None:
        for output in (b"one\ntw", b"o\n", b"three"):
            await trio.sleep(60)
            run.say(output)
        run.end()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        assert await collect(run) == [Line(0, 4, b"one"), Line(4, 8, b"two"), Torn(8, 13, b"three")]
    assert trio.current_time() == pytest.approx(180, abs=1)


async def test_silence_is_looked_into_twice_a_second(
    run: FakeRun, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    def count(run_dir: Path) -> Standing:
        nonlocal looks
        looks += 1
        return Standing.KEPT

    monkeypatch.setattr(rundir, "look", count)
    with trio.move_on_after(600):
        await collect(run)
    assert 1200 <= looks <= 1210


async def test_last_line_is_not_missed_however_late(
    run: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R8.1: the run ends in the worst moment, between a read and a look."""
    look = rundir.look

    def end_then_look(run_dir: Path) -> Standing:
        if look(run_dir) is Standing.KEPT:
            run.say(b"last\n")
            run.end()
        return look(run_dir)

    monkeypatch.setattr(rundir, "look", end_then_look)
    assert await collect(run) == [Line(0, 5, b"last")]


@pytest.mark.parametrize("lost", [False, True], ids=["over", "lost"])
async def test_iteration_ends_with_the_run_and_what_is_torn(run: FakeRun, *, lost: bool) -> None:
    run.say(b"whole\n0123456789\nhalf")
    run.lose() if lost else run.end()
    assert await collect(run, offset=6) == [Oversized(6, 17), Torn(17, 21, b"half")]
