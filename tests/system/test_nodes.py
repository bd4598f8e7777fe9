"""Two server processes on one database: they share the work, and one may die at any moment."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx2
import pytest
import trio
from trio_websocket import WebSocketConnection, wrap_client_stream

from understudy.core.struct import Struct
from understudy.store import people, tokens
from understudy.store.database import Database
from understudy.store.tokens import Owner
from understudy.testing.processes import free_port, open_machine
from understudy.wire import daemon as wire
from understudy.wire.frames import (
    Answer,
    Answers,
    CallBook,
    Calls,
    Cancel,
    Credit,
    CreditGranted,
    FromServer,
    TasksPushed,
    decode_from_server,
    encode,
)

PROMPTLY_S = 1.0
"""The poll behind the nudges comes every 2 s."""
LOOK_S = 0.1


@dataclass(frozen=True)
class Server:
    """A node: its process, and a person's way to it."""

    address: str
    process: trio.Process
    http: httpx2.AsyncClient

    async def post(self, path: str, **body: object) -> Any:
        answer = await self.http.post(path, json=body)
        assert answer.status_code < 300, answer.text
        return answer.json()

    async def get(self, path: str) -> Any:
        answer = await self.http.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def assign(self, title: str, agent: str = "Nia") -> str:
        """A new issue for this agent; the task's id."""
        made = await self.post("/api/issues", title=title, agent=agent)
        return str(made["task"]["id"])

    def kill(self) -> None:
        self.process.kill()


@dataclass(frozen=True)
class Fleet:
    """Two nodes that know of each other, an agent, and the key of machines."""

    database: Database
    workspace_id: UUID
    daemon_key: str
    first: Server
    second: Server


@pytest.fixture
async def fleet(dsn: str, database: Database) -> AsyncIterator[Fleet]:
    await database.pool.execute("truncate understudy.nodes")
    user, workspace = await people.first_user(database, name="Ada", email="ada@example.org")
    owner = Owner(user_id=user.id, workspace_id=workspace.id)
    personal = await tokens.create(database, "personal", owner)
    daemon_key = await tokens.create(database, "daemon", owner)
    async with open_machine() as machine, AsyncExitStack() as stack:
        nodes = []
        for port in (free_port(), free_port()):
            process = await machine.start("serve", "--port", str(port), "--database-url", dsn)
            address = f"http://127.0.0.1:{port}"
            headers = {"Authorization": f"Bearer {personal}"}
            client = httpx2.AsyncClient(base_url=address, headers=headers, trust_env=False)
            nodes.append(Server(address, process, await stack.enter_async_context(client)))
            await is_well(nodes[-1])
        await know_each_other(database)
        await nodes[0].post("/api/agents", name="Nia", provider="scripted", max_concurrent_tasks=50)
        yield Fleet(database, workspace.id, daemon_key, *nodes)


async def is_well(server: Server) -> None:
    with trio.fail_after(30):
        while True:
            try:
                if (await server.http.get("/api/health")).status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            await trio.sleep(LOOK_S)


async def know_each_other(database: Database) -> None:
    """Each has renewed its lease since the other came."""
    lines = """
        select count(*) = 2 and min(lease_expires_at) - interval '30 s' > max(started_at)
        from understudy.nodes where lease_expires_at > understudy.now()"""
    with trio.fail_after(30):
        while not await database.pool.fetchval(lines):  # noqa: ASYNC110  # Other processes'.
            await trio.sleep(LOOK_S)


