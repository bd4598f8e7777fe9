"""The server over streams in memory; a few tests on real sockets at the end."""

from __future__ import annotations

import gc
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial

import httpx2
import pytest
import trio
import trio_websocket
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, Scope
from quart import Response, request, websocket
from quart_trio import QuartTrio
from trio.testing import MockClock, wait_all_tasks_blocked

from understudy.http.connection import FAREWELL_S
from understudy.http.serve import (
    CannotListen,
    LifespanFailed,
    ServeConfig,
    open_listeners,
    serve,
)
from understudy.testing.client import open_client
from understudy.testing.network import MemoryNetwork
from understudy.testing.streams import MemoryStream

CONFIG = ServeConfig(
    keep_alive_s=75,
    head_s=20,
    send_s=10,
    graceful_s=5,
    body_max_bytes=60_000,
    websocket_message_max_bytes=100_000,
)
UPGRADE = (
    b"GET %b HTTP/1.1\r\nhost: server\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@dataclass
class Diary:
    """What the app has lived through."""

    events: list[str] = field(default_factory=list)
    websockets: int = 0


def make_app(stopping: trio.Event, diary: Diary) -> QuartTrio:
    app = QuartTrio("served")
    app.config["MAX_CONTENT_LENGTH"] = 1000

    @app.after_serving
    async def closed() -> None:
        diary.events.append("closed")

    add_requests(app, diary)
    add_streams(app, stopping)
    add_websockets(app, stopping, diary)
    add_trying_websockets(app, diary)
    return app


def add_requests(app: QuartTrio, diary: Diary) -> None:
    @app.get("/")
    async def index() -> str:
        return "hello"

    @app.post("/echo")
    async def repeat() -> str | bytes:
        return await request.get_data(as_text=False)

    @app.post("/refusing")
    async def refuse() -> tuple[str, int]:
        return "not for you", 401

    @app.post("/unread")
    async def leave_unread() -> str:
        await trio.sleep_forever()
        raise AssertionError

    @app.get("/slow")
    async def slow() -> str:
        diary.events.append("slow")
        try:
            await trio.sleep(float(request.args["s"]))
        except trio.Cancelled:
            diary.events.append("cancelled")
            raise
        return "done"


def add_streams(app: QuartTrio, stopping: trio.Event) -> None:
    async def pour() -> AsyncIterator[bytes]:
        while True:
            yield bytes(65_536)

    async def tell() -> AsyncIterator[bytes]:
        yield b": hello\n\n"
        await stopping.wait()
        yield b"event: bye\ndata: {}\n\n"

    def endless(body: AsyncIterator[bytes]) -> Response:
        response = Response(body, content_type="text/event-stream")
        response.timeout = None
        return response

    @app.get("/firehose")
    async def firehose() -> Response:
        return endless(pour())

    @app.get("/events")
    async def events() -> Response:
        return endless(tell())


def add_websockets(app: QuartTrio, stopping: trio.Event, diary: Diary) -> None:
    async def say_goodbye(nursery: trio.Nursery) -> None:
        await stopping.wait()
        await websocket.close(1012, "restarting")
        nursery.cancel_scope.cancel()

    @app.websocket("/echo")
    async def echo() -> None:
        await websocket.accept()
        diary.websockets += 1
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(say_goodbye, nursery)
                while True:
                    await websocket.send(await websocket.receive())
        finally:
            diary.websockets -= 1


def add_trying_websockets(app: QuartTrio, diary: Diary) -> None:
    @app.websocket("/flood")
    async def flood() -> None:
        await websocket.accept()
        while True:
            await websocket.send("news")

    @app.websocket("/chorus")
    async def chorus() -> None:
        async def sing() -> None:
            while True:
                await websocket.send(bytes(300_000))

        await websocket.accept()
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(sing)
        finally:
            diary.events.append("silence")

    @app.websocket("/stubborn")
    async def stubborn() -> None:
        await websocket.accept()
        await trio.sleep_forever()


@dataclass
class Site:
    network: MemoryNetwork
    stopping: trio.Event
    diary: Diary
    ended: trio.Event

    async def connect(self) -> MemoryStream:
        return await self.network.connect("server", 80)

    async def is_answering(self) -> bool:
        with trio.fail_after(30):
            answer = await say(await self.connect(), get("/", b"connection: close\r\n"))
        return answer.endswith(b"hello")


@pytest.fixture
async def site(nursery: trio.Nursery) -> Site:
    stopping, diary = trio.Event(), Diary()
    return await start(nursery, make_app(stopping, diary), stopping, diary)


async def start(
    nursery: trio.Nursery, app: ASGIFramework, stopping: trio.Event, diary: Diary
) -> Site:
    network, ended = MemoryNetwork(), trio.Event()

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        listeners = [network.listen("server", 80)]
        await serve(app, listeners, config=CONFIG, stopping=stopping, task_status=task_status)
        ended.set()

    await nursery.start(run)
    return Site(network, stopping, diary, ended)


def get(path: str, headers: bytes = b"") -> bytes:
    return b"GET %b HTTP/1.1\r\nhost: server\r\n%b\r\n" % (path.encode(), headers)


async def say(stream: MemoryStream, raw: bytes) -> bytes:
    """Send, then hear until the server closes."""
    await stream.send_all(raw)
    return await hear(stream)


async def hear(stream: MemoryStream) -> bytes:
    heard = b""
    while data := await stream.receive_some():
        heard += data
    await stream.aclose()
    return heard


async def open_websocket(
    site: Site, nursery: trio.Nursery, path: str
) -> trio_websocket.WebSocketConnection:
    stream = await site.connect()
    return await trio_websocket.wrap_client_stream(
        nursery,
        stream,  # type: ignore[arg-type]  # any stream will do
        "server",
        path,
    )


async def read_close_code(connection: trio_websocket.WebSocketConnection) -> int:
    with pytest.raises(trio_websocket.ConnectionClosed) as caught:
        await connection.get_message()
    assert caught.value.reason is not None
    code: int = caught.value.reason.code
    return code


async def test_a_byte_behind_an_upgrade_ends_only_its_own_connection(
    site: Site, autojump_clock: MockClock
) -> None:
    """D1: stock Hypercorn ends the process."""
    answer = await say(await site.connect(), UPGRADE % b"/echo" + b"x")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert await site.is_answering()


async def test_a_handler_that_only_sends_cannot_freeze_the_loop(
    site: Site, autojump_clock: MockClock
) -> None:
    """D2: on stock Hypercorn this test never ends."""
    stream = await site.connect()
    await stream.send_all(UPGRADE % b"/flood")
    await stream.receive_some()
    await stream.aclose()
    assert await site.is_answering()


async def test_a_peer_that_reads_nothing_is_cut(site: Site, autojump_clock: MockClock) -> None:
    """D3: stock Hypercorn waits for ever."""
    stream = await site.connect()
    await stream.send_all(get("/firehose"))
    await trio.sleep(CONFIG.send_s + 1)
    with pytest.raises(trio.BrokenResourceError):
        await stream.send_all(b"are you there?")


async def test_many_who_send_to_a_peer_that_reads_nothing_wait_only_once(
    site: Site, autojump_clock: MockClock
) -> None:
    """D3: each of them has to learn that the first one gave up."""
    stream = await site.connect()
    await stream.send_all(UPGRADE % b"/chorus")
    await trio.sleep(CONFIG.send_s + 1)
    assert site.diary.events == ["silence"]


async def test_a_peer_that_reads_slowly_is_not_cut(site: Site, autojump_clock: MockClock) -> None:
    stream = await site.connect()
    await stream.send_all(get("/firehose"))
    for _ in range(10):
        await trio.sleep(CONFIG.send_s - 1)
        taken = 0
        while taken < 300_000:
            taken += len(await stream.receive_some())


async def test_a_peer_that_reads_nothing_cannot_hold_up_the_stop(
    site: Site, autojump_clock: MockClock
) -> None:
    """D3: stock Hypercorn's shutdown hangs until the peer goes."""
    stream = await site.connect()
    await stream.send_all(get("/firehose"))
    await wait_all_tasks_blocked()
    site.stopping.set()
    with trio.fail_after(CONFIG.graceful_s + 3):
        await site.ended.wait()


async def test_an_idle_connection_is_closed_after_its_last_request(
    site: Site, autojump_clock: MockClock
) -> None:
    """D4: on stock Quart-trio and Hypercorn idle connections stay open for ever."""
    stream = await site.connect()
    for _ in range(3):
        await stream.send_all(get("/"))
        assert await stream.receive_some()
        await trio.sleep(CONFIG.keep_alive_s - 1)
    await stream.send_all(get("/"))
    assert await stream.receive_some()
    answered_at = trio.current_time()
    assert await hear(stream) == b""
    assert trio.current_time() - answered_at == CONFIG.keep_alive_s


async def test_stopping_closes_an_idle_connection_at_once(
    site: Site, autojump_clock: MockClock
) -> None:
    """D4: with stock Hypercorn one idle connection costs the whole of the grace period."""
    stream = await site.connect()
    await stream.send_all(get("/"))
    await stream.receive_some()
    stopped_at = trio.current_time()
    site.stopping.set()
    assert await hear(stream) == b""
    await site.ended.wait()
    assert trio.current_time() == stopped_at


async def test_a_crash_among_the_apps_background_tasks_ends_serving(
    autojump_clock: MockClock,
) -> None:
    """D5: stock Hypercorn goes on answering, with an app that is dead inside."""
    app = QuartTrio("fragile")

    async def crash() -> None:
        raise ZeroDivisionError

    @app.before_serving
    async def begin() -> None:
        app.nursery.start_soon(crash)

    door = MemoryNetwork().listen("server", 80)
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        await serve(app, [door], config=CONFIG, stopping=trio.Event())


async def test_a_head_that_never_ends_is_cut_however_busily_it_trickles(
    site: Site, autojump_clock: MockClock
) -> None:
    stream = await site.connect()
    await stream.send_all(b"GET / HTTP/1.1\r\n")
    with pytest.raises(trio.BrokenResourceError):
        while True:
            await trio.sleep(1)
            await stream.send_all(b"a: b\r\n")
    assert trio.current_time() == pytest.approx(CONFIG.head_s, abs=2)


async def test_a_connection_that_says_nothing_is_cut(site: Site, autojump_clock: MockClock) -> None:
    assert await hear(await site.connect()) == b""
    assert trio.current_time() == CONFIG.head_s


async def test_a_second_head_has_no_more_time_than_the_first(
    site: Site, autojump_clock: MockClock
) -> None:
    stream = await site.connect()
    await stream.send_all(get("/"))
    await stream.receive_some()
    await trio.sleep(10)
    assert await say(stream, b"GET") == b""
    assert trio.current_time() == 10 + CONFIG.head_s


async def test_a_stopping_server_refuses_newcomers_while_a_request_still_runs(
    site: Site, autojump_clock: MockClock
) -> None:
    stream = await site.connect()
    await stream.send_all(get("/slow?s=4"))
    await wait_all_tasks_blocked()
    site.stopping.set()
    await wait_all_tasks_blocked()
    with pytest.raises(ConnectionRefusedError):
        await site.connect()
    assert (await hear(stream)).endswith(b"done")
    await site.ended.wait()
    assert site.diary.events == ["slow", "closed"]


async def test_a_request_longer_than_the_grace_period_is_cancelled(
    site: Site, autojump_clock: MockClock
) -> None:
    stream = await site.connect()
    await stream.send_all(get("/slow?s=40"))
    await wait_all_tasks_blocked()
    site.stopping.set()
    assert (await hear(stream)).startswith(b"HTTP/1.1 500 ")
    assert trio.current_time() == CONFIG.graceful_s
    await site.ended.wait()
    assert site.diary.events == ["slow", "cancelled", "closed"]


async def test_stopping_ends_a_websocket_with_1012(
    site: Site, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    connection = await open_websocket(site, nursery, "/echo")
    await connection.send_message("one")
    assert await connection.get_message() == "one"
    site.stopping.set()
    assert await read_close_code(connection) == 1012
    await site.ended.wait()
    assert trio.current_time() == 0
    assert site.diary == Diary(["closed"], websockets=0)


async def test_stopping_ends_a_stream_with_bye(site: Site, autojump_clock: MockClock) -> None:
    stream = await site.connect()
    await stream.send_all(get("/events"))
    await wait_all_tasks_blocked()
    site.stopping.set()
    answer = await hear(stream)
    assert answer.endswith(b"event: bye\ndata: {}\n\n\r\n0\r\n\r\n")
    await site.ended.wait()
    assert trio.current_time() == 0


async def test_a_websocket_that_ignores_the_stop_is_closed_after_the_grace_period(
    site: Site, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    connection = await open_websocket(site, nursery, "/stubborn")
    site.stopping.set()
    assert await read_close_code(connection) == 1011
    assert trio.current_time() == CONFIG.graceful_s
    await site.ended.wait()


@pytest.mark.parametrize("path", ["/slow?s=1000", "/events"])
async def test_a_peer_that_leaves_ends_its_request(
    site: Site, autojump_clock: MockClock, path: str
) -> None:
    stream = await site.connect()
    await stream.send_all(get(path))
    await wait_all_tasks_blocked()
    stream.reset()
    await wait_all_tasks_blocked()
    site.stopping.set()
    await site.ended.wait()
    assert trio.current_time() == 0


async def test_a_websocket_peer_that_leaves_ends_its_handler(
    site: Site, autojump_clock: MockClock
) -> None:
    stream = await site.connect()
    await stream.send_all(UPGRADE % b"/echo")
    await stream.receive_some()
    await wait_all_tasks_blocked()
    assert site.diary.websockets == 1
    stream.reset()
    await wait_all_tasks_blocked()
    assert site.diary.websockets == 0


async def test_an_oversized_body_is_answered_with_413_and_no_more_of_it_is_taken(
    site: Site, autojump_clock: MockClock
) -> None:
    stream = await site.connect()
    await stream.send_all(
        b"POST /echo HTTP/1.1\r\nhost: server\r\ncontent-length: 9000000\r\n\r\n" + bytes(5000)
    )
    assert (await hear(stream)).startswith(b"HTTP/1.1 413 ")
    assert await site.is_answering()


@pytest.mark.parametrize("path", [b"/echo", b"/unread"])
async def test_a_body_without_an_end_is_answered_with_413(
    site: Site, autojump_clock: MockClock, path: bytes
) -> None:
    """Quart 0.23 would collect a chunked body of any size for as long as its BODY_TIMEOUT."""
    stream = await site.connect()
    await stream.send_all(
        b"POST %b HTTP/1.1\r\nhost: server\r\ntransfer-encoding: chunked\r\n\r\n" % path
    )
    chunk = b"1000\r\n" + bytes(0x1000) + b"\r\n"
    sent = 0
    with pytest.raises(trio.BrokenResourceError):
        while sent < 100 * CONFIG.body_max_bytes:
            await stream.send_all(chunk)
            sent += len(chunk)
            await trio.sleep(0.1)
    assert (await hear(stream)).startswith(b"HTTP/1.1 413 ")
    assert await site.is_answering()


async def test_a_refusal_arrives_although_the_peer_is_still_sending(
    site: Site, autojump_clock: MockClock
) -> None:
    stream = await site.connect()
    await stream.send_all(
        b"POST /refusing HTTP/1.1\r\nhost: server\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    for _ in range(20):
        await stream.send_all(b"3e8\r\n" + bytes(1000) + b"\r\n")
    assert (await hear(stream)).endswith(b"not for you")


async def test_an_answer_to_a_request_not_heard_out_announces_that_the_connection_ends(
    bare_site: Site, autojump_clock: MockClock
) -> None:
    """A client that took it for reusable would lose its next request, and not know its fate."""
    stream = await bare_site.connect()
    await stream.send_all(b"POST / HTTP/1.1\r\nhost: server\r\ncontent-length: 5\r\n\r\n")
    answer = await stream.receive_some()
    assert b"\r\nconnection: close\r\n" in answer.lower()
    assert await hear(stream) == b""


async def test_an_oversized_websocket_message_is_answered_with_1009(
    site: Site, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    connection = await open_websocket(site, nursery, "/echo")
    await connection.send_message(bytes(CONFIG.websocket_message_max_bytes))
    assert len(await connection.get_message()) == CONFIG.websocket_message_max_bytes
    await connection.send_message(bytes(CONFIG.websocket_message_max_bytes + 1))
    assert await read_close_code(connection) == 1009


async def test_a_websocket_message_without_an_end_is_not_collected(
    site: Site, autojump_clock: MockClock
) -> None:
    """Stock Hypercorn answers 1009 and goes on collecting, until memory is gone."""
    stream = await site.connect()
    await stream.send_all(UPGRADE % b"/echo")
    await stream.receive_some()
    await stream.send_all(b"\x82\xff" + (2**40).to_bytes(8, "big") + b"mask")
    with pytest.raises(trio.BrokenResourceError):
        for _ in range(100):
            await stream.send_all(bytes(65_536))
            await trio.sleep(0.1)
    assert b"\x88\x02\x03\xf1" in await hear(stream)


async def test_a_websocket_that_breaks_the_protocol_hears_which_rule(
    site: Site, autojump_clock: MockClock
) -> None:
    """Stock Hypercorn drops the connection without a close frame: 1006."""
    stream = await site.connect()
    await stream.send_all(UPGRADE % b"/echo")
    await stream.receive_some()
    not_utf8 = b"\x81\x81\0\0\0\0\xff"
    answer = await say(stream, not_utf8)
    assert answer.startswith(b"\x88")
    assert int.from_bytes(answer[2:4], "big") == 1007


async def test_compression_is_declined(site: Site, autojump_clock: MockClock) -> None:
    stream = await site.connect()
    offer = b"\r\nsec-websocket-extensions: permessage-deflate\r\n\r\n"
    await stream.send_all((UPGRADE % b"/echo")[:-4] + offer)
    answer = await stream.receive_some()
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert b"deflate" not in answer


async def test_http2_is_refused_and_its_upgrade_ignored(
    site: Site, autojump_clock: MockClock
) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    assert (await say(await site.connect(), preface)).startswith(b"HTTP/1.1 505 ")
    h2c = b"upgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\nconnection: close\r\n"
    assert (await say(await site.connect(), get("/", h2c))).endswith(b"hello")


async def test_a_target_may_name_the_host(site: Site, autojump_clock: MockClock) -> None:
    absolute = get("http://anything/", b"connection: close\r\n")
    assert (await say(await site.connect(), absolute)).endswith(b"hello")


async def test_an_invalid_websocket_handshake_ends_the_connection(
    site: Site, autojump_clock: MockClock
) -> None:
    """Stock Hypercorn answers 400 and keeps the connection for ever."""
    handshake = (UPGRADE % b"/echo").replace(b"version: 13", b"version: 12")
    assert (await say(await site.connect(), handshake)).startswith(b"HTTP/1.1 400 ")
    assert trio.current_time() < CONFIG.head_s


async def test_a_response_is_one_packet(site: Site, autojump_clock: MockClock) -> None:
    stream = await site.connect()
    await stream.send_all(get("/"))
    assert (await stream.receive_some()).endswith(b"\r\n\r\nhello")


async def test_pipelined_requests_are_answered_in_order(
    site: Site, autojump_clock: MockClock
) -> None:
    stream = await site.connect()
    answer = await say(
        stream, get("/slow?s=9") + get("/") + get("/slow?s=1", b"connection: close\r\n")
    )
    assert [part.split(b"\r\n\r\n")[1][:5] for part in answer.split(b"HTTP/1.1 200 ")[1:]] == [
        b"done",
        b"hello",
        b"done",
    ]


async def test_a_peer_that_pipelines_and_leaves_is_forgotten(
    site: Site, autojump_clock: MockClock
) -> None:
    """Stock Hypercorn's reader waits for ever for the end of a response that broke off."""
    stream = await site.connect()
    await stream.send_all(get("/firehose") + get("/"))
    await wait_all_tasks_blocked()
    stream.reset()
    await wait_all_tasks_blocked()
    stopped_at = trio.current_time()
    site.stopping.set()
    await site.ended.wait()
    assert trio.current_time() == stopped_at


async def test_a_client_in_memory_keeps_its_connection(
    site: Site, autojump_clock: MockClock
) -> None:
    async with open_client(site.network, "http://server") as client:
        for body in (b"one", b"two"):
            response = await client.post("/echo", content=body)
            assert response.content == body
        assert site.network.connections_made == 1
        await trio.sleep(CONFIG.keep_alive_s + 1)
        assert (await client.get("/")).text == "hello"
        assert site.network.connections_made == 2


async def bare_app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """What no framework would do: crash, ignore its peer, answer before it has listened."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        return
    assert scope["type"] == "http"
    if scope["path"] == "/crash":
        raise ZeroDivisionError
    if scope["path"] == "/deaf":
        await trio.sleep_forever()
    if scope["path"] == "/dither":
        await receive()
        for _ in range(int(scope["query_string"])):
            await trio.lowlevel.checkpoint()
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


@pytest.fixture
async def bare_site(nursery: trio.Nursery) -> Site:
    return await start(nursery, bare_app, trio.Event(), Diary())


async def test_an_app_that_crashes_is_answered_for_with_500(
    bare_site: Site, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        answer = await say(await bare_site.connect(), get("/crash"))
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert caplog.messages == ["the app crashed on /crash"]


async def test_an_app_that_ignores_its_peers_leaving_is_cancelled(
    bare_site: Site, autojump_clock: MockClock
) -> None:
    stream = await bare_site.connect()
    await stream.send_all(get("/deaf"))
    await wait_all_tasks_blocked()
    stream.reset()
    await trio.sleep(FAREWELL_S + 1)
    bare_site.stopping.set()
    await bare_site.ended.wait()
    assert trio.current_time() == FAREWELL_S + 1


async def test_app_and_server_never_both_answer(
    bare_site: Site, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The app answers while the server finds the body too long: whoever is first is heard."""
    head = b"POST /dither?%d HTTP/1.1\r\nhost: server\r\ntransfer-encoding: chunked\r\n\r\n"
    most = b"%x\r\n%b\r\n" % (CONFIG.body_max_bytes, bytes(CONFIG.body_max_bytes))
    for steps in [0, 1, 2, 3] * 8:  # The schedule decides who is first.
        answer = await say(await bare_site.connect(), head % steps + most + b"1\r\nx\r\n")
        assert answer.count(b"HTTP/1.1 ") == 1
    assert caplog.messages == []


class BuggyStream(trio.abc.HalfCloseableStream):
    """Stands for every crash that nobody has thought of."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        raise ZeroDivisionError

    async def send_all(self, data: object) -> None: ...
    async def wait_send_all_might_not_block(self) -> None: ...
    async def send_eof(self) -> None: ...
    async def aclose(self) -> None: ...


class BuggyListener(trio.abc.Listener[BuggyStream]):
    def __init__(self) -> None:
        self.accepted = 0

    async def accept(self) -> BuggyStream:
        if self.accepted == 3:
            await trio.sleep_forever()
        self.accepted += 1
        return BuggyStream()

    async def aclose(self) -> None: ...


async def test_a_crash_in_a_connection_spares_the_others(
    nursery: trio.Nursery, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """D1, whatever the crash may be."""
    listener, stopping = BuggyListener(), trio.Event()
    await nursery.start(partial(serve, bare_app, [listener], config=CONFIG, stopping=stopping))
    await wait_all_tasks_blocked()
    assert caplog.messages == ["a connection crashed"] * 3


async def test_a_connection_serves_thousands_of_requests(
    bare_site: Site, autojump_clock: MockClock
) -> None:
    stream = await bare_site.connect()
    for _ in range(1200):
        await stream.send_all(get("/"))
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 204 ")


async def test_an_app_that_cannot_start_fails_the_caller(autojump_clock: MockClock) -> None:
    app = QuartTrio("unready")

    @app.before_serving
    async def begin() -> None:
        raise LookupError("no database")

    with pytest.RaisesGroup(
        pytest.RaisesExc(LifespanFailed, match="no database"), flatten_subgroups=True
    ):
        await serve(app, [], config=CONFIG, stopping=trio.Event())


async def test_an_app_that_cannot_end_is_left_behind(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async def sticky(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await trio.sleep_forever()

    site = await start(nursery, sticky, trio.Event(), Diary())
    site.stopping.set()
    with trio.fail_after(60):
        await site.ended.wait()


async def test_an_app_that_cannot_start_leaves_no_port_taken() -> None:
    app = QuartTrio("unready")

    @app.before_serving
    async def begin() -> None:
        raise LookupError

    (listener,) = await open_listeners("127.0.0.1", 0)
    port = listener.socket.getsockname()[1]
    with pytest.RaisesGroup(LifespanFailed, flatten_subgroups=True):
        await serve(app, [listener], config=CONFIG, stopping=trio.Event())
    (again,) = await open_listeners("127.0.0.1", port)
    await again.aclose()


async def test_a_port_in_use_says_which_and_what_to_do() -> None:
    (listener,) = await open_listeners("127.0.0.1", 0)
    port = listener.socket.getsockname()[1]
    async with listener:
        with pytest.raises(CannotListen, match=rf"127\.0\.0\.1:{port} is in use: stop the pro"):
            await open_listeners("127.0.0.1", port)


async def test_an_address_of_another_machine_says_so() -> None:
    with pytest.raises(CannotListen, match=r"192\.0\.2\.1 is not an address of this machine"):
        await open_listeners("192.0.2.1", 0)


@pytest.fixture
async def port(nursery: trio.Nursery) -> int:
    """The same app on a real socket."""
    stopping = trio.Event()
    app = make_app(stopping, Diary())
    listeners = await open_listeners("127.0.0.1", 0)
    await nursery.start(partial(serve, app, listeners, config=CONFIG, stopping=stopping))
    bound: int = listeners[0].socket.getsockname()[1]
    return bound


async def test_real_sockets_carry_requests_and_websockets(port: int) -> None:
    with trio.fail_after(30):
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            assert (await client.get("/")).text == "hello"
        address = f"ws://127.0.0.1:{port}/echo"
        async with trio_websocket.open_websocket_url(address) as connection:
            await connection.send_message("one")
            assert await connection.get_message() == "one"


async def test_a_real_socket_gets_its_413_before_the_reset(port: int) -> None:
    with trio.fail_after(30):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(
            b"POST /echo HTTP/1.1\r\nhost: server\r\ncontent-length: 50000\r\n\r\n" + bytes(50_000)
        )
        answer = await stream.receive_some()
        assert answer.startswith(b"HTTP/1.1 413 ")
        await stream.aclose()


async def test_a_real_peer_that_resets_is_no_crash(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    with trio.fail_after(30):
        for _ in range(20):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            stream.socket.setsockopt(
                trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
            )
            await stream.send_all(get("/"))
            await stream.aclose()
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            assert (await client.get("/")).text == "hello"
    assert "a connection crashed" not in caplog.messages
    gc.collect()
