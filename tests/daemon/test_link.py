"""The daemon's link against a scripted server: real websocket bytes, in memory, in virtual time."""

from __future__ import annotations

import gc
import logging
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, cast
from uuid import UUID, uuid4

import httpx2
import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked
from trio_websocket import (
    ConnectionClosed,
    WebSocketConnection,
    wrap_client_stream,
    wrap_server_stream,
)

from understudy.config import DaemonConfig
from understudy.core.restarts import CannotStart
from understudy.core.tree import Branch
from understudy.daemon import link as link_module
from understudy.daemon import session as session_module
from understudy.daemon.link import Link, pause_s
from understudy.daemon.main import run_daemon
from understudy.daemon.outcomes import LinkRefused, NotSent, Unknown
from understudy.daemon.polling import PolledSession
from understudy.daemon.session import FramedSession
from understudy.daemon.upgrade import DISCONNECT_S, UpgradeFailed
from understudy.testing.clock import VirtualClock
from understudy.testing.network import MemoryNetwork
from understudy.testing.node import Node
from understudy.testing.streams import MemoryStream
from understudy.wire.daemon import (
    Acknowledged,
    ClaimedMany,
    ClaimedTask,
    HeartbeatsHeard,
    HeldTask,
    Messages,
    Ping,
    Pong,
    Register,
    Registered,
)
from understudy.wire.errors import Refusal
from understudy.wire.frames import (
    CALLS_BYTES_MAX,
    CALLS_MAX,
    Answer,
    Answers,
    Bye,
    Call,
    Calls,
    Cancel,
    CreditGranted,
    FromServer,
    Pinged,
    RuntimesGone,
    TasksPushed,
    batches,
    decode_from_daemon,
    encode,
)

TASK, RUNTIME = uuid4(), uuid4()
HEARTBEAT_S = 15.0
LONG_S = 3600.0  # Of virtual time: heartbeats never end by themselves.
ANSWERS: dict[str, object] = {"register": Registered(runtimes=[]), "heartbeats": HeartbeatsHeard()}


class Silence:
    """No answer at all."""


class Cut:
    """The connection breaks instead."""


@dataclass
class Slowly:
    seconds: float
    answer: object


@dataclass
class Board:
    """What a test wants answered, in order; after that each call is done."""

    network: MemoryNetwork = field(default_factory=MemoryNetwork)
    script: dict[str, deque[object]] = field(default_factory=dict)
    calls: list[tuple[float, str]] = field(default_factory=list)
    credits: list[int] = field(default_factory=list)
    pongs: list[tuple[UUID | None, UUID]] = field(default_factory=list)
    sockets: list[WebSocketConnection] = field(default_factory=list)
    streams: list[MemoryStream] = field(default_factory=list)
    changed: trio.Event = field(default_factory=trio.Event)

    def answers(self, call: str, *answers: object) -> None:
        self.script[call] = deque(answers)

    def called(self, call: str) -> list[float]:
        return [at for at, name in self.calls if name == call]

    async def wait_called(self, call: str, times: int) -> None:
        with trio.fail_after(LONG_S):
            while len(self.called(call)) < times:
                await self.changed.wait()

    async def wait_credit(self, total: int) -> None:
        with trio.fail_after(LONG_S):
            while not self.credits or self.credits[-1] != total:
                await self.changed.wait()

    async def push(self, frame: FromServer | str) -> None:
        text = frame if isinstance(frame, str) else encode(frame)
        await self.sockets[-1].send_message(text)

    def vanish(self) -> None:
        """From here on nothing arrives, in either direction, and nobody is told."""
        for pipe in self.streams[-1]._wire.pipes.values():
            pipe.lose()

    @asynccontextmanager
    async def dial(self) -> AsyncIterator[WebSocketConnection]:
        stream = await self.network.connect("board", 80)
        async with trio.open_nursery() as reading:
            socket = await wrap_client_stream(reading, cast(Any, stream), "board", "/")
            try:
                yield socket
            finally:
                with trio.move_on_after(DISCONNECT_S):
                    await socket.aclose()

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        listener = self.network.listen("board", 80)
        task_status.started()
        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(self._converse, await listener.accept())

    async def _converse(self, stream: MemoryStream) -> None:
        async with trio.open_nursery() as nursery:
            socket = await (await wrap_server_stream(nursery, stream)).accept()
            self.sockets.append(socket)
            self.streams.append(stream)
            try:
                while True:
                    await self._hear(socket, await socket.get_message())
            except ConnectionClosed:
                nursery.cancel_scope.cancel()

    async def _hear(self, socket: WebSocketConnection, text: str | bytes) -> None:
        frame = decode_from_daemon(text)
        if isinstance(frame, CreditGranted):
            self.credits.append(frame.payload.total)
        elif isinstance(frame, Calls):
            for call in frame.payload:
                await self._answer(socket, call)
        self.changed.set()
        self.changed = trio.Event()

    async def _answer(self, socket: WebSocketConnection, call: Call) -> None:
        self.calls.append((trio.current_time(), call.call))
        answer = ANSWERS.get(call.call, Acknowledged())
        if self.script.get(call.call):
            answer = self.script[call.call].popleft()
        if call.call == "pong":
            self.pongs.append((call.subject, msgspec.json.decode(call.body, type=Pong).ping_id))
        if isinstance(answer, Slowly):
            await trio.sleep(answer.seconds)
            answer = answer.answer
        if isinstance(answer, Half):
            await self.streams[-1].send_all(b'\x81\x7e\x01\x00{"type":"answers"')
        if isinstance(answer, Cut | Half):
            self.streams[-1].reset()
        elif isinstance(answer, Refusal):
            await socket.send_message(encode(Answers(payload=[Answer(id=call.id, refusal=answer)])))
        elif not isinstance(answer, Silence):
            body = msgspec.Raw(msgspec.json.encode(answer))
            await socket.send_message(encode(Answers(payload=[Answer(id=call.id, body=body)])))


