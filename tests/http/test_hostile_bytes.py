"""Whatever a stranger sends ends at most the stranger's own connection."""

from __future__ import annotations

import logging
import struct
from dataclasses import dataclass

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from quart import request, websocket
from quart_trio import QuartTrio
from trio.testing import MockClock

from understudy.http.serve import ServeConfig, serve
from understudy.testing.network import MemoryNetwork
from understudy.testing.streams import MemoryStream

CONFIG = ServeConfig(
    keep_alive_s=60,
    head_s=10,
    send_s=10,
    graceful_s=2,
    body_max_bytes=50_000,
    websocket_message_max_bytes=50_000,
)
GET = b"GET / HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nhost: server\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"
UPGRADE_HEAD = (
    b"GET /echo HTTP/1.1\r\nhost: server\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\n"
)
KEY = b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
UPGRADE = UPGRADE_HEAD + KEY + b"\r\n"
TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(range(197))
H2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
H2_SETTINGS = bytes.fromhex("000000040000000000")

WITHOUT_UPGRADE: dict[str, bytes] = {
    "nothing": b"",
    "one NUL": b"\0",
    "many NULs": bytes(100_000),
    "high bytes": b"\xff" * 1000,
    "empty lines for ever": b"\r\n" * 20_000,
    "a TLS hello": TLS_HELLO,
    "an HTTP/2 preface": H2_PREFACE + H2_SETTINGS,
    "a broken HTTP/2 preface": H2_PREFACE[:-4] + b"XX\r\n\r\n",
    "an HTTP/2 upgrade": GET[:-2] + b"upgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n\r\n",
    "HTTP/2 frames after an upgrade": GET[:-2] + b"upgrade: h2c\r\n\r\n" + H2_PREFACE,
    "HTTP/0.9": b"GET /\r\n",
    "HTTP/1.0 without a host": b"GET / HTTP/1.0\r\n\r\n",
    "HTTP/9.9": b"GET / HTTP/9.9\r\nhost: server\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    "no method": b" / HTTP/1.1\r\nhost: server\r\n\r\n",
    "a method with a NUL": b"GE\0T / HTTP/1.1\r\nhost: server\r\n\r\n",
    "an unheard-of method": b"BREW / HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n",
    "CONNECT": b"CONNECT evil:443 HTTP/1.1\r\nhost: evil:443\r\n\r\n" + TLS_HELLO,
    "OPTIONS *": b"OPTIONS * HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n",
    "a query without a path": b"GET ?x HTTP/1.1\r\nhost: server\r\n\r\n",
    "a broken address as target": b"GET //[ HTTP/1.1\r\nhost: server\r\n\r\n",
    "a broken absolute target": b"GET http://[ HTTP/1.1\r\nhost: server\r\n\r\n",
    "a broken host in the target": b"GET http://[/ HTTP/1.1\r\nhost: server\r\n\r\n",
    "percent signs": b"GET /%ff%00%zz HTTP/1.1\r\nhost: server\r\n\r\n",
    "a target of 60 KB": b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\nhost: server\r\n\r\n",
    "a header of 60 KB": GET[:-2] + b"x: " + b"a" * 60_000 + b"\r\n\r\n",
    "a header that never ends": GET[:-2] + b"x: " + b"a" * 200_000,
    "100,000 headers": GET[:-2] + b"a: b\r\n" * 100_000 + b"\r\n",
    "a header without a name": GET[:-2] + b": b\r\n\r\n",
    "a header without a colon": GET[:-2] + b"novalue\r\n\r\n",
    "a header with a NUL": GET[:-2] + b"x: a\0b\r\n\r\n",
    "a folded header": GET[:-2] + b"x: a\r\n b\r\n\r\n",
    "a bare carriage return": GET[:-2] + b"x: a\rb\r\n\r\n",
    "a host that is no name": GET.replace(b"server", b"\xc3\xbc:[99999"),
    "a header of bytes beyond ASCII": GET[:-2] + b"x: \xff\xfe\r\ncookie: \xff=\xfe\r\n\r\n",
    "a negative length": POST + b"content-length: -1\r\n\r\n",
    "a length in words": POST + b"content-length: many\r\n\r\n",
    "a length beyond counting": POST + b"content-length: " + b"9" * 5000 + b"\r\n\r\n",
    "two lengths": POST + b"content-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "a length and chunks": POST
    + b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "an unknown coding": POST + b"transfer-encoding: gzip\r\n\r\n",
    "a body cut short": POST + b"content-length: 100\r\n\r\nabc",
    "a body too long": POST + b"content-length: 1\r\n\r\nabcdef" + GET,
    "a length over the limit": POST + b"content-length: 9999999999\r\n\r\nabc",
    "expecting 100 and saying nothing": POST + b"expect: 100-continue\r\ncontent-length: 3\r\n\r\n",
    "expecting the impossible": GET[:-2] + b"expect: miracles\r\n\r\n",
    "a chunk without a size": CHUNKED + b"\r\nabc\r\n",
    "a chunk of negative size": CHUNKED + b"-1\r\nabc\r\n",
    "a chunk of endless size": CHUNKED + b"f" * 30 + b"\r\nabc\r\n",
    "a chunk that is too long": CHUNKED + b"1\r\nabcdef\r\n0\r\n\r\n",
    "a chunk extension of 60 KB": CHUNKED + b"1;" + b"x" * 60_000 + b"\r\na\r\n0\r\n\r\n",
    "chunks without an end": CHUNKED + b"3\r\nabc\r\n" * 10_000,
    "trailers for ever": CHUNKED + b"0\r\n" + b"a: b\r\n" * 10_000,
    "two requests, the second broken": GET.replace(b"close", b"keep-alive") + b"\0\0\0\r\n\r\n",
    "100 requests at once": GET.replace(b"close", b"keep-alive") * 100,
    "a form that is none": POST
    + b"content-type: multipart/form-data\r\ncontent-length: 3\r\n\r\nabc",
    "an upgrade without a key": UPGRADE_HEAD + b"\r\n",
    "an upgrade with an empty key": UPGRADE_HEAD + b"sec-websocket-key:\r\n\r\n",
    "an upgrade of an old version": UPGRADE.replace(b": 13", b": 8"),
    "an upgrade under HTTP/1.0": UPGRADE.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "an upgrade by POST": UPGRADE.replace(b"GET", b"POST"),
    "an upgrade with a body": UPGRADE[:-2] + b"content-length: 5\r\n\r\nabcde",
    "an upgrade with chunks": UPGRADE[:-2] + b"transfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n",
    "an upgrade that expects 100": UPGRADE[:-2] + b"expect: 100-continue\r\n\r\n",
    "an upgrade to nowhere": UPGRADE.replace(b"/echo", b"/nowhere"),
    "an upgrade to nowhere and a byte": UPGRADE.replace(b"/echo", b"/nowhere") + b"x",
    "an upgrade to an ordinary page": UPGRADE.replace(b"/echo", b"/"),
    "an upgrade and one byte": UPGRADE + b"x",
    "an upgrade and a frame": UPGRADE + b"\x81\x81\0\0\0\0a",
    "an upgrade and a request": UPGRADE + GET,
    "an upgrade and 100 KB": UPGRADE + bytes(100_000),
    "two upgrades": UPGRADE + UPGRADE,
    "an upgrade with odd extensions": UPGRADE[:-2] + b"sec-websocket-extensions: ;;=,\r\n\r\n",
    "an upgrade with odd subprotocols": UPGRADE[:-2] + b"sec-websocket-protocol: ,,\xff\r\n\r\n",
}


