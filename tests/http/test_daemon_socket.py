"""The daemon's websocket on a whole node (R11.2)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import msgspec
import pytest
import trio
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    WebSocketConnection,
    wrap_client_stream,
)

from understudy.core.struct import Struct
from understudy.http import socket as http_socket
from understudy.testing.node import Node
from understudy.wire import daemon as wire
from understudy.wire.errors import Refusal
from understudy.wire.frames import (
    Answer,
    Answers,
    Bye,
    Call,
    CallBook,
    Calls,
    Credit,
    CreditGranted,
    TasksPushed,
    decode_from_server,
    encode,
)


class Daemon:
    """A daemon's end, one frame at a time."""

    def __init__(self, node: Node, socket: WebSocketConnection) -> None:
        self.node = node
        self.socket = socket
        self.book = CallBook()
        self.pushed: list[wire.ClaimedTask] = []
        self._answers: list[Answer] = []

    async def ask(self, name: str, body: Struct, subject: UUID | None = None) -> Any:
        call = self.book.call(name, body, subject)
        await self.socket.send_message(encode(Calls(payload=[call])))
        return self.book.answered(await self.answer_to(call))

    async def answer_to(self, call: Call) -> Answer:
        while not (found := [each for each in self._answers if each.id == call.id]):
            await self.receive()
        self._answers.remove(found[0])
        return found[0]

    async def receive(self) -> None:
        with trio.fail_after(30):
            frame = decode_from_server(await self.socket.get_message())
        match frame:
            case Answers(payload=answers):
                self._answers += answers
            case TasksPushed(payload=tasks):
                self.pushed += tasks
            case _:
                pass

    async def register(self, *providers: str, daemon_id: str = "laptop-1") -> list[UUID]:
        request = wire.Register(
            workspace_id=str(self.node.workspace.id),
            daemon_id=daemon_id,
            runtimes=[wire.RuntimeOffer(type=each) for each in providers or ("scripted",)],
        )
        return [each.id for each in (await self.ask("register", request)).runtimes]

    async def grant(self, total: int, runtime_ids: list[UUID]) -> None:
        credit = Credit(total=total, runtime_ids=runtime_ids)
        await self.socket.send_message(encode(CreditGranted(payload=credit)))

    async def wait_pushed(self, count: int) -> list[wire.ClaimedTask]:
        while len(self.pushed) < count:
            await self.receive()
        return self.pushed


@asynccontextmanager
async def connected(node: Node, key: str | None = None) -> AsyncIterator[Daemon]:
    headers = [(b"Authorization", f"Bearer {key or node.daemon_key}".encode())]
    url = urlsplit(node.address)
    assert url.hostname is not None
    assert url.port is not None
    async with (
        await trio.open_tcp_stream(url.hostname, url.port) as stream,
        trio.open_nursery() as nursery,
    ):
        socket = await wrap_client_stream(
            nursery, stream, url.netloc, "/api/daemon/ws", extra_headers=headers
        )
        yield Daemon(node, socket)
        await socket.aclose()
        nursery.cancel_scope.cancel()


async def queue(node: Node, title: str, agent: str = "Nia", provider: str = "scripted") -> None:
    await node.person.post("/api/agents", json={"name": agent, "provider": provider})
    made = await node.person.post("/api/issues", json={"title": title, "agent": agent})
    assert made.status_code == 201, made.text


def titles(tasks: list[wire.ClaimedTask]) -> list[str]:
    return [task.issue.title for task in tasks if task.issue]


async def test_a_call_over_the_socket_is_answered_as_over_http(node: Node) -> None:
    async with connected(node) as daemon:
        (runtime_id,) = await daemon.register()
        heard = await daemon.ask("heartbeats", wire.Heartbeats(runtime_ids=[runtime_id]))
        assert heard.gone == []
        await queue(node, "Asked for")
        claimed = await daemon.ask("claim", wire.Nothing(), runtime_id)
        task = claimed.task
        started = await daemon.ask("start", wire.Held(claim_token=task.claim_token), task.id)
        assert started.status == "running"
        done = wire.Complete(claim_token=task.claim_token, output="Done.")
        assert (await daemon.ask("complete", done, task.id)).status == "completed"


