from __future__ import annotations

import httpx2
import pytest
import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope
from trio.testing import MockClock, check_half_closeable_stream, wait_all_tasks_blocked

from understudy.http.serve import ServeConfig, serve
from understudy.testing.client import open_client
from understudy.testing.network import (
    Answer,
    Cut,
    Delay,
    MemoryNetwork,
    Refuse,
    Script,
    Vanish,
)
from understudy.testing.streams import PIPE_MAX, MemoryStream, open_memory_pair


async def make_pair() -> tuple[MemoryStream, MemoryStream]:
    return open_memory_pair()


async def make_clogged_pair() -> tuple[MemoryStream, MemoryStream]:
    near, far = open_memory_pair()
    await near.send_all(bytes(PIPE_MAX))
    await far.send_all(bytes(PIPE_MAX))
    return near, far


async def test_a_memory_stream_behaves_as_trio_asks_of_streams() -> None:
    with trio.fail_after(60):
        await check_half_closeable_stream(make_pair, make_clogged_pair)


async def test_latency_is_exact(autojump_clock: MockClock) -> None:
    near, far = open_memory_pair(latency_s=0.05)
    await near.send_all(b"ping")
    await far.send_all(await far.receive_some())
    assert await near.receive_some() == b"ping"
    assert trio.current_time() == pytest.approx(0.1)


async def test_bytes_under_way_arrive_before_the_reset(autojump_clock: MockClock) -> None:
    near, far = open_memory_pair(latency_s=1)
    await near.send_all(b"last words")
    near.reset()
    assert await far.receive_some() == b"last words"
    for stream in (near, far):
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"hello?")


async def test_sending_to_a_peer_that_has_closed_breaks() -> None:
    near, far = open_memory_pair()
    await far.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await near.send_all(b"hello?")


async def test_an_idle_stream_is_readable_once_its_peer_has_closed() -> None:
    near, far = open_memory_pair()
    assert not near.is_readable()
    await far.aclose()
    assert near.is_readable()


async def test_a_closed_listener_resets_who_was_waiting_and_refuses_the_next() -> None:
    network = MemoryNetwork()
    listener = network.listen("server", 80)
    with pytest.raises(OSError, match="in use"):
        network.listen("server", 80)
    stream = await network.connect("server", 80)
    await listener.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await stream.receive_some()
    with pytest.raises(ConnectionRefusedError):
        await network.connect("server", 80)
    network.listen("server", 80)


async def connect(faults: Script) -> tuple[MemoryStream, MemoryStream]:
    network = MemoryNetwork(faults=faults)
    listener = network.listen("server", 80)
    return await network.connect("server", 80), await listener.accept()


async def test_each_end_knows_both_addresses() -> None:
    client, server = await connect(Script())
    assert client.peer == server.local == ("server", 80)
    assert client.local == server.peer == ("10.0.0.1", 40_001)


async def test_a_delayed_chunk_is_not_overtaken(autojump_clock: MockClock) -> None:
    script = Script()
    script.at_crossing("up", Delay(10))
    client, server = await connect(script)
    await client.send_all(b"first")
    await client.send_all(b"second")
    assert await server.receive_some() == b"first"
    assert await server.receive_some() == b"second"
    assert trio.current_time() == 10


async def test_nobody_is_told_of_what_vanishes(autojump_clock: MockClock) -> None:
    script = Script()
    script.at_crossing("up", Vanish())
    client, server = await connect(script)
    await client.send_all(b"lost")
    await client.send_all(b"lost too")
    await client.aclose()
    await server.send_all(b"are you there?")
    with pytest.raises(trio.TooSlowError), trio.fail_after(60):
        await server.receive_some()


async def test_a_cut_lets_a_part_through(autojump_clock: MockClock) -> None:
    script = Script()
    script.at_crossing("up", Cut(keep=3))
    client, server = await connect(script)
    await client.send_all(b"abcdef")
    assert await server.receive_some() == b"abc"
    with pytest.raises(trio.BrokenResourceError):
        await server.receive_some()


async def test_a_connection_may_be_refused_delayed_or_left_hanging(
    autojump_clock: MockClock,
) -> None:
    script = Script()
    script.at_connect(Refuse())
    with pytest.raises(ConnectionRefusedError):
        await connect(script)
    script.at_connect(Delay(7))
    await connect(script)
    assert trio.current_time() == 7
    script.at_connect(Vanish())
    with pytest.raises(trio.TooSlowError), trio.fail_after(60):
        await connect(script)


class Counter:
    """An app that counts the requests it has answered."""

    def __init__(self) -> None:
        self.answered = 0

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            return
        self.answered += 1
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def start(nursery: trio.Nursery, script: Script) -> tuple[MemoryNetwork, Counter]:
    network, counter = MemoryNetwork(faults=script), Counter()
    door = network.listen("server", 80)

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        config, stopping = ServeConfig(), trio.Event()
        await serve(counter, [door], config=config, stopping=stopping, task_status=task_status)

    await nursery.start(run)
    return network, counter


async def test_a_502_on_the_way_back_hides_work_that_was_done(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    script = Script()
    network, counter = await start(nursery, script)
    async with open_client(network, "http://server") as client:
        script.at_crossing("down", Answer(502))
        assert (await client.get("/")).status_code == 502
        assert counter.answered == 1
        assert (await client.get("/")).status_code == 204


async def test_a_502_on_the_way_there_means_nothing_was_done(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    script = Script()
    network, counter = await start(nursery, script)
    async with open_client(network, "http://server") as client:
        script.at_crossing("up", Answer(503))
        assert (await client.get("/")).status_code == 503
        await wait_all_tasks_blocked()
        assert counter.answered == 0


async def test_a_client_gives_up_on_a_black_hole_at_its_own_deadline(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    script = Script()
    network, counter = await start(nursery, script)
    async with open_client(network, "http://server") as client:
        script.at_crossing("down", Vanish())
        with pytest.raises(httpx2.ReadTimeout):
            await client.get("/", timeout=30)
        assert trio.current_time() == 30
        assert counter.answered == 1


async def test_a_client_sees_a_cut_and_a_refusal_as_what_they_are(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    script = Script()
    network, _ = await start(nursery, script)
    async with open_client(network, "http://server") as client:
        script.at_connect(Refuse())
        with pytest.raises(httpx2.ConnectError):
            await client.get("/")
        script.at_crossing("down", Cut(keep=20))
        with pytest.raises(httpx2.ReadError):
            await client.get("/")
        assert (await client.get("/")).status_code == 204