def frame(first: int, payload: bytes, *, masked: bool = True, length: int | None = None) -> bytes:
    """A client's frame with a mask of zeros; `length` is what it claims."""
    claimed = len(payload) if length is None else length
    mask_bit = 0x80 if masked else 0
    if claimed < 126:
        head = bytes([first, mask_bit | claimed])
    elif claimed < 2**16:
        head = bytes([first, mask_bit | 126]) + struct.pack(">H", claimed)
    else:
        head = bytes([first, mask_bit | 127]) + struct.pack(">Q", claimed)
    return head + (bytes(4) if masked else b"") + payload


CLOSE = frame(0x88, b"\x03\xe8")
AFTER_UPGRADE: dict[str, bytes] = {
    "half a frame head": b"\x81",
    "half a frame": frame(0x81, b"abc", length=10),
    "a frame without a mask": frame(0x81, b"abc", masked=False),
    "a frame that claims 2^63 bytes": frame(0x82, b"abc", length=2**63),
    "a frame that claims 2^40 bytes": frame(0x82, bytes(100_000), length=2**40),
    "a length not in its shortest form": b"\x81\xfe\x00\x01" + bytes(4) + b"a",
    "a message over the limit": frame(0x82, bytes(60_000)),
    "a text over the limit": frame(0x81, b"a" * 60_000),
    "text that is not UTF-8": frame(0x81, b"\xff\xfe"),
    "text cut in a character": frame(0x81, b"\xe2\x82"),
    "a surrogate": frame(0x81, b"\xed\xa0\x80"),
    "a reserved opcode": frame(0x83, b"abc"),
    "a reserved control opcode": frame(0x8B, b"abc"),
    "reserved bits": frame(0xF1, b"abc"),
    "compression nobody agreed on": frame(0xC1, b"abc"),
    "a continuation of nothing": frame(0x80, b"abc"),
    "a message within a message": frame(0x01, b"abc") + frame(0x81, b"def"),
    "1,000 fragments": frame(0x01, b"a") + frame(0x00, b"b") * 1000,
    "empty fragments": frame(0x01, b"") + frame(0x00, b"") * 1000,
    "a fragmented ping": frame(0x09, b"abc"),
    "a ping that is too long": frame(0x89, bytes(126)),
    "1,000 pings": frame(0x89, b"abc") * 1000,
    "a pong nobody asked for": frame(0x8A, b"abc") + CLOSE,
    "an empty text": frame(0x81, b"") + CLOSE,
    "an empty binary message": frame(0x82, b"") + CLOSE,
    "a close without a code": frame(0x88, b""),
    "a close with half a code": frame(0x88, b"\x03"),
    "a close with a forbidden code": frame(0x88, b"\x03\xed"),
    "a close with a broken reason": frame(0x88, b"\x03\xe8\xff"),
    "a close that is too long": frame(0x88, b"\x03\xe8" + bytes(200)),
    "two closes": CLOSE + CLOSE,
    "words after the close": CLOSE + frame(0x81, b"abc") + bytes(1000),
    "HTTP": GET,
    "HTTP/2": H2_PREFACE + H2_SETTINGS,
}