@dataclass
class Machine:
    """The link's host, with so many slots."""

    slots: int = 3
    held: set[UUID] = field(default_factory=set)
    ups: list[bool] = field(default_factory=list)
    stopped: list[UUID] = field(default_factory=list)
    trust: list[tuple[float, dict[UUID, float]]] = field(default_factory=list)
    link: Link = field(init=False)

    async def connected(self) -> list[UUID]:
        await self.link.call("register", Register())
        return [RUNTIME]

    def take(self, tasks: list[ClaimedTask]) -> None:
        self.held |= {task.id for task in tasks}

    def stop(self, task_ids: Sequence[UUID]) -> None:
        self.stopped += task_ids

    def trusted(self, asked_at: float, trust_s: Mapping[UUID, float]) -> None:
        self.trust.append((asked_at, dict(trust_s)))

    def free_slots(self) -> int:
        return max(0, self.slots - len(self.held))

    def end(self, task_id: UUID) -> None:
        self.held.remove(task_id)
        self.link.offer(self.free_slots())

    def link_changed(self) -> None:
        self.ups.append(self.link.is_up)

    async def deliver(self) -> Any:
        with trio.fail_after(LONG_S):
            return await self.link.deliver("messages", Messages(), TASK)


@pytest.fixture
def virtual_clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
async def board(nursery: trio.Nursery) -> Board:
    board = Board()
    await nursery.start(board.serve)
    return board


@pytest.fixture
async def machine(board: Board, nursery: trio.Nursery) -> Machine:
    machine = Machine()
    machine.link = Link(board.dial, heartbeat_s=HEARTBEAT_S, dice=Random(7))
    await nursery.start(machine.link.run, machine)
    return machine


def pushed(task_id: UUID) -> ClaimedTask:
    """Only its id matters here."""
    at = "2026-01-01T00:00:00Z"
    return msgspec.convert(
        {
            "id": task_id, "agent_id": TASK, "workspace_id": TASK, "provider": "command",
            "status": "dispatched", "move": "claim", "trigger": "assign", "priority": 0,
            "attempt": 1, "max_attempts": 2, "created_at": at, "claim_expires_at": at,
            "agent": {"id": TASK, "name": "Nia"},
        },
        ClaimedTask,
    )  # fmt: skip


# Calls


@pytest.mark.parametrize("fate", [Cut(), Silence()], ids=["connection cut", "never answered"])
async def test_a_call_without_an_answer_is_asked_again(
    board: Board, machine: Machine, virtual_clock: VirtualClock, fate: object
) -> None:
    """R6.3: on the next connection, or on this one."""
    board.answers("messages", fate)
    assert await machine.deliver() == Acknowledged()
    assert len(board.called("messages")) == 2


