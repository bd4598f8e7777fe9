from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from understudy.daemon import outbox as outbox_module
from understudy.daemon.outbox import Outbox, OutboxBusy, OutboxFull, Report, UnknownFormat

FIRST = Report("task1", "token1", "complete", b'{"output": "\xff\0"}')
SECOND = Report("task2", "token2", "fail", b"")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox"


@pytest.fixture
def outbox(path: Path) -> Iterator[Outbox]:
    with Outbox(path) as outbox:
        yield outbox


def test_reports_come_in_the_order_they_were_put(outbox: Outbox) -> None:
    assert outbox.put(SECOND)
    assert outbox.put(FIRST)
    assert outbox.pending() == [SECOND, FIRST]
    assert outbox.pending(limit=1) == [SECOND]


def test_report_stays_until_acknowledged(path: Path) -> None:
    """R6.4: across any restart."""
    with Outbox(path) as outbox:
        outbox.put(FIRST)
        outbox.put(SECOND)
    with Outbox(path) as outbox:
        outbox.acknowledge("task1", "token1")
    with Outbox(path) as outbox:
        assert outbox.pending() == [SECOND]


def test_acknowledgement_of_another_claim_removes_nothing(outbox: Outbox) -> None:
    outbox.put(FIRST)
    outbox.acknowledge("task1", "token2")
    outbox.acknowledge("task2", "token1")
    assert outbox.pending() == [FIRST]


def test_first_verdict_stands(outbox: Outbox) -> None:
    """R6.3: a success is not turned into a failure; but another claim has its own verdict."""
    assert outbox.put(FIRST)
    assert not outbox.put(Report("task1", "token1", "fail", b"afterthought"))
    assert outbox.put(Report("task1", "token2", "fail", b""))
    assert outbox.pending()[0] == FIRST


def test_full_outbox_said_so_before_the_run(path: Path) -> None:
    with Outbox(path, reports_max=1) as outbox:
        assert outbox.room() == 1
        outbox.put(FIRST)
        assert outbox.room() == 0
        with pytest.raises(OutboxFull):
            outbox.put(SECOND)
        assert not outbox.put(FIRST)
        outbox.acknowledge("task1", "token1")
        assert outbox.put(SECOND)


def test_payload_has_a_bound(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "PAYLOAD_MAX", 3)
    outbox.put(Report("task", "token", "complete", b"123"))
    with pytest.raises(ValueError, match="4 bytes"):
        outbox.put(Report("task", "other token", "complete", b"1234"))


KILLED = """
import os, signal, sys
from pathlib import Path
from understudy.daemon.outbox import Outbox, Report
Outbox(Path(sys.argv[1])).put(Report("task1", "token1", "complete", bytes.fromhex(sys.argv[2])))
os.kill(os.getpid(), signal.SIGKILL)
"""


def put_and_be_killed(path: Path) -> None:
    program = [sys.executable, "-c", KILLED, str(path), FIRST.payload.hex()]
    assert subprocess.run(program, check=False).returncode == -signal.SIGKILL


def test_report_survives_kill_9_right_after_put(path: Path) -> None:
    """R6.4"""
    put_and_be_killed(path)
    with Outbox(path) as outbox:
        assert outbox.pending() == [FIRST]


def test_commit_waits_for_the_disk(outbox: Outbox) -> None:
    """R6.4: no kill -9 shows whether a power cut would be survived; the setting does."""
    full = 2
    assert outbox._database.execute("pragma synchronous").fetchone() == (full,)
    assert outbox._database.execute("pragma journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("torn", [b"\0" * 1000, b"garbage" * 1000])
def test_torn_log_costs_only_what_was_torn(path: Path, torn: bytes) -> None:
    """R6.4: a power cut while the next report was written."""
    put_and_be_killed(path)
    with path.with_name("outbox-wal").open("ab") as log:
        log.write(torn)
    with Outbox(path) as outbox:
        assert outbox.pending() == [FIRST]
        assert outbox.put(SECOND)


def test_log_cut_in_a_commit_leaves_the_commits_before_it(path: Path) -> None:
    put_and_be_killed(path)
    log = path.with_name("outbox-wal")
    log.write_bytes(log.read_bytes()[:-100])
    with Outbox(path) as outbox:
        assert outbox.pending() == []
        assert outbox.put(SECOND)


def test_second_process_is_refused(path: Path, outbox: Outbox) -> None:
    second = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), "00"],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert OutboxBusy.__name__ in second.stderr
    assert outbox.put(FIRST)


def test_lock_dies_with_its_process(path: Path) -> None:
    put_and_be_killed(path)
    with Outbox(path), pytest.raises(OutboxBusy):
        Outbox(path)


def test_outbox_of_another_format_is_left_alone(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("pragma user_version = 2")
    database.close()
    with pytest.raises(UnknownFormat):
        Outbox(path)


def test_nobody_else_reads_the_outbox(path: Path, outbox: Outbox) -> None:
    outbox.put(FIRST)
    assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}
