"""Numbered messages, sent in batches, each until the server has it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.core.records import Message
from understudy.daemon.backends.backend import Event, Session, Text, ToolUse
from understudy.daemon.transcript import (
    BATCH_BYTES_MAX,
    BATCH_MAX,
    BATCH_S,
    MESSAGE_BYTES_MAX,
    UNSENT_BYTES_MAX,
    Transcript,
)
from understudy.testing.clock import VirtualClock, run_virtual

LETTERS = st.integers(0, 160_000).map(lambda size: Text("x" * size))
EVENTS = st.lists(st.one_of(LETTERS, st.just(Session("s", is_resumable=True))), max_size=40)


@pytest.fixture
def virtual_clock() -> VirtualClock:
    return VirtualClock()


def chunks(events: list[Event], sizes: Iterator[int]) -> Iterator[list[Event]]:
    while events:
        size = next(sizes)
        yield events[:size]
        events = events[size:]


def size_of(message: Message) -> int:
    return len(msgspec.json.encode(message))


@settings(max_examples=60, deadline=None)
@given(EVENTS, st.data(), st.integers(-1, 20), st.integers(0, 2**32))
def test_each_message_is_sent_once_and_in_order(
    events: list[Event], data: st.DataObject, heard: int, seed: int
) -> None:
    """R6.9: however reading and sending interleave; what the server has is left out."""
    batches: list[list[Message]] = []
    pauses = st.sampled_from([0.0, 0.1, 3.0])
    sizes = iter(lambda: data.draw(st.integers(1, 10)), None)

    async def send(batch: list[Message]) -> None:
        await trio.sleep(data.draw(pauses))
        batches.append(batch)

    async def main() -> None:
        transcript = Transcript(send, heard)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transcript.send_all)
            for chunk in chunks(events, sizes):
                await transcript.add(chunk)
                await trio.sleep(data.draw(pauses))
            transcript.close()

    run_virtual(main, seed=seed)
    spoken = [event.text for event in events if isinstance(event, Text)]
    sent = [message for batch in batches for message in batch]
    assert [each.seq for each in sent] == list(range(heard + 1, len(spoken)))
    assert [each.content for each in sent] == spoken[heard + 1 :]
    assert all(len(batch) <= BATCH_MAX for batch in batches)
    for batch in batches:
        assert len(batch) == 1 or sum(map(size_of, batch)) <= BATCH_BYTES_MAX


async def test_a_server_that_does_not_take_them_makes_the_reader_wait(
    virtual_clock: VirtualClock,
) -> None:
    """Memory is bounded: what is not read yet is safe in the spool."""
    taking = trio.Event()
    added = 0

    async def send(batch: list[Message]) -> None:
        await taking.wait()

    async def read(transcript: Transcript) -> None:
        nonlocal added
        for _ in range(40):
            await transcript.add([Text("x" * 1_000_000)])
            added += 1
        transcript.close()

    transcript = Transcript(send, -1)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transcript.send_all)
            nursery.start_soon(read, transcript)
            await trio.sleep(10)
            assert added <= UNSENT_BYTES_MAX / 1_000_000 + 2
            taking.set()
    assert added == 40


async def test_a_message_goes_out_within_half_a_second(virtual_clock: VirtualClock) -> None:
    sent_at: list[float] = []

    async def send(batch: list[Message]) -> None:
        sent_at.append(trio.current_time())

    transcript = Transcript(send, -1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transcript.send_all)
        for _ in range(3):
            await transcript.add([Text("a")])
            await trio.sleep(10)
        transcript.close()
    assert sent_at[0] <= BATCH_S
    assert all(b - a == 10 for a, b in pairwise(sent_at))


async def test_what_has_come_while_a_batch_was_under_way_travels_together(
    virtual_clock: VirtualClock,
) -> None:
    """A slow way to the server costs a fast agent few round trips, and its messages no order."""
    sizes: list[int] = []
    lines = [Text("x" * 1000)] * 1000

    async def send(batch: list[Message]) -> None:
        sizes.append(sum(map(size_of, batch)))
        await trio.sleep(1)

    transcript = Transcript(send, -1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transcript.send_all)
        for _ in range(10):
            await transcript.add(lines)
            await trio.sleep(0.1)
        transcript.close()
    assert len(sizes) <= 10_000 * 1100 / BATCH_BYTES_MAX + 2
    assert max(sizes) > BATCH_BYTES_MAX - 2000


async def test_a_daemon_that_dies_anywhere_leaves_all_messages_once_to_the_next(
    virtual_clock: VirtualClock,
) -> None:
    """R6.9: an answer that was lost neither loses nor doubles a message, nor turns two around."""
    spoken = [Text(str(n) * 3000) for n in range(200)]
    there: dict[int, str | None] = {}
    order: list[int] = []
    heard = -1

    def take(batch: list[Message]) -> None:
        for each in batch:
            assert there.setdefault(each.seq, each.content) == each.content
            if each.seq not in order:
                order.append(each.seq)

    async def send(batch: list[Message]) -> None:
        nonlocal heard
        await trio.sleep(0.1)
        take(batch)
        await trio.sleep(0.1)  # Here its answer is on the way.
        heard = batch[-1].seq

    async def live(life_s: float) -> bool:
        with trio.move_on_after(life_s) as scope:
            transcript = Transcript(send, heard)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(transcript.send_all)
                await transcript.add(spoken)
                transcript.close()
        return not scope.cancelled_caught

    for tries in range(1, 100):
        if await live(0.05 * (tries % 12)):
            break
    assert order == list(range(len(spoken)))
    assert [there[seq] for seq in order] == [each.text for each in spoken]


async def test_a_sender_that_fails_ends_the_reader_that_waits_for_it(
    virtual_clock: VirtualClock,
) -> None:
    async def send(batch: list[Message]) -> None:
        raise OSError("no more")

    transcript = Transcript(send, -1)
    with trio.fail_after(60), pytest.RaisesGroup(OSError):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transcript.send_all)
            while True:
                await transcript.add([Text("x" * 1_000_000)])


async def test_a_message_that_no_frame_can_hold_is_told_of_instead(
    virtual_clock: VirtualClock,
) -> None:
    """R6.8: its number stays its own."""
    sent: list[Message] = []

    async def send(batch: list[Message]) -> None:
        sent.extend(batch)

    transcript = Transcript(send, -1)
    huge = ToolUse("1", "write", {str(n): "x" * 100_000 for n in range(50)})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transcript.send_all)
        await transcript.add([huge, Text("after")])
        transcript.close()
    assert [(each.seq, each.type) for each in sent] == [(0, "error"), (1, "text")]
    assert "too long" in (sent[0].content or "")
    assert all(len(msgspec.json.encode(each)) < MESSAGE_BYTES_MAX for each in sent)
