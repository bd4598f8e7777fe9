"""Daemons that reach their server through a proxy only, by either transport."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest
import trio

from understudy.config import DaemonConfig, Transport
from understudy.core.tree import Branch
from understudy.daemon import link, polling
from understudy.daemon.main import run_daemon
from understudy.daemon.outcomes import NotSent
from understudy.daemon.proxies import Proxy, ProxyTrouble, in_words, open_stream, proxy_for
from understudy.daemon.status import read_status
from understudy.testing.crossing import Crossing
from understudy.testing.gate import Tunnels, open_waypoint
from understudy.testing.node import Node
from understudy.testing.workplace import Workplace
from understudy.wire.daemon import Heartbeats, HeartbeatsHeard

NAME: Final = "board.example"  # No machine of that name is looked for: the proxy knows it.
LOGIN: Final = "ada:s3 cret"
TRANSPORTS: Final[list[Transport]] = ["websocket", "http"]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(link, "RECONNECT_S_MIN", 0.002)
    monkeypatch.setattr(link, "RECONNECT_S_MAX", 0.02)
    monkeypatch.setattr(polling, "CLAIM_S_MIN", 0.05)


@pytest.fixture
async def tunnels(node: Node) -> AsyncIterator[Tunnels]:
    tunnels = Tunnels(node.address)
    async with open_waypoint(tunnels):
        yield tunnels


def settings(node: Node, path: Path, server: str, transport: Transport) -> DaemonConfig:
    workspace = str(node.workspace.id)
    return DaemonConfig(path, server, node.daemon_key, workspace, transport=transport)


async def complete_a_run(node: Node, config: DaemonConfig) -> None:
    workplace = Workplace(node, config.path, Crossing(link.dial(config)), config)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_daemon, config, Branch("daemon"))
        task_id = await workplace.assign_traced()
        await workplace.wait_status(task_id, "completed")
        nursery.cancel_scope.cancel()


# The whole way


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_run_completes_through_a_proxy(
    node: Node, tunnels: Tunnels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    transport: Transport,
) -> None:  # fmt: skip
    monkeypatch.setenv("HTTP_PROXY", tunnels.address)
    await complete_a_run(node, settings(node, tmp_path / "daemon", f"http://{NAME}", transport))
    asked = {line.split(" ")[0] for line in tunnels.asked}
    assert asked == ({"CONNECT"} if transport == "websocket" else {"POST"})


async def test_a_proxy_that_makes_no_tunnels_is_worked_through_over_http(
    node: Node, tunnels: Tunnels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses the websocket, and forwards each request."""
    monkeypatch.setenv("http_proxy", tunnels.address)
    tunnels.makes_tunnels = False
    await complete_a_run(node, settings(node, tmp_path / "daemon", f"http://{NAME}", "auto"))
    assert tunnels.asked[:2] == [f"CONNECT {NAME}:80 HTTP/1.1"] * 2


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_proxy_is_told_its_login(
    node: Node, tunnels: Tunnels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    transport: Transport,
) -> None:  # fmt: skip
    tunnels.login = LOGIN
    monkeypatch.setenv("ALL_PROXY", tunnels.address.replace("://", "://ada:s3%20cret@"))
    await complete_a_run(node, settings(node, tmp_path / "daemon", f"http://{NAME}", transport))


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_proxy_that_wants_a_login_is_named_as_the_trouble(
    node: Node, tunnels: Tunnels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    transport: Transport, nursery: trio.Nursery,
) -> None:  # fmt: skip
    tunnels.login = LOGIN
    monkeypatch.setenv("HTTP_PROXY", tunnels.address)
    config = settings(node, tmp_path, f"http://{NAME}", transport)
    nursery.start_soon(run_daemon, config, Branch("daemon"))
    with trio.fail_after(30):
        while (status := read_status(tmp_path)) is None or status.trouble is None:  # noqa: ASYNC110  A file.
            await trio.sleep(0.02)
    assert status.trouble.startswith("the proxy wants a login")
    nursery.cancel_scope.cancel()


# Encrypted


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of `NAME`, with its key in the same file."""
    path = tmp_path_factory.mktemp("tls") / "board.pem"
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate with")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}",
         "-keyout", path, "-out", path.with_suffix(".crt")],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    with path.open("a") as file:
        file.write(path.with_suffix(".crt").read_text())
    return path


@asynccontextmanager
async def behind_tls(node: Node, certificate: Path) -> AsyncIterator[str]:
    """The node's address with encryption before it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def serve(stream: trio.SocketStream) -> None:
        parts = urlsplit(node.address)
        assert parts.hostname
        assert parts.port
        client = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        async with client, await trio.open_tcp_stream(parts.hostname, parts.port) as server:
            try:
                async with trio.open_nursery() as both:
                    both.start_soon(pump, client, server, both.cancel_scope)
                    both.start_soon(pump, server, client, both.cancel_scope)
            except* trio.BrokenResourceError:
                pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.serve_listeners, serve, [listener]))
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def pump(
    source: trio.abc.ReceiveStream, sink: trio.abc.SendStream, both: trio.CancelScope
) -> None:
    while data := await source.receive_some(65536):
        await sink.send_all(data)
    both.cancel()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_run_completes_through_a_proxy_and_encrypted(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificate: Path,
    transport: Transport,
) -> None:  # fmt: skip
    """The proxy is asked for a tunnel to the server's name, and sees no more."""
    async with behind_tls(node, certificate) as address:
        tunnels = Tunnels(address)
        async with open_waypoint(tunnels):
            monkeypatch.setenv("HTTPS_PROXY", tunnels.address)
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_suffix(".crt")))
            config = settings(node, tmp_path / "daemon", f"https://{NAME}", transport)
            await complete_a_run(node, config)
    assert set(tunnels.asked) == {f"CONNECT {NAME}:443 HTTP/1.1"}