class Daemon:
    """A machine's end of a connection to one node."""

    def __init__(self, fleet: Fleet, socket: WebSocketConnection) -> None:
        self._fleet = fleet
        self._socket = socket
        self._book = CallBook()
        self._answers: list[Answer] = []
        self.pushed: list[wire.ClaimedTask] = []
        self.cancelled: list[UUID] = []
        self.runtime_ids: list[UUID] = []

    async def ask(self, name: str, body: Struct, subject: UUID | None = None) -> Any:
        call = self._book.call(name, body, subject)
        await self._socket.send_message(encode(Calls(payload=[call])))
        while not (found := [each for each in self._answers if each.id == call.id]):
            await self.receive()
        self._answers.remove(found[0])
        return self._book.answered(found[0])

    async def receive(self) -> None:
        self._note(decode_from_server(await self._socket.get_message()))

    def _note(self, frame: FromServer) -> None:
        if isinstance(frame, Answers):
            self._answers += frame.payload
        elif isinstance(frame, TasksPushed):
            self.pushed += frame.payload
        elif isinstance(frame, Cancel):
            self.cancelled += [each.task_id for each in frame.payload]

    async def register(
        self, daemon_id: str, *, running: list[wire.ClaimedTask] | None = None
    ) -> wire.Registered:
        held = [
            wire.HeldTask(task_id=each.id, claim_token=each.claim_token) for each in running or []
        ]
        request = wire.Register(
            workspace_id=str(self._fleet.workspace_id),
            daemon_id=daemon_id,
            incarnation="the same",
            runtimes=[wire.RuntimeOffer(type="scripted")],
            inventory=wire.Inventory(running=held),
        )
        registered: wire.Registered = await self.ask("register", request)
        self.runtime_ids = [each.id for each in registered.runtimes]
        return registered

    async def grant(self, total: int) -> None:
        credit = Credit(total=total, runtime_ids=self.runtime_ids)
        await self._socket.send_message(encode(CreditGranted(payload=credit)))

    async def wait_pushed(self, count: int) -> None:
        while len(self.pushed) < count:
            await self.receive()

    async def start(self, task: wire.ClaimedTask) -> None:
        held = wire.Held(claim_token=task.claim_token)
        assert (await self.ask("start", held, task.id)).status == "running"

    async def complete(self, task: wire.ClaimedTask) -> None:
        done = wire.Complete(claim_token=task.claim_token, output="Done.")
        assert (await self.ask("complete", done, task.id)).status == "completed"


@asynccontextmanager
async def connected(
    fleet: Fleet, server: Server, daemon_id: str, *, running: list[wire.ClaimedTask] | None = None
) -> AsyncIterator[Daemon]:
    """A machine at this node, registered."""
    url = urlsplit(server.address)
    assert url.hostname is not None
    assert url.port is not None
    headers = [(b"Authorization", f"Bearer {fleet.daemon_key}".encode())]
    async with (
        await trio.open_tcp_stream(url.hostname, url.port) as stream,
        trio.open_nursery() as nursery,
    ):
        socket = await wrap_client_stream(
            nursery, stream, url.netloc, "/api/daemon/ws", extra_headers=headers
        )
        daemon = Daemon(fleet, socket)
        await daemon.register(daemon_id, running=running)
        yield daemon
        nursery.cancel_scope.cancel()