async def test_a_refusal_that_may_pass_is_asked_again_ever_more_slowly(
    board: Board, machine: Machine, virtual_clock: VirtualClock
) -> None:
    """R6.3: 4, 8, 16, 32, 64 s. A refused key is the link's affair, and loses no run."""
    statuses = (503, 429, 408, 500, 401, 403, 502)
    refusals = [Refusal(error="not now", code="x", status=status) for status in statuses]
    board.answers("messages", *refusals)
    await machine.deliver()
    at = board.called("messages")
    assert [round(b - a) for a, b in pairwise(at)] == [4, 8, 16, 32, 64, 64, 64]


@pytest.mark.parametrize("status", [400, 404, 409, 413, 422])
async def test_another_refusal_is_final(
    board: Board, machine: Machine, virtual_clock: VirtualClock, status: int
) -> None:
    """R6.3"""
    board.answers("messages", Refusal(error="never", code="x", status=status))
    with pytest.raises(LinkRefused) as caught:
        await machine.deliver()
    assert caught.value.refusal.status == status


async def test_after_a_refusal_that_may_pass_a_new_connection_is_tried_at_once(
    board: Board, machine: Machine, virtual_clock: VirtualClock, nursery: trio.Nursery
) -> None:
    away = Refusal(error="away", code="x", status=503)
    board.answers("messages", *[away] * 5)
    nursery.start_soon(machine.deliver)
    await board.wait_called("messages", 5)
    refused_at = trio.current_time()
    await board.push(Bye())
    await board.wait_called("messages", 6)
    assert trio.current_time() - refused_at < 5
    nursery.cancel_scope.cancel()


class Half:
    """The connection breaks in the middle of the answer."""


@pytest.mark.parametrize("fate", ["after", "during"])
async def test_a_call_whose_connection_breaks_before_its_answer_is_whole_is_unknown(
    board: Board, machine: Machine, virtual_clock: VirtualClock, fate: str
) -> None:
    """R6.3: the server may have done it."""
    await board.wait_credit(3)
    board.answers("messages", Cut() if fate == "after" else Half())
    with pytest.raises(Unknown):
        await machine.link.call("messages", Messages(), TASK)
    assert len(board.called("messages")) == 1


async def test_a_call_without_a_connection_is_not_sent(
    board: Board, machine: Machine, virtual_clock: VirtualClock
) -> None:
    await board.wait_credit(3)
    await board.push(Bye())
    await trio.sleep(0.1)  # Of virtual time: the next connection is at least a second away.
    with pytest.raises(NotSent):
        await machine.link.call("messages", Messages(), TASK)


async def test_of_what_queued_when_the_connection_broke_only_the_first_may_have_arrived() -> None:
    """The others are `NotSent`: nothing of them has left."""
    session = FramedSession(cast(WebSocketConnection, StuckSocket()))
    ends: list[str] = []

    async def call() -> None:
        with pytest.raises((NotSent, Unknown)) as caught:
            await session.call("messages", Messages(), TASK)
        ends.append(caught.type.__name__)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.send_frames)
        nursery.start_soon(call)
        await wait_all_tasks_blocked()
        nursery.start_soon(call)
        await wait_all_tasks_blocked()
        session.end()
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert sorted(ends) == ["NotSent", "Unknown"]


async def test_more_callers_than_the_queue_holds_survive_a_server_that_does_not_read(
    board: Board, machine: Machine, virtual_clock: VirtualClock
) -> None:
    """Those who wait for room hear of the loss like those who wait for an answer."""
    done = 0

    async def deliver() -> None:
        nonlocal done
        await machine.deliver()
        done += 1

    await board.wait_credit(3)
    board.vanish()
    async with trio.open_nursery() as callers:
        for _ in range(2 * session_module.OUTBOUND_MAX):
            callers.start_soon(deliver)
    assert done == 2 * session_module.OUTBOUND_MAX


# Connections


async def test_a_registration_without_an_answer_does_not_hang(
    board: Board, machine: Machine, virtual_clock: VirtualClock
) -> None:
    board.answers("register", Silence(), Silence())
    with trio.fail_after(200):
        await machine.deliver()
    assert len(board.sockets) == 3


@pytest.mark.parametrize("status", [400, 404, 503])
async def test_a_refused_registration_is_tried_again_with_a_line_in_the_log(
    board: Board, machine: Machine, virtual_clock: VirtualClock,
    caplog: pytest.LogCaptureFixture, status: int,
) -> None:  # fmt: skip
    caplog.set_level(logging.WARNING)
    board.answers("register", *[Refusal(error="no such place", code="x", status=status)] * 20)
    await machine.deliver()
    assert len(board.called("register")) == 21
    assert caplog.messages == ["no link: no such place"] * 20
    at = board.called("register")
    assert all(1 <= b - a < 31 for a, b in pairwise(at))


