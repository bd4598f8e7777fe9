"""Terminal reports the server has not acknowledged yet. On disk before the first send (R6.4).

Each call takes a few milliseconds, most of them an fsync, and blocks trio's thread meanwhile: there
are two calls per run, and nothing may overtake them anyway.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, final

from understudy.core.restarts import CannotStart
from understudy.daemon.rundir import sync_directory

FORMAT: Final = 1
REPORTS_MAX: Final = 10_000
PAYLOAD_MAX: Final = 8 << 20

SCHEMA: Final = """
create table report (
  id          integer primary key,  -- the order of put
  task_id     text not null,
  claim_token text not null,        -- which claim of the task the report speaks for
  kind        text not null,
  payload     blob not null,
  unique (task_id, claim_token)
) strict
"""


class OutboxBusy(Exception):
    """Another process has it open."""


class OutboxFull(Exception):
    """Not a place for the report; `room` said so before the run was taken."""


class UnknownFormat(Exception):
    """The file was written by another version of Understudy."""


@final
@dataclass(frozen=True)
class Report:
    """The payload is opaque here: what to send, in whatever form `kind` says."""

    task_id: str
    claim_token: str
    kind: str
    payload: bytes


@final
class Outbox:
    """Survives the daemon's death and the host's. One process at a time."""

    def __init__(self, path: Path, *, reports_max: int = REPORTS_MAX) -> None:
        path.touch(0o600)
        sync_directory(path.parent)
        self._reports_max = reports_max
        self._database = sqlite3.connect(path, isolation_level=None, timeout=0)
        try:
            self._open()
        except BaseException:
            self._database.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def put(self, report: Report) -> bool:
        """Durable on return. False when this claim has its report: the first verdict stands."""
        if len(report.payload) > PAYLOAD_MAX:
            raise ValueError(f"a payload of {len(report.payload)} bytes; {PAYLOAD_MAX} fit")
        if self.holds(report.task_id, report.claim_token):
            return False
        if self.room() == 0:
            raise OutboxFull(f"{self._reports_max} reports wait")
        self._database.execute(
            "insert into report (task_id, claim_token, kind, payload) values (?, ?, ?, ?)",
            (report.task_id, report.claim_token, report.kind, report.payload),
        )
        return True

    def pending(self, limit: int = 100) -> list[Report]:
        """The oldest first."""
        rows = self._database.execute(
            "select task_id, claim_token, kind, payload from report order by id limit ?", (limit,)
        )
        return [Report(*row) for row in rows]

    def of_task(self, task_id: str) -> list[Report]:
        """The oldest first; more than one where the task was given out again."""
        rows = self._database.execute(
            "select task_id, claim_token, kind, payload from report where task_id = ? order by id",
            (task_id,),
        )
        return [Report(*row) for row in rows]

    def claims(self) -> list[tuple[str, str]]:
        """Task and token of each report that waits: the payloads may be many megabytes."""
        return list(self._database.execute("select task_id, claim_token from report order by id"))

    def holds(self, task_id: str, claim_token: str) -> bool:
        (held,) = self._database.execute(
            "select exists (select 1 from report where task_id = ? and claim_token = ?)",
            (task_id, claim_token),
        ).fetchone()
        return bool(held)

    def acknowledge(self, task_id: str, claim_token: str) -> None:
        self._database.execute(
            "delete from report where task_id = ? and claim_token = ?", (task_id, claim_token)
        )

    def room(self) -> int:
        """Runs that may still be taken: a run without room for its report must not begin."""
        (waiting,) = self._database.execute("select count(*) from report").fetchone()
        return max(0, self._reports_max - int(waiting))

    def _open(self) -> None:
        try:
            # Kept until the process ends, however it ends; and no shared memory file is needed.
            self._database.execute("pragma locking_mode = exclusive")
            self._database.execute("pragma journal_mode = wal")
            self._database.execute("pragma synchronous = full")
            self._database.execute("begin exclusive")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                raise OutboxBusy from None
            raise
        self._migrate()
        self._database.execute("commit")

    def _migrate(self) -> None:
        (version,) = self._database.execute("pragma user_version").fetchone()
        if version == 0:
            self._database.execute(SCHEMA)
            self._database.execute(f"pragma user_version = {FORMAT}")
        elif version != FORMAT:
            raise UnknownFormat(f"the outbox has format {version}, not {FORMAT}")


@contextmanager
def open_outbox(path: Path) -> Iterator[Outbox]:
    """That of a daemon that is about to start."""
    try:
        with Outbox(path) as outbox:
            yield outbox
    except OutboxBusy:
        raise CannotStart(f"{path} is in use by another program") from None
    except sqlite3.OperationalError as error:  # A full disk, say.
        raise CannotStart(f"{path} cannot be used: {error}") from error
