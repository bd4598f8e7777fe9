"""What is measured: a durable PostgreSQL, and Understudy's own processes on top of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Final

import httpx2
import msgspec
import trio

from understudy.cli.credentials import Credentials, MachineKey
from understudy.config import Home, ServerConfig
from understudy.core.records import User, Workspace
from understudy.server import open_database
from understudy.store import people, tokens
from understudy.store.database import Database
from understudy.store.embedded import EmbeddedServer
from understudy.store.tokens import Owner
from understudy.store.watchdog import read_postmaster

ROOT: Final = Path(__file__).parent.parent
READY_S: Final = 60.0
STOP_S: Final = 20.0
LOG_TAIL: Final = 2000


class Unready(Exception):
    """A process of ours did not come up; what it said is in the message."""


@contextmanager
def durable_server() -> Iterator[EmbeddedServer]:
    """PostgreSQL as `understudy up` runs it, fsync and all, in a directory that goes away."""
    with TemporaryDirectory(prefix="understudy-bench-") as directory:
        Path(directory).chmod(0o711)  # If we are root the server is somebody else.
        server = EmbeddedServer(Path(directory, "postgres"))
        server.start()
        try:
            yield server
        finally:
            server.stop()


def postmaster_pid(server: EmbeddedServer) -> int:
    postmaster = read_postmaster(server.directory)
    assert postmaster is not None
    return postmaster.pid


@dataclass(frozen=True)
class Tenant:
    """Who works: a person with a key, and their workspace with a machine's key."""

    user: User
    workspace: Workspace
    key: str
    daemon_key: str


def open_store(dsn: str) -> AbstractAsyncContextManager[Database]:
    """The database with our schema."""
    home = Home(Path("/nonexistent"))
    return open_database(ServerConfig(home, database_url=dsn, pool_size=2))


async def make_tenant(database: Database) -> Tenant:
    user, workspace = await people.first_user(database, name="Ada", email="ada@example.org")
    owner = Owner(user_id=user.id, workspace_id=workspace.id)
    key = await tokens.create(database, "personal", owner)
    daemon_key = await tokens.create(database, "daemon", owner)
    return Tenant(user, workspace, key, daemon_key)


@dataclass(frozen=True)
class Node:
    address: str
    pid: int


@asynccontextmanager
async def open_node(home: Path, dsn: str) -> AsyncIterator[Node]:
    """`understudy serve` as a process of its own."""
    port = _free_port()
    address = f"http://127.0.0.1:{port}"
    program = ["understudy", "serve", "--port", str(port), "--database-url", dsn]
    async with _python(program, home) as process:
        with trio.fail_after(READY_S):
            while not await _answers(address):
                _raise_ended(process, home)
                await trio.sleep(0.05)
        yield Node(address, process.pid)


@asynccontextmanager
async def open_daemon(
    home: Path,
    node: Node,
    tenant: Tenant,
    *,
    program: Sequence[str] = ("understudy", "daemon", "run"),
) -> AsyncIterator[int]:
    """A daemon as a process of its own; its pid, once it takes tasks. `program`: a module, and its
    arguments."""
    machine = MachineKey(
        server=node.address, key=tenant.daemon_key, workspace_id=str(tenant.workspace.id)
    )
    known = Credentials(server=node.address, key=tenant.key, machine=machine)
    _write(Home(home).credentials, msgspec.json.encode(known))
    async with _python(program, home) as process, open_client(node, tenant) as client:
        with trio.fail_after(READY_S):
            while not (await client.get("/api/runtimes")).json():
                _raise_ended(process, home)
                await trio.sleep(0.05)
        yield process.pid


def open_client(node: Node, tenant: Tenant) -> httpx2.AsyncClient:
    headers = {"Authorization": f"Bearer {tenant.key}"}
    return httpx2.AsyncClient(base_url=node.address, headers=headers, trust_env=False, timeout=30)


@asynccontextmanager
async def _python(program: Sequence[str], home: Path) -> AsyncIterator[trio.Process]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("UNDERSTUDY_")}
    with _open_log(home) as log:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", *program],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**inherited, "UNDERSTUDY_HOME": str(home)},
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        with trio.move_on_after(STOP_S, shield=True):
            await process.wait()
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def _answers(address: str) -> bool:
    async with httpx2.AsyncClient(trust_env=False, timeout=READY_S) as client:
        try:
            return (await client.get(f"{address}/api/health")).is_success
        except httpx2.TransportError:
            return False


def _raise_ended(process: trio.Process, home: Path) -> None:
    if process.poll() is not None:
        said = _log(home).read_text(errors="replace")[-LOG_TAIL:]
        raise Unready(f"it ended with {process.returncode}:\n{said}")


def _open_log(home: Path) -> IO[bytes]:
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    return _log(home).open("ab")


def _log(home: Path) -> Path:
    return home / "bench.log"


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_bytes(data)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
