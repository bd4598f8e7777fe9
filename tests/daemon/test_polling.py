"""A daemon where no websocket gets through: over HTTP alone, and back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, cast
from uuid import UUID, uuid4

import httpx2
import msgspec
import pytest
import trio
from trio_websocket import ConnectionRejected

from understudy.config import DaemonConfig, Transport
from understudy.core.leases import Leases
from understudy.core.tree import Branch
from understudy.daemon import link, polling
from understudy.daemon.main import run_daemon
from understudy.daemon.outcomes import LinkLost, LinkRefused, NotSent, Unknown
from understudy.daemon.polling import PolledSession
from understudy.daemon.session import Host
from understudy.daemon.status import read_status
from understudy.daemon.upgrade import UpgradeFailed
from understudy.daemon.ways import Ways
from understudy.testing.clock import VirtualClock
from understudy.testing.crossing import Crossing
from understudy.testing.gate import Gate, open_waypoint
from understudy.testing.node import Node
from understudy.testing.workplace import RESULT, Workplace
from understudy.wire.daemon import (
    Acknowledged,
    ClaimedTask,
    ClaimMany,
    HeartbeatsHeard,
    HeldTask,
    Messages,
    Nothing,
)
from understudy.wire.errors import Refusal

NEVER_S: Final = 3600.0
TASK, RUNTIME = uuid4(), uuid4()
SLOTS: Final = 20
HTML: Final = b"<html>It did not work</html>"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "RECONNECT_S_MIN", 0.002)
    monkeypatch.setattr(link, "RECONNECT_S_MAX", 0.02)
    monkeypatch.setattr(link, "WEBSOCKET_AGAIN_S", (NEVER_S,))


# The whole way


@pytest.fixture
async def gate(node: Node) -> AsyncIterator[Gate]:
    gate = Gate(node.address, "reject")
    async with open_waypoint(gate):
        yield gate


@pytest.fixture
def workplace(node: Node, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    monkeypatch.setattr(polling, "CLAIM_S_MIN", 0.05)
    monkeypatch.setattr(polling, "CLAIM_S_MAX", 0.1)
    path = tmp_path / "daemon"
    leases = Leases(heartbeat_s=0.1)
    workspace = str(node.workspace.id)
    config = DaemonConfig(path, gate.address, node.daemon_key, workspace, leases=leases)
    return Workplace(node, path, Crossing(link.dial(config)), config)


@asynccontextmanager
async def daemon(workplace: Workplace) -> AsyncIterator[None]:
    """By all its own ways, not by the workplace's crossing."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_daemon, workplace.config, Branch("daemon"))
        yield
        nursery.cancel_scope.cancel()


def is_attached(node: Node) -> bool:
    """By a websocket, over which it has told of its slots."""
    return any(each.link is not None for each in node.site.cast._presences.values())


@pytest.mark.parametrize("websockets", ["reject", "hang up"])
async def test_where_no_websocket_gets_through_a_run_completes_over_http(
    workplace: Workplace, gate: Gate, websockets: Any
) -> None:
    """R11.2"""
    gate.websockets = websockets
    async with daemon(workplace):
        task_id = await workplace.assign_traced()
        await workplace.wait_status(task_id, "completed")
        assert await workplace.comments() == ["done"]
        status = read_status(workplace.path)
        assert status is not None
        assert (status.is_linked, status.is_over_http, status.trouble) == (True, True, None)
        assert (status.no_websocket == "the server answered 502") == (websockets == "reject")
        assert status.no_websocket
    assert (workplace.starts(), gate.upgrades) == (1, 2)


async def test_a_websocket_that_opens_and_carries_nothing_is_none(
    workplace: Workplace, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "ANSWER_S", 1.5)
    gate.websockets = "mute"
    async with daemon(workplace):
        task_id = await workplace.assign_traced()
        await workplace.wait_status(task_id, "completed")
    assert gate.upgrades >= 2


@pytest.mark.parametrize(("heartbeat_s", "stops_s"), [(0.1, NEVER_S), (NEVER_S, 0.1)])
async def test_a_cancelled_run_hears_of_it_though_nothing_can_be_pushed(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, heartbeat_s: float, stops_s: float
) -> None:
    """R7.1: with the heartbeat, or between two of them."""
    monkeypatch.setattr(polling, "STOPS_S", stops_s)
    leases = Leases(heartbeat_s=heartbeat_s, offline_after_s=3 * NEVER_S)
    workplace.config = replace(workplace.config, leases=leases)
    async with daemon(workplace):
        task_id = await workplace.assign("command", "sleep", "1000")
        await workplace.wait_status(task_id, "running")
        await workplace.node.person.post(f"/api/tasks/{task_id}/cancel")
        await workplace.wait_status(task_id, "cancelled")


