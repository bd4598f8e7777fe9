"""A data directory of PostgreSQL's, the account it belongs to, and the log beside it.

Only the holder of the server's lock (see `embedded.py`) may `prepare` a cluster.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Final, final

from understudy.store import watchdog
from understudy.store.binaries import Binaries, copy_wheel, find_binaries
from understudy.store.errors import DatabaseUnavailable

PORT: Final = 5432  # Of the socket's name; nothing listens on the network.
LOG_BYTES_MAX: Final = 10_000_000
LOG_LINES_SHOWN: Final = 20
SOCKET_DIRECTORY_BYTES_MAX: Final = 89  # macOS allows 103 with "/.s.PGSQL.5432", Linux 107.

SETTINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "listen_addresses": "",
        "port": str(PORT),
        "unix_socket_permissions": "0700",
        "max_connections": "100",
        "shared_buffers": "128MB",
        "max_parallel_workers_per_gather": "0",  # Short statements on few cores.
        "jit": "off",
        "idle_in_transaction_session_timeout": "60s",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_destination": "stderr",
        "logging_collector": "off",
        "log_checkpoints": "off",
        "cluster_name": "understudy",
    }
)


class WrongVersion(DatabaseUnavailable):
    pass


class StartFailed(DatabaseUnavailable):
    pass


@dataclass(frozen=True)
class Account:
    """Whom the server runs as when we are root, which PostgreSQL refuses to be."""

    name: str
    uid: int
    gid: int


@final
class Cluster:
    def __init__(
        self, directory: Path, binaries: Binaries | None, settings: Mapping[str, str]
    ) -> None:
        self.directory = directory
        self.data = directory / watchdog.DATA
        self.socket_directory = _socket_directory(directory)
        self._log = directory / "postgres.log"
        self._log_seen = 0
        self._binaries = binaries
        self._settings = {**SETTINGS, **settings}

    def prepare(self, lock: int) -> list[str]:
        """Make all that the server needs; returns the command that starts it."""
        account = _server_account(self.data)
        binaries = self._runnable_binaries(account)
        _make_directory(self.socket_directory, account)
        self._remove_stale()
        if not self.data.exists():
            self._initialise(binaries, account, lock)
        command = [f"{binaries.directory}/postgres", "-D", f"{self.data}"]
        command += ["-c", f'unix_socket_directories="{self.socket_directory}"']
        for name, value in self._settings.items():
            command += ["-c", f"{name}={value}"]
        return command

    @contextmanager
    def open_log(self) -> Iterator[IO[bytes]]:
        """For appending; started afresh when it has grown large."""
        with open(self._log, "ab", opener=_open_private) as log:
            if log.tell() > LOG_BYTES_MAX:
                log.truncate(0)
                log.seek(0)
            self._log_seen = log.tell()
            yield log

    def failure(self, what: str) -> StartFailed:
        said = self._log.read_bytes()[self._log_seen :].decode(errors="replace").splitlines()
        return StartFailed(
            "\n".join(
                [
                    f"PostgreSQL in {self.directory} {what}. The end of {self._log}:",
                    *said[-LOG_LINES_SHOWN:],
                    self._advice(),
                ]
            )
        )

    def _advice(self) -> str:
        if account := _server_account(self.data):
            for parent in reversed(self.data.parents):
                if not _may_enter(parent, account):
                    return (
                        f"{account.name}, whom PostgreSQL runs as because you are root, may not"
                        f" enter {parent}: choose a directory that every user may enter, such as"
                        " /var/lib/understudy, or set DATABASE_URL to use another server."
                    )
        return "Mend what it complains of, or set DATABASE_URL to use another server."

    def remove_socket_directory(self) -> None:
        """Where it had to be outside of our own directory."""
        path = _socket_directory(self.directory)
        if path.parent != self.directory:
            try:
                path.rmdir()
            except OSError:
                pass  # Somebody is starting the server again, or has removed it.

    def _runnable_binaries(self, account: Account | None) -> Binaries:
        binaries = self._matching_binaries()
        if account is None or _can_run(binaries, account):
            return binaries
        copied = copy_wheel(binaries, self.directory / f"binaries-{binaries.version}")
        if not _can_run(copied, account):
            raise StartFailed(f"{account.name} may not run {copied.directory}. {self._advice()}")
        return copied

    def _matching_binaries(self) -> Binaries:
        version = self.data / "PG_VERSION"
        written_by = int(version.read_text()) if self.data.exists() else None
        binaries = self._binaries or find_binaries(written_by)
        if written_by not in {None, binaries.major}:
            raise WrongVersion(
                f"{self.data} was written by PostgreSQL {written_by}, but {binaries.directory} is"
                f" version {binaries.version}, which cannot read it. Install PostgreSQL"
                f" {written_by} or name its bin directory in PG_BINDIR; to move to version"
                f" {binaries.major}, dump the data with the old version and load it with the new."
            )
        return binaries

    def _remove_stale(self) -> None:
        """Of a server that was killed. The process ids in them may be somebody else's by now."""
        for stale in (
            self.data / "postmaster.pid",
            self.socket_directory / f".s.PGSQL.{PORT}.lock",
        ):
            stale.unlink(missing_ok=True)

    def _initialise(self, binaries: Binaries, account: Account | None, lock: int) -> None:
        """The data directory appears finished or not at all."""
        unfinished = self.data.with_name(f"{self.data.name}.new")
        shutil.rmtree(unfinished, ignore_errors=True)
        _make_directory(unfinished, account)
        command = [f"{binaries.directory}/initdb", "-D", f"{unfinished}", "--username=postgres"]
        command += ["--encoding=UTF8", "--no-locale", "--data-checksums", "--no-instructions"]
        command += ["--auth-local=trust", "--auth-host=reject"]
        command += ["--no-sync"] if self._settings["fsync"] == "off" else []
        with self.open_log() as log:
            if _run_as(account, *command, output=log, lock=lock) != 0:
                raise self.failure("could not be initialised")
        unfinished.rename(self.data)
        _sync_directory(self.directory)