async def test_a_half_open_connection_is_left_for_a_new_one(
    board: Board, machine: Machine, virtual_clock: VirtualClock
) -> None:
    """R4.8: nothing says so but a heartbeat without an answer."""
    await board.wait_credit(3)
    vanished_at = trio.current_time()
    board.vanish()
    await machine.deliver()
    assert trio.current_time() - vanished_at < 60
    assert len(board.sockets) == 2


@pytest.mark.parametrize("frame", ["{", '{"type":"answers","payload":[{"id":99}]}'])
async def test_a_server_that_talks_nonsense_costs_its_connection_only(
    board: Board, machine: Machine, virtual_clock: VirtualClock, frame: str
) -> None:
    await board.wait_credit(3)
    await board.push(frame)
    await board.wait_called("register", 2)
    assert await machine.deliver() == Acknowledged()


async def test_the_host_hears_when_the_link_is_up_and_when_it_is_gone(
    board: Board, machine: Machine, virtual_clock: VirtualClock
) -> None:
    await board.wait_credit(3)
    assert machine.ups == [True]
    await board.push(Bye())
    await board.wait_called("register", 2)
    assert machine.ups[:2] == [True, False]


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_the_pause_before_a_connection_is_between_1_and_30_seconds(
    failures: int, jitter: float
) -> None:
    assert 1 <= pause_s(failures, jitter) <= 30
    assert pause_s(0, jitter) <= 2


async def test_a_refused_key_stops_the_daemon_with_a_sentence(node: Node, tmp_path: Path) -> None:
    """At once, and not as a crash that is tried again."""
    config = DaemonConfig(tmp_path, node.address, "wrong", str(node.workspace.id))
    with (
        trio.fail_after(30),
        pytest.RaisesGroup(
            pytest.RaisesExc(CannotStart, match="run `understudy join` again"),
            flatten_subgroups=True,
        ),
    ):
        await run_daemon(config, Branch("daemon"))
    gc.collect()  # No socket is left to it: that would be a warning.