async def test_a_daemon_that_is_restarted_over_http_finds_its_run_again(
    workplace: Workplace,
) -> None:
    """R8.1"""
    async with daemon(workplace):
        task_id = await workplace.assign_traced()
        await workplace.wait_status(task_id, "running")
    async with daemon(workplace):
        await workplace.wait_status(task_id, "completed")
    assert workplace.starts() == 1


async def test_a_daemon_comes_back_to_the_websocket_in_the_middle_of_a_run(
    workplace: Workplace, gate: Gate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(link, "WEBSOCKET_AGAIN_S", (0.05,))
    go_on = tmp_path / "go_on"
    async with daemon(workplace):
        script = f"until test -e {go_on}; do sleep 0.02; done; echo '{RESULT}'"
        task_id = await workplace.assign("command", "sh", "-c", script)
        await workplace.wait_status(task_id, "running")
        assert not is_attached(workplace.node)
        gate.websockets = "pass"
        await workplace.wait(lambda: is_attached(workplace.node))
        assert not any(each.polls for each in workplace.node.site.cast._presences.values())
        status = read_status(workplace.path)
        assert status is not None
        assert (status.is_over_http, status.no_websocket) == (False, None)
        go_on.touch()
        task = await workplace.wait_status(task_id, "completed", "failed")
        assert (task["status"], task["attempt"]) == ("completed", 1)
        assert await workplace.comments() == ["done"]


@pytest.mark.parametrize("websockets", ["reject", "mute"])
async def test_a_websocket_that_still_carries_nothing_does_not_disturb_the_work_over_http(
    workplace: Workplace, gate: Gate, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, websockets: Any,
) -> None:  # fmt: skip
    monkeypatch.setattr(link, "WEBSOCKET_AGAIN_S", (0.05,))
    monkeypatch.setattr(link, "ANSWER_S", 1.5)
    gate.websockets = websockets
    async with daemon(workplace):
        await workplace.wait(lambda: gate.upgrades >= 4)
        task_id = await workplace.assign_traced()
        await workplace.wait_status(task_id, "completed")
    assert sum("no link" in message for message in caplog.messages) == 2


@pytest.mark.parametrize("transport", ["http", "websocket"])
async def test_the_transport_may_be_dictated(
    workplace: Workplace, gate: Gate, transport: Transport
) -> None:
    gate.websockets = "pass"
    workplace.config = replace(workplace.config, transport=transport)
    async with daemon(workplace):
        task_id = await workplace.assign_traced()
        await workplace.wait_status(task_id, "completed")
        status = read_status(workplace.path)
        assert status is not None
        assert (status.is_over_http, status.no_websocket) == (transport == "http", None)
    assert gate.upgrades == (transport == "websocket")


# Which way


def rejected(status: int = 502) -> ConnectionRejected:
    return ConnectionRejected(status, (), HTML)


OUTAGES: Final = (
    ConnectionRefusedError(), TimeoutError(),
    LinkRefused(Refusal(error="the database is away", code="unavailable", status=503)),
)  # fmt: skip


def test_two_rejected_websockets_give_http_its_turn() -> None:
    ways = Ways("auto")
    ways.broke(rejected(), was_linked=False)
    assert not ways.is_over_http
    ways.broke(UpgradeFailed(), was_linked=False)
    assert ways.is_over_http


@pytest.mark.parametrize("outage", OUTAGES, ids=repr)
def test_an_outage_says_nothing_of_websockets(outage: Exception) -> None:
    ways = Ways("auto")
    for _ in range(10):
        ways.broke(outage, was_linked=False)
        assert not ways.is_over_http


def test_where_http_does_not_work_either_it_is_an_outage() -> None:
    """A server that stops behind a proxy is 502 in every way: websockets must not suffer for it."""
    ways = Ways("auto")
    turns = []
    for _ in range(6):
        turns.append(ways.is_over_http)
        ways.broke(rejected(), was_linked=False)
    assert turns == [False, False, True, False, False, True]


def test_a_connection_over_http_that_breaks_is_made_over_http_again() -> None:
    ways = Ways("auto")
    for _ in range(2):
        ways.broke(rejected(), was_linked=False)
    ways.broke(NotSent("it broke"), was_linked=True)
    assert ways.is_over_http


def test_a_websocket_that_worked_for_a_while_counts_afresh() -> None:
    ways = Ways("auto")
    ways.broke(rejected(), was_linked=False)
    ways.broke(LinkLost("it broke"), was_linked=True)
    ways.broke(rejected(), was_linked=False)
    assert not ways.is_over_http


# How a call ends


def answer(status: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


@asynccontextmanager
async def session_with(raw: bytes | None) -> AsyncIterator[PolledSession]:
    """With a server that answers so much and hangs up; None: nobody listens."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]

    async def serve(client: trio.SocketStream) -> None:
        await client.receive_some()
        await client.send_all(raw or b"")
        await client.aclose()

    async with listener, trio.open_nursery() as nursery:
        if raw is None:
            await listener.aclose()
        else:
            nursery.start_soon(trio.serve_listeners, serve, [listener])
        config = DaemonConfig(Path("/nowhere"), f"http://127.0.0.1:{port}", "key", "")
        async with polling.poll(config)() as session:
            with trio.fail_after(10):
                yield session
        nursery.cancel_scope.cancel()


async def ending(session: PolledSession) -> type[object]:
    try:
        return type(await session.call("messages", Messages(), TASK))
    except LinkLost as error:
        return type(error)


REFUSED: Final = b'{"error":"no","code":"fenced"}'


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (None, NotSent),
        (b"", Unknown),
        (b"HTTP/1.1 200", Unknown),
        (answer("200 OK", b'{"status":"ok"}')[:-3], Unknown),
        (answer("200 OK", b'{"status":"ok"}'), Acknowledged),
        (answer("200 OK", HTML), Unknown),
        (answer("302 Found", b"", "Location: http://127.0.0.1:1/login"), Unknown),
        (answer("404 Not Found", HTML), Unknown),
        (answer("502 Bad Gateway", HTML), Unknown),
        (answer("407 Proxy Authentication Required", HTML), NotSent),
        (answer("413 Too Large", HTML), Refusal),
        (answer("409 Conflict", REFUSED), Refusal),
        (b"SSH-2.0-OpenSSH_9\r\n", Unknown),
    ],
    ids=[
        "nobody there", "cut before the answer", "cut in its first line", "cut in its body", "done",
        "another's page", "another's redirect", "another's 404", "a gateway's 502",
        "the proxy's login", "too large", "the server's no", "no HTTP at all",
    ],
)  # fmt: skip
async def test_over_http_it_is_known_whether_a_call_was_sent(
    raw: bytes | None, expected: type[object]
) -> None:
    """R6.3; and what is not the server's own proves nothing (R4.6)."""
    async with session_with(raw) as session:
        assert await ending(session) is expected


async def test_a_refusal_is_told_as_over_the_websocket() -> None:
    refused = answer("429 Too Many", b'{"error":"slow","code":"busy"}', "Retry-After: 7")
    async with session_with(refused) as session:
        told = await session.call("messages", Messages(), TASK)
    assert told == Refusal(error="slow", code="busy", status=429, retry_after_s=7.0)


async def test_a_connection_that_ends_leaves_no_call_waiting() -> None:
    """What was under way may have arrived; what comes later was never sent."""
    reached = trio.Event()

    async def never(request: httpx2.Request) -> httpx2.Response:
        await request.extensions["trace"]("http11.send_request_headers.started", sending)
        reached.set()
        await trio.sleep_forever()
        raise AssertionError

    @dataclass
    class Request:
        method: bytes = b"POST"

    sending = {"request": Request()}
    async with httpx2.AsyncClient(
        transport=httpx2.MockTransport(never), base_url="http://board"
    ) as http:
        session = PolledSession(http, slots=1)
        ends: list[type[object]] = []

        async def call() -> None:
            ends.append(await ending(session))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await reached.wait()
            session.end()
        await call()
    assert ends == [Unknown, NotSent]


# Claims


@dataclass
class Office:
    """A machine with so many slots, and a server with so many tasks."""

    slots: int
    tasks: list[int] = field(default_factory=list)
    claims: list[tuple[float, int]] = field(default_factory=list)
    beats: list[float] = field(default_factory=list)
    beats_refused: list[bytes] = field(default_factory=list)
    cancelled: list[UUID] = field(default_factory=list)
    stopped: dict[UUID, float] = field(default_factory=dict)
    taken: list[ClaimedTask] = field(default_factory=list)

    def free_slots(self) -> int:
        return self.slots

    def take(self, tasks: Sequence[ClaimedTask]) -> None:
        self.taken += tasks
        self.slots -= len(tasks)

    def stop(self, task_ids: Sequence[UUID]) -> None:
        for task_id in task_ids:
            self.stopped.setdefault(task_id, trio.current_time())

    async def answer(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path.endswith("heartbeats"):
            self.beats.append(trio.current_time())
            if self.beats_refused:
                return httpx2.Response(503, content=self.beats_refused.pop())
            heard = HeartbeatsHeard(cancelled=[HeldTask(task_id=each) for each in self.cancelled])
            return httpx2.Response(200, content=msgspec.json.encode(heard))
        asked = msgspec.json.decode(await request.aread(), type=ClaimMany)
        self.claims.append((trio.current_time(), asked.slots))
        count = self.tasks.pop(0) if self.tasks else 0
        return httpx2.Response(200, content=msgspec.json.encode({"tasks": [task()] * count}))


def task() -> dict[str, Any]:
    at = "2026-01-01T00:00:00Z"
    return {
        "id": uuid4(), "agent_id": TASK, "workspace_id": TASK, "provider": "command",
        "status": "dispatched", "move": "claim", "trigger": "assign", "priority": 0,
        "attempt": 1, "max_attempts": 2, "created_at": at, "claim_expires_at": at,
        "agent": {"id": TASK, "name": "Nia"},
    }  # fmt: skip


async def claims_of(
    host: Office, seconds: float, then: Callable[[PolledSession], object] = lambda _: None
) -> list[tuple[float, int]]:
    """For so long before `then`, and so long after it; by seconds since the beginning."""
    async with httpx2.AsyncClient(
        transport=httpx2.MockTransport(host.answer), base_url="http://board"
    ) as http:
        session, started_at = PolledSession(http, slots=SLOTS), trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.carry, cast(Host, host), lambda: None)
            session.announce([RUNTIME], host.slots)
            await trio.sleep(seconds)
            then(session)
            await trio.sleep(seconds)
            nursery.cancel_scope.cancel()
    return [(round(at - started_at, 2), slots) for at, slots in host.claims]


@pytest.fixture
def virtual_clock() -> VirtualClock:
    return VirtualClock()


async def test_tasks_are_asked_for_often_while_there_are_some(virtual_clock: VirtualClock) -> None:
    """R3.11: for all that is free, in one claim."""
    claims = await claims_of(Office(slots=9, tasks=[1, 1, 1]), 25.0)
    assert claims[:4] == [(0, 9), (2, 8), (4, 7), (6, 6)]
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(claims[3:])]
    assert gaps == sorted(gaps)
    assert (gaps[0], gaps[-1]) == (3, 10)


async def test_a_machine_without_a_free_slot_asks_for_nothing_until_one_is_free(
    virtual_clock: VirtualClock,
) -> None:
    """And then at once."""
    host = Office(slots=2, tasks=[2])

    def end_one(session: PolledSession) -> None:
        host.slots += 1
        session.offer(host.slots)

    claims = await claims_of(host, 33.3, end_one)
    assert claims[:2] == [(0, 2), (33.3, 1)]


# Cancellations


async def test_a_cancellation_is_heard_of_within_two_seconds(virtual_clock: VirtualClock) -> None:
    """R7.2: what is left of the 6 s is for an agent that obeys to nothing but SIGKILL."""
    host, cancelled_at = Office(slots=SLOTS - 1), list[float]()

    def cancel(_: PolledSession) -> None:
        host.cancelled.append(TASK)
        cancelled_at.append(trio.current_time())

    await claims_of(host, 2 * polling.STOPS_S + 0.01, cancel)  # Just after it asked.
    assert host.stopped[TASK] - cancelled_at[0] < 2


async def test_a_machine_at_rest_asks_for_no_cancellations(virtual_clock: VirtualClock) -> None:
    """R4.3: a thousand idle machines cost no more than their claims and their heartbeats."""
    host = Office(slots=SLOTS)
    await claims_of(host, 60)
    assert host.beats == []


async def test_a_cancellation_that_cannot_be_asked_for_breaks_nothing(
    virtual_clock: VirtualClock,
) -> None:
    """Whether the server is there at all, the heartbeats find out."""
    host = Office(slots=SLOTS - 1, cancelled=[TASK], beats_refused=[HTML, REFUSED, b""])
    await claims_of(host, 5)
    assert TASK in host.stopped


async def test_no_call_waits_for_an_answer_for_ever(virtual_clock: VirtualClock) -> None:
    async def never(request: httpx2.Request) -> httpx2.Response:
        await trio.sleep_forever()
        raise AssertionError

    async with httpx2.AsyncClient(
        transport=httpx2.MockTransport(never), base_url="http://board"
    ) as http:
        with pytest.raises(LinkLost, match="no answer to status"):
            await PolledSession(http, slots=1).call("status", Nothing(), TASK)