def make_own_directory(path: Path) -> None:
    """Below a root's directory the server's account must be able to enter its own."""
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o711 if os.geteuid() == 0 else 0o700)


def _make_directory(path: Path, account: Account | None) -> None:
    """Private to the server's account. In /tmp somebody else may have been there before us."""
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in {os.geteuid(), _uid(account)}:
        raise StartFailed(f"{path} belongs to somebody else: remove it, or choose another place.")
    if account is not None:
        os.chown(path, account.uid, account.gid)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _server_account(data: Path) -> Account | None:
    """None if we are not root: the server runs as we do. The data's owner stays its owner."""
    if os.geteuid() != 0:
        return None
    if data.exists() and (owner := data.stat()).st_uid != 0:
        return Account(f"user {owner.st_uid}", owner.st_uid, owner.st_gid)
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise StartFailed("PostgreSQL does not run as root, and there is no user postgres or nobody.")


def _uid(account: Account | None) -> int:
    return os.geteuid() if account is None else account.uid


def _run_as(
    account: Account | None,
    *command: str,
    output: IO[bytes] | int = subprocess.DEVNULL,
    lock: int | None = None,
) -> int:
    """The exit status. Whoever inherits the lock keeps others out, even if we are killed."""
    return subprocess.run(
        command,
        check=False,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=() if lock is None else (lock,),
        env=watchdog.ENVIRONMENT,
        start_new_session=True,
        user=None if account is None else account.uid,
        group=None if account is None else account.gid,
        extra_groups=None if account is None else (),
    ).returncode


def _can_run(binaries: Binaries, account: Account) -> bool:
    try:
        return _run_as(account, f"{binaries.directory}/postgres", "--version") == 0
    except OSError:
        return False


def _socket_directory(directory: Path) -> Path:
    """Beside the data, unless libpq or the kernel could not take such a name."""
    path = directory / "socket"
    name = os.fsencode(path)
    if len(name) <= SOCKET_DIRECTORY_BYTES_MAX and not set(name) & set(b'",\\'):
        return path
    digest = hashlib.sha256(name).hexdigest()[:12]
    return Path(tempfile.gettempdir(), f"understudy-{digest}")


def _sync_directory(directory: Path) -> None:
    """Without this a power cut can undo a rename, and with it the data under the new name."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _may_enter(directory: Path, account: Account) -> bool:
    found = directory.stat()
    if found.st_uid == account.uid:
        return bool(found.st_mode & stat.S_IXUSR)
    if found.st_gid == account.gid:
        return bool(found.st_mode & stat.S_IXGRP)
    return bool(found.st_mode & stat.S_IXOTH)
