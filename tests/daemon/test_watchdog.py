"""What is progress, how long a run may do without, and what is said of it (R4.10)."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from understudy.core.failures import FailureReason
from understudy.core.limits import SILENCE_S_MIN, Limits
from understudy.daemon.backends.backend import (
    Event,
    Notice,
    Retry,
    Session,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
    Unparsed,
    Usage,
)
from understudy.daemon.rundir import OUT
from understudy.daemon.times import NOTE_EVERY_S, TIMES, Times
from understudy.daemon.watchdog import Stall, Watchdog
from understudy.testing.clock import run_virtual

MINUTE, HOUR = 60.0, 3600.0
LIMITS = Limits()
RETRY = Retry(attempt=3, attempts_max=4, delay_s=20, error="overloaded (529)")
USED = ToolUse("t1", "Bash", {"command": "make"})
RETURNED = ToolResult("t1", "ok", is_error=False)
USAGE = Usage("claude", "m", input_tokens=1)
NO_PROGRESS = (Session("s", is_resumable=True), Notice("alive"), Unparsed("?", 1))


def seen(*events: tuple[Event, float], limits: Limits = LIMITS) -> Watchdog:
    watchdog = Watchdog(limits, 0.0)
    for event, at in events:
        watchdog.see(event, at)
    return watchdog


@pytest.mark.parametrize("event", [Text("a"), Thinking("a"), USED, RETURNED, USAGE], ids=type)
def test_text_tools_and_new_usage_are_progress(event: Event) -> None:
    """R4.10"""
    limits = Limits(silence_s=HOUR, tool_s=HOUR)
    assert seen((event, 100.0), limits=limits).due == 100.0 + HOUR


@pytest.mark.parametrize("event", [*NO_PROGRESS, USAGE], ids=type)
def test_what_only_shows_that_a_cli_is_alive_moves_no_deadline(event: Event) -> None:
    """R4.10; usage that was told before is one of them."""
    assert seen((USAGE, 1.0), (event, 60.0), (event, 1200.0)).due == 1.0 + 30 * MINUTE


def test_a_cli_is_never_given_less_than_six_minutes() -> None:
    """R4.10"""
    assert Limits(silence_s=1.0).silence_s == SILENCE_S_MIN == 6 * MINUTE
    assert seen(limits=Limits(silence_s=1.0)).due == 6 * MINUTE


def test_silence_is_stopped_and_told_with_its_length() -> None:
    """R4.10"""
    told = seen((Text("a"), 60.0)).stall(31 * MINUTE)
    assert told.reason is FailureReason.AGENT_STALLED
    assert told.sentence == "no text, no tool and no new usage for 30 min: it waited for its model"


def test_inside_a_tool_a_run_has_two_hours() -> None:
    """R4.10; the sentence names the tool."""
    watchdog = seen((USED, MINUTE), (ToolUse("t2", "Read", {}), MINUTE))
    assert watchdog.due == MINUTE + 2 * HOUR
    told = watchdog.stall(watchdog.due)
    assert told.sentence == "no progress for 2 h inside Bash, which has not returned"
    watchdog.see(RETURNED, HOUR)
    assert watchdog.due == 3 * HOUR, "the other is still at work"
    watchdog.see(ToolResult("t2", "", is_error=True), HOUR)
    assert watchdog.due == HOUR + 30 * MINUTE


def test_ten_minutes_of_nothing_but_retries_are_too_many() -> None:
    """R4.10"""
    watchdog = seen((Text("a"), 0.0), *((RETRY, minute * MINUTE) for minute in range(1, 12)))
    assert watchdog.due == 11 * MINUTE
    told = watchdog.stall(11 * MINUTE)
    assert told.reason is FailureReason.AGENT_STALLED
    assert told.sentence == ("nothing but retries for 10 min, the last because of overloaded (529)")


def test_a_retry_that_is_under_way_may_take_as_long_as_any_answer() -> None:
    watchdog = seen((RETRY, MINUTE), (RETRY, 10 * MINUTE))
    assert watchdog.due == 10 * MINUTE + RETRY.delay_s + SILENCE_S_MIN


def test_after_progress_retries_count_from_their_beginning() -> None:
    """R4.10"""
    watchdog = seen((RETRY, MINUTE), (Text("a"), 9 * MINUTE), (RETRY, 12 * MINUTE))
    assert watchdog.due == 22 * MINUTE


def test_the_cap_counts_how_often_the_model_was_asked() -> None:
    """R4.10: not how much it said, nor how many tools it used at once."""
    answer: list[tuple[Event, float]]
    answer = [(Text("a"), 1.0), (USED, 1.0), (ToolUse("t2", "Read", {}), 1.0)]
    results: list[tuple[Event, float]]
    results = [(RETURNED, 2.0), (ToolResult("t2", "", is_error=False), 2.0)]
    twice = seen(*answer, *results, *answer, *results, limits=Limits(requests_max=2))
    assert twice.due > 0
    twice.see(Thinking("once more"), 3.0)
    assert twice.due == -math.inf
    told = twice.stall(3.0)
    assert told.reason is FailureReason.ITERATION_LIMIT
    assert told.sentence == "it asked its model 3 times; 2 is the most"


EVENTS = st.sampled_from([Text("a"), USED, RETURNED, USAGE, RETRY, *NO_PROGRESS])


@given(st.lists(st.tuples(EVENTS, st.floats(0, 2 * HOUR)), max_size=30))
def test_no_history_gives_a_run_more_than_its_longest_patience(
    history: list[tuple[Event, float]],
) -> None:
    """R4.10: after the last progress, whatever else it prints."""
    watchdog, now, progress_at, is_billed = Watchdog(Limits(), 0.0), 0.0, 0.0, False
    for event, pause_s in history:
        now += pause_s
        before = watchdog.due
        watchdog.see(event, now)
        if isinstance(event, Session | Notice | Unparsed):
            assert watchdog.due == before
        elif event is not RETRY and not (event is USAGE and is_billed):
            progress_at = now
        is_billed |= event is USAGE
        assert watchdog.due <= progress_at + 2 * HOUR


def test_the_deadline_waits_while_there_is_more_to_read() -> None:
    """A run whose output cannot be sent for an hour was not silent for an hour."""

    async def main() -> tuple[Stall, float]:
        watchdog = Watchdog(Limits(), trio.current_time())
        stalls: list[tuple[Stall, float]] = []

        async def wait() -> None:
            stalls.append((await watchdog.wait_stall(), trio.current_time()))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(HOUR)
            watchdog.see(Text("a"), trio.current_time())
            watchdog.resume()
        return stalls[0]

    stall, at = run_virtual(main, seed=1)
    assert (stall.reason, at) == (FailureReason.AGENT_STALLED, HOUR + 30 * MINUTE)


# When it was said, to a daemon that reads it again


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / OUT).touch()
    return tmp_path


def grow(run_dir: Path, size: int) -> None:
    (run_dir / OUT).write_bytes(b"x" * size)


def test_the_next_daemon_knows_when_it_was_read(run_dir: Path) -> None:
    """R4.10"""
    first = Times(run_dir, 1000.0)
    grow(run_dir, 10)
    first.note(10, 1040.0)
    grow(run_dir, 20)
    first.note(20, 1040.0 + NOTE_EVERY_S - 1)
    first.note(20, 1100.0)
    again = Times(run_dir, 5000.0)
    assert [again.ago_s(offset, 5000.0) for offset in (1, 10, 11, 20)] == [3960, 3960, 3900, 3900]
    assert again.began_ago_s(5000.0) == 4000
    assert again.ago_s(21, 6000.0) == 0


@pytest.mark.parametrize(("wall_age_s", "told_s"), [(300, 300), (50_000_000, 2000), (-900, 0)])
def test_what_nobody_read_is_as_old_as_the_file_and_never_as_the_epoch(
    run_dir: Path, wall_age_s: float, told_s: float
) -> None:
    """R4.10: a wall clock that was set wrongly costs no run its life, and gives none a new one."""
    Times(run_dir, 1000.0)
    grow(run_dir, 10)
    at = time.time() - wall_age_s  # noqa: TID251  That of the file.
    os.utime(run_dir / OUT, (at, at))
    assert Times(run_dir, 3000.0).ago_s(5, 3000.0) == pytest.approx(told_s, abs=5)


def test_a_spoilt_note_is_left_out(run_dir: Path) -> None:
    (run_dir / TIMES).write_bytes(b"0 1000.0\n10 9999999.0\n20 10\xff\n\n")
    times = Times(run_dir, 2000.0)
    assert (times.began_ago_s(2000.0), times.ago_s(10, 2000.0)) == (1000, 0)