@dataclass
class Site:
    network: MemoryNetwork
    stopping: trio.Event

    async def assert_survives(self, *parts: bytes, wait_for_upgrade: bool = False) -> None:
        """Send, wait until the server has had enough of it, and ask for a page as somebody else."""
        stranger = await self.network.connect("server", 80)
        if wait_for_upgrade:
            await stranger.send_all(UPGRADE)
            assert (await stranger.receive_some()).startswith(b"HTTP/1.1 101 ")
        try:
            for part in parts:
                await stranger.send_all(part)
        except trio.BrokenResourceError:
            pass
        with trio.move_on_after(5):
            await read_all(stranger)
        assert await self.is_answering()
        await stranger.aclose()
        assert await self.is_answering()

    async def is_answering(self) -> bool:
        stream = await self.network.connect("server", 80)
        with trio.fail_after(30):
            await stream.send_all(GET)
            return (await read_all(stream)).endswith(b"hello")


async def read_all(stream: MemoryStream) -> bytes:
    heard = b""
    try:
        while data := await stream.receive_some():
            heard += data
    except trio.BrokenResourceError:
        pass
    return heard


def make_app() -> QuartTrio:
    app = QuartTrio("attacked")
    app.config["MAX_CONTENT_LENGTH"] = 10_000

    @app.get("/")
    async def index() -> str:
        return "hello"

    @app.post("/echo")
    async def repeat() -> str | bytes:
        await request.form
        return await request.get_data(as_text=False)

    @app.websocket("/echo")
    async def echo() -> None:
        await websocket.accept()
        while True:
            await websocket.send(await websocket.receive() or "nothing")

    return app


async def open_site(nursery: trio.Nursery) -> Site:
    site = Site(MemoryNetwork(), trio.Event())
    door = site.network.listen("server", 80)

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        await serve(
            make_app(), [door], config=CONFIG, stopping=site.stopping, task_status=task_status
        )

    await nursery.start(run)
    return site


async def attack(*parts: bytes, wait_for_upgrade: bool = False) -> None:
    """One stranger against a new server, which must also be able to stop afterwards."""
    with trio.fail_after(300):
        async with trio.open_nursery() as nursery:
            site = await open_site(nursery)
            await site.assert_survives(*parts, wait_for_upgrade=wait_for_upgrade)
            site.stopping.set()


@pytest.mark.parametrize("raw", WITHOUT_UPGRADE.values(), ids=WITHOUT_UPGRADE.keys())
async def test_bytes_of_a_stranger_spare_everybody_else(
    raw: bytes, autojump_clock: MockClock
) -> None:
    """D1 is among them: "an upgrade and one byte"."""
    await attack(raw)


@pytest.mark.parametrize("raw", WITHOUT_UPGRADE.values(), ids=WITHOUT_UPGRADE.keys())
async def test_bytes_that_come_one_by_one_spare_everybody_else(
    raw: bytes, autojump_clock: MockClock
) -> None:
    await attack(*(raw[i : i + 1] for i in range(min(len(raw), 300))), raw[300:])


@pytest.mark.parametrize("raw", AFTER_UPGRADE.values(), ids=AFTER_UPGRADE.keys())
async def test_frames_of_a_stranger_spare_everybody_else(
    raw: bytes, autojump_clock: MockClock
) -> None:
    await attack(raw, wait_for_upgrade=True)


def test_at_least_33_sequences_are_tried() -> None:
    assert len(WITHOUT_UPGRADE) + len(AFTER_UPGRADE) >= 33