async def test_a_refusal_is_an_answer_and_the_connection_goes_on(node: Node) -> None:
    """R4.6, R11.3"""
    async with connected(node) as daemon:
        unknown = uuid4()
        for name, subject, status in (
            ("start", unknown, 404),
            ("start", None, 400),
            ("claim", unknown, 404),
            ("heartbeat", None, 400),
        ):
            refusal = await daemon.ask(name, wire.Nothing(), subject)
            assert isinstance(refusal, Refusal)
            assert refusal.status == status
        stranger = Call(id=99, call="no such call")
        await daemon.socket.send_message(encode(Calls(payload=[stranger])))
        refused = (await daemon.answer_to(stranger)).refusal
        assert refused is not None
        assert refused.status == 400
        bad = Call(id=100, call="start", subject=unknown, body=msgspec.Raw(b'{"claim_token":5}'))
        await daemon.socket.send_message(encode(Calls(payload=[bad])))
        refused = (await daemon.answer_to(bad)).refusal
        assert refused is not None
        assert "claim_token" in refused.error


async def test_runtimes_that_the_server_does_not_know_are_named(node: Node) -> None:
    """R4.7"""
    async with connected(node) as daemon:
        unknown = uuid4()
        (mine,) = await daemon.register()
        heard = await daemon.ask("heartbeats", wire.Heartbeats(runtime_ids=[mine, unknown]))
        assert heard.gone == [unknown]


async def test_tasks_are_pushed_under_credit_and_never_more(node: Node) -> None:
    """R3.10, R9.6"""
    for number in range(5):
        await queue(node, f"Issue {number}")
    async with connected(node) as daemon:
        runtime_ids = await daemon.register()
        await daemon.grant(2, runtime_ids)
        assert titles(await daemon.wait_pushed(2)) == ["Issue 0", "Issue 1"]
        await daemon.ask("heartbeats", wire.Heartbeats(runtime_ids=runtime_ids))
        await daemon.grant(2, runtime_ids)  # Said again: not two more.
        await daemon.ask("heartbeats", wire.Heartbeats(runtime_ids=runtime_ids))
        assert len(daemon.pushed) == 2
        await daemon.grant(3, runtime_ids)
        assert titles(await daemon.wait_pushed(3))[2:] == ["Issue 2"]


async def test_what_is_assigned_reaches_an_idle_daemon_at_once(node: Node) -> None:
    """R3.10"""
    async with connected(node) as daemon:
        await daemon.grant(1, await daemon.register())
        await queue(node, "Fresh")
        assert titles(await daemon.wait_pushed(1)) == ["Fresh"]
        assert daemon.pushed[0].claim_token is not None


async def test_two_runtimes_of_a_daemon_share_its_credit(node: Node) -> None:
    for number in range(3):
        await queue(node, f"S{number}")
        await queue(node, f"C{number}", agent="Cleo", provider="claude")
    async with connected(node) as daemon:
        runtime_ids = await daemon.register("scripted", "claude")
        await daemon.grant(4, runtime_ids)
        await daemon.wait_pushed(4)
        await daemon.ask("heartbeats", wire.Heartbeats(runtime_ids=runtime_ids))
        assert len(daemon.pushed) == 4
        await daemon.grant(6, runtime_ids)
        pushed = await daemon.wait_pushed(6)
        assert sorted(titles(pushed)) == ["C0", "C1", "C2", "S0", "S1", "S2"]
        assert all(task.provider == ("claude" if title[0] == "C" else "scripted")
                   for task, title in zip(pushed, titles(pushed), strict=True))  # fmt: skip


async def test_a_runtime_of_somebody_else_cannot_be_attached(node: Node) -> None:
    """Credit counts for what was registered over this connection."""
    async with connected(node) as mine, connected(node) as other:
        runtime_ids = await mine.register()
        await queue(node, "Mine")
        await other.grant(5, runtime_ids)
        await other.register(daemon_id="laptop-2")
        await mine.grant(1, runtime_ids)
        assert titles(await mine.wait_pushed(1)) == ["Mine"]
        assert other.pushed == []


async def test_a_task_pushed_to_a_connection_that_died_is_pushed_again_after_its_lease(
    node: Node,
) -> None:
    """R3.4, R3.8"""
    await queue(node, "Lost on the way")
    async with connected(node) as daemon:
        await daemon.grant(1, await daemon.register())
        first = (await daemon.wait_pushed(1))[0]
    await node.database.pool.execute(
        "update understudy.tasks set claim_expires_at = now() - interval '1 second' where id = $1",
        first.id,
    )
    async with connected(node) as daemon:
        await daemon.grant(1, await daemon.register())
        again = (await daemon.wait_pushed(1))[0]
        assert again.id == first.id
        assert again.claim_token != first.claim_token
        stale = wire.Held(claim_token=first.claim_token)
        refusal = await daemon.ask("start", stale, first.id)
        assert refusal.status == 409


@pytest.mark.parametrize("garbage", ["{", "[]", '{"type": "other"}', "[" * 5000, b"\xff\x00"])
async def test_garbage_closes_the_connection_and_says_why(node: Node, garbage: str | bytes) -> None:
    async with connected(node) as daemon:
        await daemon.socket.send_message(garbage)
        with trio.fail_after(30), pytest.raises(ConnectionClosed) as closed:
            await daemon.socket.get_message()
        assert closed.value.reason is not None
        assert closed.value.reason.code == 1008