async def test_a_certificate_that_is_not_trusted_is_said_in_words(
    node: Node, certificate: Path
) -> None:
    async with behind_tls(node, certificate) as address:
        tunnels = Tunnels(address)
        async with open_waypoint(tunnels):
            proxy = proxy_for(f"https://{NAME}", {"https_proxy": tunnels.address})
            with (
                trio.fail_after(30),
                pytest.raises(OSError, match=r"no TLS with board.example: .*self"),
            ):
                await open_stream(urlsplit(f"https://{NAME}"), proxy)


async def test_a_call_that_a_proxy_did_not_let_through_was_not_sent(
    node: Node, tunnels: Tunnels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R6.3: what the proxy was asked for is the tunnel."""
    tunnels.makes_tunnels = False
    monkeypatch.setenv("HTTPS_PROXY", tunnels.address)
    config = settings(node, tmp_path, f"https://{NAME}", "http")
    async with polling.poll(config)() as session:
        with pytest.raises(NotSent, match="the proxy does not let us through: it answered 405"):
            await session.call("heartbeats", Heartbeats(runtime_ids=[]), None)


async def test_no_proxy_is_asked_about_a_server_of_this_machine(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    config = settings(node, tmp_path, node.address, "http")
    async with polling.poll(config)() as session:
        answer = await session.call("heartbeats", Heartbeats(runtime_ids=[]), None)
    assert answer == HeartbeatsHeard()
    async with link.dial(config)():
        pass


# The environment


@pytest.mark.parametrize(
    ("server", "environment", "expected"),
    [
        ("http://board.test", {}, None),
        ("http://board.test", {"HTTP_PROXY": "http://p:3128"}, Proxy("http", "p", 3128)),
        ("http://board.test", {"http_proxy": "p:3128"}, Proxy("http", "p", 3128)),
        ("http://board.test", {"http_proxy": "http://p"}, Proxy("http", "p", 80)),
        ("http://board.test", {"http_proxy": "https://p"}, Proxy("https", "p", 443)),
        ("http://board.test", {"http_proxy": "http://[::1]:8"}, Proxy("http", "::1", 8)),
        ("http://board.test", {"HTTPS_PROXY": "http://p:1"}, None),
        ("https://board.test", {"HTTPS_PROXY": "p:1", "ALL_PROXY": "q:2"}, Proxy("http", "p", 1)),
        ("https://board.test", {"http_proxy": "p:1", "ALL_PROXY": "q:2"}, Proxy("http", "q", 2)),
        ("https://board.test", {"HTTPS_PROXY": "p:1", "https_proxy": "q:2"}, Proxy("http", "q", 2)),
        ("http://x", {"http_proxy": "a%40b:c%3Ad@p:1"}, Proxy("http", "p", 1, ("a@b", "c:d"))),
        ("http://localhost:7717", {"ALL_PROXY": "p:1"}, None),
        ("http://127.0.0.2", {"ALL_PROXY": "p:1"}, None),
        ("http://[::1]:7717", {"ALL_PROXY": "p:1"}, None),
    ],
)  # fmt: skip
def test_the_environment_names_the_proxy(
    server: str, environment: dict[str, str], expected: Proxy | None
) -> None:
    assert proxy_for(server, environment) == expected


@pytest.mark.parametrize(
    ("no_proxy", "is_spared"),
    [
        ("*", True), ("board.test", True), (".test", True), ("*.test", True), ("test", True),
        ("other, board.test", True), ("BOARD.TEST", True), ("board.test:8080", True),
        ("board.test:80", False), ("ard.test", False), ("a.board.test", False), ("", False),
        (" , ", False), ("10.0.0.0/8", False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_no_proxy_names_whom_to_reach_directly(no_proxy: str, is_spared: bool, name: str) -> None:  # noqa: FBT001
    found = proxy_for("http://board.test:8080", {"HTTP_PROXY": "p:1", name: no_proxy})
    assert (found is None) == is_spared


@pytest.mark.parametrize("no_proxy", ["10.0.0.0/8", "10.1.2.3", "10.1.2.3:80"])
def test_no_proxy_may_name_addresses(no_proxy: str) -> None:
    assert proxy_for("http://10.1.2.3", {"HTTP_PROXY": "p:1", "NO_PROXY": no_proxy}) is None
    assert proxy_for("http://11.1.2.3", {"HTTP_PROXY": "p:1", "NO_PROXY": no_proxy}) is not None


def test_no_proxy_may_name_networks_of_ipv6() -> None:
    environment = {"HTTP_PROXY": "p:1", "NO_PROXY": "fd00::/8, [fe80::1]"}
    assert proxy_for("http://[fd12::7]:80", environment) is None
    assert proxy_for("http://[fe80::1]:80", environment) is None
    assert proxy_for("http://[2001:db8::1]:80", environment) is not None


@pytest.mark.parametrize("named", ["socks5://p:1080", "http://", "http://p:http", "ftp://p"])
def test_what_is_no_http_proxy_is_said_to_be_none(named: str) -> None:
    with pytest.raises(ProxyTrouble, match="proxy"):
        proxy_for("http://board.test", {"HTTP_PROXY": named})


def test_a_login_is_in_no_message() -> None:
    proxy = proxy_for("http://board.test", {"HTTP_PROXY": "http://ada:s3cret@p:1"})
    assert "s3cret" not in f"{proxy} {proxy!r} {in_words(407)}"