async def test_a_daemon_says_that_all_its_reports_are_fenced(tmp_path: Path) -> None:
    """R3.6, R3.13: as it goes over the wire."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    config = DaemonConfig(tmp_path, f"http://127.0.0.1:{port}", "key", str(TASK))
    asked: list[bytes] = []

    async def read_request() -> None:
        async with await listener.accept() as stream:
            while b"\r\n\r\n" not in b"".join(asked):
                asked.append(await stream.receive_some())

    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(read_request)
        with trio.fail_after(10), pytest.RaisesGroup(UpgradeFailed):
            async with link_module.dial(config)():
                pytest.fail("nobody has answered")
    lines = b"".join(asked).decode().lower().split("\r\n")
    assert "x-client-capabilities: claim-lease, fenced-reports" in lines


# Registration again


async def test_what_changes_during_a_registration_is_registered_too(
    board: Board, machine: Machine, virtual_clock: VirtualClock
) -> None:
    """R4.7: the wake-up is not lost, and one is enough for many changes."""
    await board.wait_credit(3)
    for _ in range(5):
        machine.link.register_again()
    await board.wait_called("register", 2)
    machine.link.register_again()
    await board.wait_called("register", 3)
    await board.wait_called("heartbeats", 3)
    assert len(board.called("register")) == 3
    assert len(board.sockets) == 1


async def test_a_runtime_that_the_server_lost_is_registered_and_attached_again(
    board: Board, machine: Machine, virtual_clock: VirtualClock
) -> None:
    """R4.7: with its credit, though that has not changed."""
    board.answers("heartbeats", HeartbeatsHeard(gone=[RUNTIME]))
    await board.wait_called("heartbeats", 2)
    assert len(board.called("register")) == 2
    assert board.credits == [3, 3]


async def test_a_refused_second_registration_costs_a_connection_and_no_more(
    board: Board, machine: Machine, virtual_clock: VirtualClock
) -> None:
    await board.wait_credit(3)
    board.answers("register", Refusal(error="the database is away", code="x", status=503))
    machine.link.register_again()
    await board.wait_called("register", 3)
    assert len(board.sockets) == 2


async def test_heartbeats_go_on_while_a_registration_waits_for_its_answer(
    board: Board, machine: Machine, virtual_clock: VirtualClock
) -> None:
    """R4.8"""
    await board.wait_credit(3)
    board.answers("register", Silence())
    machine.link.register_again()
    await board.wait_called("register", 2)
    before = len(board.called("heartbeats"))
    await board.wait_called("heartbeats", before + 1)
    assert len(board.sockets) == 1


async def test_a_runtime_that_is_gone_again_and_again_is_registered_ever_more_slowly(
    board: Board, machine: Machine, virtual_clock: VirtualClock
) -> None:
    """R4.7: with back-off, and once for many."""
    await board.wait_credit(3)
    for times in range(2, 12):
        for _ in range(3):
            await board.push(RuntimesGone(payload=[RUNTIME]))
        await board.wait_called("register", times)
    at = board.called("register")
    pauses = [later - earlier for earlier, later in pairwise(at)]
    assert all(1 <= pause <= 31 for pause in pauses)
    assert sum(pauses[-3:]) > 2 * sum(pauses[:3])
    await board.wait_called("heartbeats", len(board.called("heartbeats")) + 3)
    assert (len(board.called("register")), len(board.sockets)) == (11, 1)


# Over HTTP and back


@pytest.fixture
async def blocked(board: Board, nursery: trio.Nursery) -> Machine:
    """A machine that no websocket lets through at first, and whose claims take 40 s."""
    given = pushed(uuid4())

    @asynccontextmanager
    async def dial() -> AsyncIterator[WebSocketConnection]:
        if trio.current_time() - begun_at < 10:
            raise UpgradeFailed("rejected")
        async with board.dial() as socket:
            yield socket

    async def answer(request: httpx2.Request) -> httpx2.Response:
        call = request.url.path.rpartition("/")[2]
        if call == "claim":
            await trio.sleep(40.0)
        known = {"claim": ClaimedMany(tasks=[given]), **ANSWERS}
        body = msgspec.json.encode(known.get(call, Acknowledged()))
        return httpx2.Response(200, content=body)

    @asynccontextmanager
    async def poll() -> AsyncIterator[PolledSession]:
        transport = httpx2.MockTransport(answer)
        async with httpx2.AsyncClient(transport=transport, base_url="http://board") as http:
            yield PolledSession(http, slots=1)

    begun_at, machine = trio.current_time(), Machine()
    machine.link = Link(dial, heartbeat_s=HEARTBEAT_S, dice=Random(7), poll=poll)
    await nursery.start(machine.link.run, machine)
    return machine


async def test_what_is_being_claimed_over_http_arrives_before_a_websocket_takes_over(
    board: Board, virtual_clock: VirtualClock, blocked: Machine
) -> None:
    """Else it would be nobody's until its lease has run out (R3.8)."""
    await board.wait_credit(2)
    assert len(blocked.held) == 1
    assert len(board.called("register")) == 1


async def test_a_link_over_http_hears_what_the_heartbeats_say(
    board: Board, virtual_clock: VirtualClock, blocked: Machine
) -> None:
    await trio.sleep(20.0)
    assert blocked.link.is_up
    assert (board.sockets, len(blocked.trust)) == ([], 1)


# Told by the server


async def test_a_cancelled_run_is_stopped_by_the_push_or_by_the_next_heartbeat(
    board: Board, machine: Machine, virtual_clock: VirtualClock
) -> None:
    """R7.1"""
    first, second = uuid4(), uuid4()
    await board.wait_credit(3)
    board.answers("heartbeats", HeartbeatsHeard(cancelled=[HeldTask(task_id=second)]))
    await board.push(Cancel(payload=[HeldTask(task_id=first, claim_token=uuid4())]))
    await board.wait_called("heartbeats", 1)
    assert machine.stopped == [first]
    await board.wait_called("heartbeats", 2)
    assert machine.stopped == [first, second]


async def test_a_ping_is_answered_at_once_by_whichever_way_it_came(
    board: Board, machine: Machine, virtual_clock: VirtualClock
) -> None:
    """R4.12"""
    ping = Ping(id=uuid4(), runtime_id=RUNTIME)
    await board.wait_credit(3)
    pushed_at = trio.current_time()
    await board.push(Pinged(payload=ping))
    await board.wait_called("pong", 1)
    assert board.called("pong") == [pushed_at]
    board.answers("heartbeats", HeartbeatsHeard(pending_pings=[ping]))
    await board.wait_called("pong", 2)
    assert board.called("pong")[1] == board.called("heartbeats")[-1]
    assert board.pongs == [(RUNTIME, ping.id)] * 2


