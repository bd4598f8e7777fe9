"""The daemon's websocket without a socket: frames, and the book of open calls."""

from __future__ import annotations

from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.wire.daemon import CALLS, Claimed, HeartbeatHeard, Heartbeats, Nothing
from understudy.wire.errors import Refusal, RemoteProtocolError
from understudy.wire.frames import (
    CALLS_MAX,
    Answer,
    Answers,
    Bye,
    Call,
    CallBook,
    Calls,
    Credit,
    CreditGranted,
    FromDaemon,
    batches,
    decode_from_daemon,
    decode_from_server,
    encode,
)

IDS = st.uuids()
RAWS = st.sampled_from([msgspec.Raw(b"{}"), msgspec.Raw(b'{"a":[1,"x"]}')])
CALL = st.builds(Call, id=st.integers(0, 2**53), call=st.text(), subject=st.none() | IDS, body=RAWS)
CREDIT = st.builds(Credit, total=st.integers(), runtime_ids=st.lists(IDS))
REFUSALS = st.none() | st.builds(Refusal, error=st.text(), code=st.text(), status=st.integers())
ANSWER = st.builds(Answer, id=st.integers(0, 2**53), body=RAWS, refusal=REFUSALS)


@given(st.builds(Calls, payload=st.lists(CALL)) | st.builds(CreditGranted, payload=CREDIT))
def test_a_daemons_frame_arrives_as_it_was_sent(frame: FromDaemon) -> None:
    assert encode(decode_from_daemon(encode(frame))) == encode(frame)


@given(st.builds(Answers, payload=st.lists(ANSWER)) | st.just(Bye()))
def test_a_servers_frame_arrives_as_it_was_sent(frame: Answers | Bye) -> None:
    assert encode(decode_from_server(encode(frame))) == encode(frame)


@given(st.text() | st.binary() | st.sampled_from([
    '{"type": "calls"}', '{"type": "calls", "payload": {}}', '{"type": "credit", "payload": []}',
    '{"type": "other", "payload": []}', '{"payload": []}', "[]", "null", '{"type": 5}',
    '{"type": "calls", "payload": [{"id": "1", "call": "claim"}]}',
    '{"type": "credit", "payload": {"total": 1.5}}', "[" * 5000,
    '{"type": "calls", "payload": [{"id": 1, "call": "x", "body": ' + "[" * 5000,
]))  # fmt: skip
def test_what_is_no_frame_is_the_other_sides_fault(text: str | bytes) -> None:
    for decode in (decode_from_daemon, decode_from_server):
        with pytest.raises(RemoteProtocolError):
            decode(text)


def test_each_answer_finds_its_call_and_its_shape() -> None:
    book = CallBook()
    claim = book.call("claim", Nothing(), UUID(int=1))
    beat = book.call("heartbeat", Nothing())
    assert claim.id != beat.id
    told = book.answered(Answer(id=beat.id, body=msgspec.Raw(b'{"status":"ok"}')))
    assert told == HeartbeatHeard()
    assert book.answered(Answer(id=claim.id, body=msgspec.Raw(b'{"task":null}'))) == Claimed(
        task=None
    )


def test_a_refusal_is_handed_over_as_it_is() -> None:
    book, refusal = CallBook(), Refusal(error="no", code="fenced", status=409)
    call = book.call("start", Nothing(), UUID(int=1))
    assert book.answered(Answer(id=call.id, refusal=refusal)) == refusal


@pytest.mark.parametrize("body", [b"null", b"5", b'{"task": 5}'])
def test_an_answer_of_another_shape_is_the_other_sides_fault(body: bytes) -> None:
    book = CallBook()
    call = book.call("claim", Nothing(), UUID(int=1))
    with pytest.raises(RemoteProtocolError, match="answer to claim"):
        book.answered(Answer(id=call.id, body=msgspec.Raw(body)))


def test_nothing_is_answered_twice() -> None:
    book = CallBook()
    call = book.call("heartbeats", Heartbeats(runtime_ids=[]))
    book.answered(Answer(id=call.id, body=msgspec.Raw(b"{}")))
    with pytest.raises(RemoteProtocolError, match="answer to no call"):
        book.answered(Answer(id=call.id, body=msgspec.Raw(b"{}")))


@given(st.integers(0, 3 * CALLS_MAX + 1))
def test_a_batch_is_bounded_and_keeps_the_order(count: int) -> None:
    calls = [Call(id=number, call="claim") for number in range(count)]
    frames = batches(calls)
    assert [call for frame in frames for call in frame.payload] == calls
    assert all(0 < len(frame.payload) <= CALLS_MAX for frame in frames)


def test_the_table_of_calls_is_consistent() -> None:
    """R11.1, R11.2: one path for one call, and a subject exactly where the path has one."""
    paths = {(shape.method, shape.path) for shape in CALLS.values()}
    assert len(paths) == len(CALLS)
    for shape in CALLS.values():
        assert ("<subject>" in shape.path) == (shape.subject is not None)
        assert shape.path.startswith("/api/daemon/")
        msgspec.json.schema(shape.answer)