async def test_silence_closes_the_connection(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_socket, "SILENCE_S", 0.3)
    async with connected(node) as daemon:
        with trio.fail_after(30), pytest.raises(ConnectionClosed) as closed:
            await daemon.socket.get_message()
        assert closed.value.reason is not None
        assert closed.value.reason.code == 1001


async def test_a_node_that_stops_says_goodbye(node: Node) -> None:
    async with connected(node) as daemon:
        await daemon.register()
        node.site.stopping.set()
        with trio.fail_after(30):
            assert isinstance(decode_from_server(await daemon.socket.get_message()), Bye)
            with pytest.raises(ConnectionClosed) as closed:
                await daemon.socket.get_message()
        assert closed.value.reason is not None
        assert closed.value.reason.code == 1012


@pytest.mark.parametrize("which", ["unknown", "login"])
async def test_without_a_machines_key_there_is_no_connection(node: Node, which: str) -> None:
    key = "usd_unknown"
    if which == "login":
        key = (await node.person.post("/api/login/links")).json()["path"].rpartition("/")[2]
    rejected = pytest.RaisesExc(
        ConnectionRejected, check=lambda error: error.status_code in {401, 403}
    )
    with pytest.RaisesGroup(rejected):
        async with connected(node, key):
            pass


async def test_what_is_said_of_one_task_is_stored_in_the_order_it_was_said(node: Node) -> None:
    """R6.9: calls of one frame run side by side; those of one task take turns."""
    await queue(node, "Talkative")
    async with connected(node) as daemon:
        await daemon.grant(1, await daemon.register())
        task = (await daemon.wait_pushed(1))[0]
        token = task.claim_token
        await daemon.ask("start", wire.Held(claim_token=token), task.id)
        said = [wire.Progress(summary=str(step), claim_token=token) for step in range(100)]
        calls = [daemon.book.call("progress", each, task.id) for each in said]
        await daemon.socket.send_message(encode(Calls(payload=calls)))
        for call in calls:
            assert (await daemon.answer_to(call)).refusal is None
    rows = await node.database.pool.fetch(
        "select payload ->> 'summary' as step from understudy.events"
        " where kind = 'task:progress' order by id"
    )
    assert [int(row["step"]) for row in rows] == list(range(100))


async def test_a_thousand_calls_at_once_are_all_answered(node: Node) -> None:
    async with connected(node) as daemon:
        runtime_ids = await daemon.register()
        beats = wire.Heartbeats(runtime_ids=runtime_ids)
        calls = [daemon.book.call("heartbeats", beats) for _ in range(1000)]
        for first in range(0, 1000, 100):
            await daemon.socket.send_message(encode(Calls(payload=calls[first : first + 100])))
        for call in calls:
            assert (await daemon.answer_to(call)).refusal is None


async def test_a_compatible_daemon_beats_over_the_socket_and_hears_that_there_is_work(
    node: Node,
) -> None:
    """Spec section 12: it grants no credit; it is told to claim."""
    body = {
        "workspace_id": str(node.workspace.id),
        "daemon_id": "old",
        "runtimes": [{"type": "scripted"}],
    }
    registered = await node.machine.post("/api/daemon/register", json=body)
    runtime_id = registered.json()["runtimes"][0]["id"]
    async with connected(node) as daemon:
        await daemon.socket.send_message(
            f'{{"type": "daemon:heartbeat", "payload": {{"runtime_id": "{runtime_id}"}}}}'
        )
        assert await frame(daemon, "daemon:heartbeat_ack") == {
            "runtime_id": runtime_id,
            "status": "ok",
            "runtime_gone": False,
            "server_capabilities": ["claim-lease", "fenced-reports"],
        }
        await frame(daemon, "daemon:task_available")
        await queue(node, "Old")
        assert (await frame(daemon, "daemon:task_available"))["runtime_id"] == runtime_id
        claim = await node.machine.post(f"/api/daemon/runtimes/{runtime_id}/tasks/claim")
        assert claim.json()["task"]
        await daemon.socket.send_message(
            '{"type": "daemon:heartbeat", "payload": {"runtime_id": "nonsense"}}'
        )
        assert (await frame(daemon, "daemon:heartbeat_ack"))["runtime_gone"]


async def frame(daemon: Daemon, kind: str) -> Any:
    """The next one of this kind."""
    with trio.fail_after(30):
        while (found := msgspec.json.decode(await daemon.socket.get_message()))["type"] != kind:
            pass
    return found["payload"]
