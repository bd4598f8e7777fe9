"""PostgreSQL of our own: found, initialised, started, shared, and never orphaned.

Everything lives in one directory: `data`, `socket`, `postgres.log`, and three locks (flock), which
are the whole truth about who lives. The kernel frees a lock when its holder dies, so there is
nothing to clean up after a `kill -9`, and no process id says who is alive.

- `users.lock` is held shared by everyone who uses the server. The watchdog waits to hold it
  exclusively: then nobody is left, and it stops the server.
- `server.lock` is held by whoever starts the server and inherited by every process of it, down to
  the last backend. Who gets it knows that nothing of the server is alive: files left in `data` by
  a dead one are stale, and a half-finished `initdb` is nobody's.
- `watchdog.lock` is held by the one watchdog on guard.

So there is no owner. Of two who start at once, one gets `server.lock` and starts the server, and
the other finds it answering; it stops when the last of them has left, in whatever order and manner.
A watchdog that was killed is replaced when the next user starts or stops.

`python -m understudy.store.embedded` prints where PostgreSQL's programs are.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, final

import psycopg
import trio
from psycopg import sql
from psycopg.conninfo import make_conninfo

from understudy.store import watchdog
from understudy.store.binaries import Binaries, NoBinaries, find_binaries
from understudy.store.cluster import PORT, Cluster, make_own_directory
from understudy.store.errors import DatabaseUnavailable
from understudy.store.watchdog import open_lock, read_postmaster, try_lock

START_S: Final = 120.0  # A server that was killed replays its log first.
STOP_S: Final = watchdog.FAST_S + 15
POLL_S: Final = 0.005


class StopFailed(DatabaseUnavailable):
    pass


class ServerDied(Exception):
    """The server is gone although we use it. Starting again recovers it."""


@final
class EmbeddedServer:
    """One user of the server in a directory. Not for several threads at once."""

    def __init__(
        self,
        directory: Path,
        *,
        binaries: Binaries | None = None,
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`settings` are PostgreSQL's own; a server that runs already keeps those it has."""
        self.directory = directory.absolute()
        self._cluster = Cluster(self.directory, binaries, settings)
        self._users: int | None = None

    def start(self) -> None:
        """Start the server or join it; blocks for a second or two. Mends one that has died.

        Raises `DatabaseUnavailable`, whose message is for the person at the terminal.
        """
        self._join()
        try:
            self._bring_up()
        except BaseException:
            self._leave()
            raise

    def stop(self) -> None:
        """Leave; the last user waits until the server has stopped, for as long as a checkpoint."""
        if self._users is not None:
            self._post_watchdog()
            self._leave()
            self._wait_unused()

    def dsn(self, database: str) -> str:
        return make_conninfo(
            host=str(self._cluster.socket_directory), port=PORT, user="postgres", dbname=database
        )

    def ensure_database(self, name: str) -> None:
        create = sql.SQL("create database {} template template0").format(sql.Identifier(name))
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            known = connection.execute("select 1 from pg_database where datname = %s", [name])
            if known.fetchone() is None:
                try:
                    connection.execute(create)
                except (psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                    pass  # Another user of the server was faster.

    def wait_death(self) -> None:
        """Block until no process of the server is alive, whoever started it."""
        lock = open_lock(self.directory / watchdog.SERVER)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)
        finally:
            os.close(lock)

    def _join(self) -> None:
        if self._users is not None:
            return
        try:
            make_own_directory(self.directory)
            self._users = open_lock(self.directory / watchdog.USERS)
        except PermissionError as error:
            raise DatabaseUnavailable(
                f"{error.filename} belongs to another user: start Understudy as that user,"
                " choose another directory, or set DATABASE_URL."
            ) from error
        # Waits only while a watchdog is stopping the server behind the last user.
        fcntl.flock(self._users, fcntl.LOCK_SH)

    def _leave(self) -> None:
        if self._users is not None:
            fcntl.flock(self._users, fcntl.LOCK_UN)  # Closing is not enough if we have forked.
            os.close(self._users)
            self._users = None

    def _bring_up(self) -> None:
        deadline = time.monotonic() + START_S
        launched = False
        while not self._answers():
            launched = self._try_launch(again=launched) or launched
            if time.monotonic() > deadline:
                raise self._cluster.failure(f"does not answer after {START_S:.0f} s")
            time.sleep(POLL_S)
        if not launched:
            self._post_watchdog()

    def _answers(self) -> bool:
        postmaster = read_postmaster(self.directory)
        if postmaster is None or not postmaster.is_ready:
            return False
        # Who started it may have had another TMPDIR.
        self._cluster.socket_directory = postmaster.socket_directory
        ping = psycopg.pq.PGconn.ping(self.dsn("postgres").encode())
        return ping == psycopg.pq.Ping.OK

    def _try_launch(self, *, again: bool) -> bool:
        """False if the server's lock is taken: it is coming up, or on its way out."""
        lock = open_lock(self.directory / watchdog.SERVER)
        try:
            if not try_lock(lock, fcntl.LOCK_EX):
                return False
            if again:
                raise self._cluster.failure("did not start")
            command = self._cluster.prepare(lock)
            self._post_watchdog(command, lock)
            return True
        finally:
            os.close(lock)

    def _post_watchdog(self, command: Sequence[str] = (), lock: int | None = None) -> None:
        """One that starts the server with the lock in hand, or one that guards what runs."""
        handed_on = [] if lock is None else [str(lock), *command]
        with self._cluster.open_log() as log:
            subprocess.run(
                [sys.executable, "-I", "-S", watchdog.__file__, self.directory, *handed_on],
                check=True,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=() if lock is None else (lock,),
                start_new_session=True,
            )

    def _wait_unused(self) -> None:
        deadline = time.monotonic() + STOP_S
        while not self._is_down():
            if self._is_used():
                return
            if time.monotonic() > deadline:
                raise StopFailed(f"PostgreSQL in {self.directory} runs on after {STOP_S:.0f} s")
            time.sleep(POLL_S)
        self._cluster.remove_socket_directory()

    def _is_down(self) -> bool:
        return self._could_lock(watchdog.SERVER, fcntl.LOCK_SH)

    def _is_used(self) -> bool:
        """By others, we have left. The watchdog's exclusive lock excludes shared ones too."""
        return not self._could_lock(watchdog.USERS, fcntl.LOCK_EX) and self._could_lock(
            watchdog.USERS, fcntl.LOCK_SH
        )

    def _could_lock(self, name: str, operation: int) -> bool:
        lock = open_lock(self.directory / name)
        try:
            return try_lock(lock, operation)
        finally:
            os.close(lock)


async def run_server(
    server: EmbeddedServer, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """The server as a service: started when it answers, `ServerDied` when it dies under us."""
    try:
        await trio.to_thread.run_sync(server.start)
        task_status.started()
        await trio.to_thread.run_sync(server.wait_death, abandon_on_cancel=True)
        raise ServerDied(str(server.directory))
    finally:
        with trio.CancelScope(shield=True):  # `stop` has a deadline of its own.
            await trio.to_thread.run_sync(server.stop)


def main() -> None:
    try:
        sys.stdout.write(f"{find_binaries().directory}\n")
    except NoBinaries as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