async def test_a_ping_that_is_refused_disturbs_nobody(
    board: Board, machine: Machine, virtual_clock: VirtualClock
) -> None:
    await board.wait_credit(3)
    board.answers("pong", Refusal(error="no such runtime", code="not_found", status=404))
    await board.push(Pinged(payload=Ping(id=uuid4(), runtime_id=RUNTIME)))
    await board.wait_called("pong", 1)
    await machine.deliver()
    assert len(board.sockets) == 1


async def test_a_promise_counts_from_when_it_was_asked_for(
    board: Board, machine: Machine, virtual_clock: VirtualClock
) -> None:
    """R4.11: the way of the answer is the daemon's loss."""
    board.answers("heartbeats", Slowly(20.0, HeartbeatsHeard(trust_s={RUNTIME: 90.0})))
    await board.wait_called("heartbeats", 2)
    assert machine.trust[0] == (board.called("heartbeats")[0], {RUNTIME: 90.0})
    assert board.called("heartbeats")[1] - board.called("heartbeats")[0] > 20


# Credit


async def test_a_freed_slot_is_granted_once_whatever_was_pushed_twice(
    board: Board, machine: Machine, virtual_clock: VirtualClock
) -> None:
    """R3.10: what the server counts as free is what is free."""
    await board.wait_credit(3)
    first, second = uuid4(), uuid4()
    await board.push(TasksPushed(payload=[pushed(first), pushed(second)]))
    await board.push(TasksPushed(payload=[pushed(first)]))
    await board.wait_credit(4)  # The one pushed twice took no slot.
    machine.end(first)
    await board.wait_credit(5)
    machine.end(second)
    await board.wait_credit(6)  # 3 pushed, 3 free.


async def test_credit_counts_from_nothing_on_each_connection(
    board: Board, machine: Machine, virtual_clock: VirtualClock
) -> None:
    await board.wait_credit(3)
    task = uuid4()
    await board.push(TasksPushed(payload=[pushed(task)]))
    await board.push(Bye())
    await board.wait_credit(2)
    machine.end(task)
    await board.wait_credit(3)


async def test_runs_found_again_beyond_the_slots_are_paid_off_before_credit_grows(
    board: Board, machine: Machine, virtual_clock: VirtualClock
) -> None:
    """R9.6"""
    await board.wait_credit(3)
    found = [uuid4() for _ in range(5)]
    machine.held |= set(found)
    await board.push(Bye())
    await board.wait_credit(0)
    for task in found[:2]:
        machine.end(task)
    await machine.deliver()
    assert board.credits[-1] == 0
    machine.end(found[2])
    await board.wait_credit(1)


@dataclass
class StuckSocket:
    """Sends nothing until it is told to."""

    sent: list[str] = field(default_factory=list)
    may_send: trio.Event = field(default_factory=trio.Event)

    async def send_message(self, text: str) -> None:
        await self.may_send.wait()
        self.sent.append(text)


async def test_credit_is_not_lost_when_the_queue_is_full() -> None:
    """It goes with the calls that fill it."""
    socket = StuckSocket()
    session = FramedSession(cast(WebSocketConnection, socket))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.send_frames)
        for _ in range(2 * session_module.OUTBOUND_MAX):
            nursery.start_soon(session.call, "messages", Messages(), TASK)
        await wait_all_tasks_blocked()
        session.announce([RUNTIME], 3)
        session.offer(4)
        socket.may_send.set()
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    frames = [decode_from_daemon(text) for text in socket.sent]
    assert [f.payload.total for f in frames if isinstance(f, CreditGranted)] == [4]
    assert sum(len(f.payload) for f in frames if isinstance(f, Calls)) == (
        2 * session_module.OUTBOUND_MAX
    )


# Frames


@given(st.lists(st.sampled_from([1, CALLS_BYTES_MAX // 3, CALLS_BYTES_MAX + 1]), max_size=250))
def test_frames_keep_order_and_size(sizes: list[int]) -> None:
    """A frame that the server does not take would be sent again for ever."""
    bodies = {size: msgspec.Raw(bytes(size)) for size in set(sizes)}
    calls = [Call(id=n, call="messages", body=bodies[size]) for n, size in enumerate(sizes)]
    frames = list(batches(calls))
    assert [call.id for frame in frames for call in frame.payload] == list(range(len(sizes)))
    for frame in frames:
        assert 1 <= len(frame.payload) <= CALLS_MAX
        size = sum(len(call.body) for call in frame.payload)
        assert size <= CALLS_BYTES_MAX or len(frame.payload) == 1
