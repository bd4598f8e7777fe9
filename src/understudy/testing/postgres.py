"""A PostgreSQL to test against: started in a moment, durable in nothing, gone afterwards."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import psycopg
from psycopg import sql

from understudy.store.binaries import Binaries
from understudy.store.embedded import EmbeddedServer
from understudy.store.watchdog import read_postmaster

HASTY: Final = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",  # Its transactions come when they like, and a snapshot tells of them.
}
_numbers = itertools.count(1)


@contextmanager
def throwaway_server(
    binaries: Binaries | None = None, *, settings: Mapping[str, str] = HASTY
) -> Iterator[EmbeddedServer]:
    """A running server. It may be stopped and started in between."""
    with TemporaryDirectory(prefix="understudy-") as directory:
        Path(directory).chmod(0o711)  # If we are root the server is somebody else.
        server = EmbeddedServer(Path(directory, "postgres"), binaries=binaries, settings=settings)
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def throwaway_database(server: EmbeddedServer) -> Iterator[str]:
    """The conninfo of an empty database, dropped at the end whoever is still connected."""
    name = f"test_{next(_numbers)}"
    server.ensure_database(name)
    try:
        yield server.dsn(name)
    finally:
        drop = sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name))
        with psycopg.connect(server.dsn("postgres"), autocommit=True) as connection:
            connection.execute(drop)


def kill_server(server: EmbeddedServer) -> None:
    """`kill -9`; returns when no process of it is left. `server.start()` mends it."""
    postmaster = read_postmaster(server.directory)
    assert postmaster is not None
    os.kill(postmaster.pid, signal.SIGKILL)
    server.wait_death()