async def test_two_nodes_share_the_work_and_each_run_is_made_once(fleet: Fleet) -> None:
    count = 24
    async with (
        connected(fleet, fleet.first, "at the first") as one,
        connected(fleet, fleet.second, "at the second") as two,
    ):
        servers = cycle([fleet.first, fleet.second])
        wanted = {await next(servers).assign(f"Issue {number}") for number in range(count)}

        async def work(daemon: Daemon) -> None:
            """Two at a time, so that there is something left for the other."""
            for done in range(0, count // 2, 2):
                await daemon.grant(done + 2)
                await daemon.wait_pushed(done + 2)
                for task in daemon.pushed[-2:]:
                    await daemon.start(task)
                    await daemon.complete(task)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(work, one)
                nursery.start_soon(work, two)
    taken = [str(task.id) for task in one.pushed + two.pushed]
    assert len(taken) == count
    assert set(taken) == wanted
    rows = await fleet.second.get("/api/tasks")
    assert {row["status"] for row in rows} == {"completed"}


async def test_an_assignment_at_one_node_reaches_the_machine_at_the_other_promptly(
    fleet: Fleet,
) -> None:
    """R3.10"""
    async with connected(fleet, fleet.second, "laptop") as daemon:
        await daemon.grant(20)
        for number in range(8):
            await fleet.first.assign(f"Issue {number}")
            with trio.fail_after(PROMPTLY_S):
                await daemon.wait_pushed(number + 1)


async def test_a_cancel_given_at_one_node_reaches_the_run_at_the_other(fleet: Fleet) -> None:
    """R7.1"""
    async with connected(fleet, fleet.second, "laptop") as daemon:
        await daemon.grant(1)
        task_id = await fleet.first.assign("Never mind")
        with trio.fail_after(30):
            await daemon.wait_pushed(1)
        (task,) = daemon.pushed
        await daemon.start(task)
        asked = await fleet.first.post(f"/api/tasks/{task_id}/cancel")
        assert asked["outcome"] == "requested"
        with trio.fail_after(PROMPTLY_S):
            while not daemon.cancelled:
                await daemon.receive()
        assert daemon.cancelled == [task.id]
        stopped = wire.Held(claim_token=task.claim_token)
        assert (await daemon.ask("stopped", stopped, task.id)).status == "cancelled"
        shown = await fleet.first.get(f"/api/tasks/{task_id}")
        assert shown["task"]["status"] == "cancelled"


async def test_a_run_goes_on_while_its_machine_moves_to_the_other_node(fleet: Fleet) -> None:
    """R6.2: a daemon may connect to another node at any time."""
    async with connected(fleet, fleet.first, "laptop") as daemon:
        await daemon.grant(1)
        await fleet.second.assign("A long one")
        with trio.fail_after(30):
            await daemon.wait_pushed(1)
        (task,) = daemon.pushed
        await daemon.start(task)
    async with connected(fleet, fleet.second, "laptop", running=[task]) as daemon:
        await daemon.complete(task)
    assert [row["status"] for row in await fleet.first.get("/api/tasks")] == ["completed"]


async def test_of_a_killed_node_s_machines_only_those_that_do_not_come_back_are_judged(
    fleet: Fleet,
) -> None:
    """R4.4: nobody before 45 s; and who is at the other node by then goes on."""
    async with (
        connected(fleet, fleet.first, "stays away") as away,
        connected(fleet, fleet.first, "comes back") as daemon,
    ):
        await daemon.grant(1)
        await fleet.second.assign("Under way")
        with trio.fail_after(30):
            await daemon.wait_pushed(1)
        (task,) = daemon.pushed
        await daemon.start(task)
        fleet.first.kill()
        await fleet.first.process.wait()
    async with connected(fleet, fleet.second, "comes back", running=[task]) as daemon:
        await fleet.second.post("/api/sweeps/offline")
        assert await status_of(fleet, away) == "online"
        await pass_time(fleet)
        await fleet.second.post("/api/sweeps/offline")
        assert await status_of(fleet, away) == "offline"
        assert await status_of(fleet, daemon) == "online"
        await daemon.complete(task)
        await daemon.grant(1)
        await fleet.second.assign("The next one")
        with trio.fail_after(PROMPTLY_S):
            await daemon.wait_pushed(1)


async def status_of(fleet: Fleet, daemon: Daemon) -> str:
    [runtime_id] = daemon.runtime_ids
    status: str = await fleet.database.pool.fetchval(
        "select status from understudy.runtimes where id = $1", runtime_id
    )
    return status


async def pass_time(fleet: Fleet) -> None:
    """The leases are older, the dead node's and the living one's; so is what was heard."""
    await fleet.database.pool.execute(
        "update understudy.nodes set lease_since = lease_since - interval '90 s',"
        " lease_expires_at = case when address = $1 then lease_expires_at"
        " else lease_expires_at - interval '90 s' end",
        fleet.second.address,
    )
    await fleet.database.pool.execute(
        "update understudy.runtimes set last_seen_at = last_seen_at - interval '90 s'"
    )


@pytest.mark.slow
async def test_a_node_that_stops_in_good_order_says_that_it_leaves(fleet: Fleet) -> None:
    fleet.first.process.terminate()
    with trio.fail_after(30):
        assert await fleet.first.process.wait() == 0
    living = await fleet.database.pool.fetch(
        "select address from understudy.nodes where lease_expires_at > understudy.now()"
    )
    assert [row["address"] for row in living] == [fleet.second.address]