PREFIXES = [b"", b"GET ", b"GET / HTTP/1.1\r\n", GET[:-2], POST, CHUNKED, CHUNKED + b"3\r\nabc\r\n"]
PREFIXES += [UPGRADE_HEAD, UPGRADE, GET.replace(b"close", b"keep-alive")]
WORDS = [
    b"\r\n",
    b"\0",
    b": ",
    b"0\r\n\r\n",
    b"content-length: ",
    b"transfer-encoding: chunked\r\n",
]
WORDS += [b"expect: 100-continue\r\n", b"upgrade: websocket\r\n", KEY, GET, UPGRADE, H2_PREFACE]
WORDS += [CLOSE, frame(0x81, b"abc"), frame(0x01, b"abc"), frame(0x80, b"abc"), frame(0x89, b"")]
NOISE = st.lists(st.sampled_from(WORDS) | st.binary(max_size=40), max_size=8)


def run_virtually(prefix: bytes, noise: list[bytes], *, wait_for_upgrade: bool) -> None:
    async def main() -> None:
        await attack(prefix + b"".join(noise[:1]), *noise[1:], wait_for_upgrade=wait_for_upgrade)

    trio.run(main, clock=MockClock(autojump_threshold=0))


@settings(max_examples=150, deadline=None, database=None)
@given(prefix=st.sampled_from(PREFIXES), noise=NOISE)
def test_noise_after_a_promising_start_spares_everybody_else(
    prefix: bytes, noise: list[bytes]
) -> None:
    run_virtually(prefix, noise, wait_for_upgrade=False)


@settings(max_examples=150, deadline=None, database=None)
@given(noise=NOISE)
def test_noise_on_a_websocket_spares_everybody_else(noise: list[bytes]) -> None:
    run_virtually(b"", noise, wait_for_upgrade=True)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (WITHOUT_UPGRADE["one NUL"] + b"\r\n\r\n", 400),
        (WITHOUT_UPGRADE["a header that never ends"], 431),
        (WITHOUT_UPGRADE["100,000 headers"], 431),
        (WITHOUT_UPGRADE["an unknown coding"], 501),
        (WITHOUT_UPGRADE["a length over the limit"], 413),
        (WITHOUT_UPGRADE["an HTTP/2 preface"], 505),
        (WITHOUT_UPGRADE["HTTP/9.9"], 505),
        (WITHOUT_UPGRADE["an upgrade and one byte"], 400),
        (WITHOUT_UPGRADE["an upgrade without a key"], 400),
        (WITHOUT_UPGRADE["an upgrade to nowhere"], 404),
        (WITHOUT_UPGRADE["an upgrade with odd subprotocols"], 400),
        (WITHOUT_UPGRADE["a query without a path"], 400),
        (WITHOUT_UPGRADE["CONNECT"], 400),
    ],
)
async def test_a_refusal_has_a_status_and_ends_the_connection(
    raw: bytes, status: int, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    site = await open_site(nursery)
    stream = await site.network.connect("server", 80)
    await stream.send_all(raw)
    with trio.fail_after(5):
        answer = await read_all(stream)
    assert answer.split(b" ")[1] == str(status).encode()


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (AFTER_UPGRADE["a frame without a mask"], 1002),
        (AFTER_UPGRADE["a reserved opcode"], 1002),
        (AFTER_UPGRADE["reserved bits"], 1002),
        (AFTER_UPGRADE["text that is not UTF-8"], 1007),
        (AFTER_UPGRADE["a message over the limit"], 1009),
        (AFTER_UPGRADE["a close without a code"], None),
        (CLOSE, 1000),
    ],
)
async def test_a_broken_frame_is_answered_with_its_close_code(
    raw: bytes, code: int | None, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    site = await open_site(nursery)
    stream = await site.network.connect("server", 80)
    await stream.send_all(UPGRADE)
    await stream.receive_some()
    await stream.send_all(raw)
    with trio.fail_after(5):
        answer = await read_all(stream)
    assert answer[0] == 0x88
    assert (int.from_bytes(answer[2:4], "big") if answer[1] else None) == code


@pytest.mark.parametrize("name", [*WITHOUT_UPGRADE, *AFTER_UPGRADE])
async def test_no_stranger_makes_the_server_log_a_crash(
    name: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A log that strangers can fill is a way to attack the disk.

    Quart logs on its own account, from 0.23 on even a websocket's end: that is the app's to catch.
    """
    with caplog.at_level(logging.WARNING):
        if name in AFTER_UPGRADE:
            await attack(AFTER_UPGRADE[name], wait_for_upgrade=True)
        else:
            await attack(WITHOUT_UPGRADE[name])
    ours = [record for record in caplog.records if record.name.startswith("understudy")]
    assert [record.getMessage() for record in ours] == []
