"""The simulated disk, under the real code that writes: it can show a missing fsync."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from random import Random
from uuid import UUID

import pytest

from understudy.core.lifecycle import Move, Status
from understudy.core.records import Priority
from understudy.daemon.backends.backend import RunSpec
from understudy.daemon.files import replace_file
from understudy.daemon.locks import take_lock
from understudy.daemon.outbox import Outbox, Report
from understudy.daemon.record import (
    RunOrder,
    heard,
    note_heard,
    read_order,
    remove_run,
    set_aside,
    write_order,
)
from understudy.daemon.rundir import (
    ERR,
    EXIT,
    OUT,
    Exit,
    State,
    read_record,
    sync_directory,
    write_exit,
    write_record,
)
from understudy.testing.disk import Disk, disks
from understudy.testing.durable import Strikes
from understudy.wire.daemon import AgentBrief, ClaimedTask

REPORT = Report("task", "token", "complete", b"done")
LATER = Report("task", "another token", "fail", b"lost")
SEEDS = range(12)
STEPS = ("open", "fsync", "rename", "replace", "unlink", "mkdir")


class PowerLost(BaseException):
    pass


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path)
    with disks(disk):
        yield disk


def by(seed: int) -> Strikes:
    return lambda change: Random(f"{seed}/{change}").random() < 0.5


def everything(change: str) -> bool:
    return True


def nothing(change: str) -> bool:
    return False


def order(prompt: str) -> RunOrder:
    at, some = datetime(2026, 1, 1, tzinfo=UTC), UUID(int=7)
    task = ClaimedTask(
        id=some,
        agent_id=some,
        workspace_id=some,
        provider="scripted",
        status=Status.DISPATCHED,
        move=Move.CLAIM,
        trigger="assign",
        priority=Priority.NONE,
        attempt=1,
        max_attempts=2,
        created_at=at,
        claim_expires_at=at,
        agent=AgentBrief(id=some, name="Nia"),
    )
    return RunOrder(task=task, spec=RunSpec(prompt, "/work", "/run", {}))


def state(run: str) -> State:
    return State(run, "boot", 1.0, 2, 3)


def read_text(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def read_state(path: Path) -> str | None:
    return read_record(path, State).run if path.exists() else None


def write_prompt(path: Path, prompt: str) -> None:
    write_order(path, order(prompt))


def read_prompt(path: Path) -> str | None:
    found = read_order(path)
    return found.spec.prompt if found else None


Write = Callable[[Path, str], object]
Read = Callable[[Path], str | None]
WAYS = pytest.mark.parametrize(
    ("write", "read"),
    [
        pytest.param(replace_file, read_text, id="replace_file"),
        pytest.param(lambda path, run: write_record(path, state(run)), read_state, id="record"),
        pytest.param(write_prompt, read_prompt, id="order"),
    ],
)


@contextmanager
def power_lost_at(step: int) -> Iterator[None]:
    """That many calls are made, and no more."""
    left = iter(range(step))

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            if next(left, None) is None:
                raise PowerLost
            return real(*arguments, **named)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in STEPS:
            patch.setattr(os, name, counted(getattr(os, name)))
        yield


def found_after_each_step(root: Path, write: Write, read: Read) -> Iterator[set[str | None]]:
    """What a power cut may leave of a change from old to new, by the step it came at."""
    for step in count():
        found, is_done = set(), False
        for seed in SEEDS:
            disk = Disk(make(root / f"{step}-{seed}"))
            path = disk.root / "file"
            with disks(disk):
                write(path, "old")
                with suppress(PowerLost), power_lost_at(step):
                    write(path, "new")
                    is_done = True
                disk.power_cut(by(seed))
                found.add(read(path))
        yield found
        if is_done:
            return


def make(directory: Path) -> Path:
    directory.mkdir()
    return directory


@WAYS
def test_power_cut_at_any_step_leaves_the_old_file_or_the_new(
    tmp_path: Path, write: Write, read: Read
) -> None:
    """R6.4, R7.4: what a daemon or keeper has written down is never half."""
    found = list(found_after_each_step(tmp_path, write, read))
    assert len(found) > 4
    assert all(each <= {"old", "new"} for each in found)
    assert {"old", "new"} in found, "between the renaming and the sync of the directory"
    assert found[0] == {"old"}
    assert found[-1] == {"new"}


@WAYS
@pytest.mark.parametrize("forgotten", [stat.S_ISREG, stat.S_ISDIR])
def test_forgotten_fsync_loses_what_was_written(
    tmp_path: Path, write: Write, read: Read, forgotten: Callable[[int], bool]
) -> None:
    found = set[str | None]()
    for seed in SEEDS:
        disk = Disk(make(tmp_path / str(seed)))
        with disks(disk), pytest.MonkeyPatch.context() as patch:
            write(disk.root / "file", "old")
            sync = os.fsync
            patch.setattr(
                os, "fsync", lambda fd, sync=sync: forgotten(os.fstat(fd).st_mode) or sync(fd)
            )
            write(disk.root / "file", "new")
            disk.power_cut(by(seed))
            try:
                found.add(read(disk.root / "file"))
            except Exception:  # noqa: BLE001  Half a file is unreadable in as many ways as there are.
                found.add("half")
    assert "new" in found, "the kernel may have written it back"
    assert found - {"new"}, "or not"


def test_new_runs_directory_is_lost_with_what_is_in_it_unless_its_parent_is_synced(
    disk: Disk,
) -> None:
    runs = make(disk.root / "runs")
    (runs / "one").mkdir()
    replace_file(runs / "one" / "order.json", "{}")
    assert disk.power_cut(everything) == ["entry of runs"]
    assert not runs.exists()


def test_name_left_over_from_an_undone_renaming_does_not_hinder_the_next(disk: Disk) -> None:
    path = disk.root / "token"
    replace_file(path, "old")
    with suppress(PowerLost), power_lost_at(4):
        replace_file(path, "new")
    assert disk.power_cut(lambda change: change == "entry of token") == ["entry of token"]
    assert (path.read_text(), (disk.root / "token.new").read_text()) == ("old", "new")
    replace_file(path, "newer")
    disk.power_cut(everything)
    assert path.read_text() == "newer"


@pytest.mark.parametrize(
    ("struck", "left"),
    [
        (set[str](), None),
        ({"removal of one"}, set[str]()),
        ({"removal of one", "removal of one/a"}, {"a"}),
        ({"removal of one", "removal of one/order.json"}, {"a", "order.json"}),
    ],
)
def test_removal_that_was_not_synced_may_come_back_and_each_later_one_with_it(
    disk: Disk, struck: set[str], left: set[str] | None
) -> None:
    """`remove_run` counts on it: the order goes first."""
    run = disk.root / "one"
    write_order(run, order("work"))
    replace_file(run / "a", "")
    remove_run(run)
    disk.power_cut(struck.__contains__)
    assert ({entry.name for entry in run.iterdir()} if run.exists() else None) == left


def test_removed_file_is_not_taken_for_the_one_that_has_its_inode(disk: Disk) -> None:
    """Told only on file systems that use numbers again at once, as ext4."""
    replace_file(disk.root / "old", "old")
    (disk.root / "old").unlink()
    (disk.root / "new").write_text("newest")
    assert disk.power_cut(lambda change: change == "content of new") == ["content of new"]
    assert (disk.root / "new").read_text() == "new"


def test_sync_of_what_is_removed_keeps_nothing(disk: Disk) -> None:
    gone = make(disk.root / "gone")
    directory, file = os.open(gone, os.O_RDONLY), os.open(gone / "file", os.O_CREAT)
    (gone / "file").unlink()
    gone.rmdir()
    for descriptor in (file, directory):
        os.fsync(descriptor)
        os.close(descriptor)
    assert disk.power_cut(nothing) == []
    assert list(disk.root.iterdir()) == []


def test_renamed_directory_is_found_under_one_of_its_names(disk: Disk) -> None:
    run = disk.root / "one"
    write_order(run, order("work"))
    set_aside(run)
    assert disk.power_cut(everything) == ["entry of one.aside-1"]
    assert [entry.name for entry in disk.root.iterdir()] == ["one"]
    assert read_prompt(run) == "work"
    aside = set_aside(run)
    assert disk.power_cut(nothing) == []
    assert [entry.name for entry in disk.root.iterdir()] == [aside.name]


@pytest.mark.parametrize(
    ("struck", "left"),
    [
        (set[str](), b"one two "),
        ({"content of out"}, b"one "),
        ({"content of out", "all of out"}, b""),
        ({"entry of out"}, None),
    ],
)
def test_file_that_was_never_synced_may_be_gone_or_empty_or_cut_short(
    disk: Disk, struck: set[str], left: bytes | None
) -> None:
    out = disk.root / OUT
    out.write_bytes(b"one two ")
    assert set(disk.power_cut(struck.__contains__)) == struck
    assert (out.read_bytes() if out.exists() else None) == left


def test_what_survived_a_power_cut_is_durable(disk: Disk) -> None:
    note_heard(disk.root, 7)
    disk.power_cut(nothing)
    note_heard(disk.root, 8)
    assert disk.power_cut(everything) == ["content of heard"]
    assert heard(disk.root) == 7
    assert disk.power_cut(everything) == []


def test_descriptor_of_the_dead_reaches_no_file_of_the_living(disk: Disk) -> None:
    out = disk.root / OUT
    with out.open("w") as file:
        file.write("said")
        file.flush()
        disk.power_cut(nothing)
        file.write("by a ghost")
    assert out.read_text() == "said"


def test_work_is_durable_and_left_in_place(disk: Disk) -> None:
    file = make(make(disk.root / "work") / "clone") / "main.py"
    file.write_text("print()")
    before = file.stat()
    assert disk.power_cut(everything) == []
    assert file.stat() == before


# The outbox


def test_what_an_agent_said_is_on_disk_before_its_end(disk: Disk) -> None:
    """R8.1: an exit beside half a spool would make a failure of a success."""
    run_dir = make(disk.root / "run")
    sync_directory(disk.root)
    for name in (OUT, ERR):
        (run_dir / name).write_text("the first half, the second half")
    write_exit(run_dir, Exit("run", "exited", 1.0, 2.0, code=0))
    disk.power_cut(everything)
    assert (run_dir / EXIT).exists()
    assert read_text(run_dir / OUT) == "the first half, the second half"


def test_report_survives_the_power_cut_right_after_put(disk: Disk) -> None:
    """R6.4."""
    dead = Outbox(disk.root / "outbox.db")
    dead.put(REPORT)
    assert disk.power_cut(everything) == ["torn wal of outbox.db"]
    with Outbox(disk.root / "outbox.db") as outbox:
        assert outbox.pending() == [REPORT]
        outbox.put(LATER)
        disk.power_cut(nothing)
    with Outbox(disk.root / "outbox.db") as outbox:
        assert outbox.pending() == [REPORT, LATER]


def test_torn_tail_was_there(disk: Disk) -> None:
    Outbox(disk.root / "outbox.db").put(REPORT)
    wal = disk.root / "outbox.db-wal"
    whole = wal.read_bytes()
    disk.power_cut(everything)
    assert wal.read_bytes().startswith(whole)
    assert len(wal.read_bytes()) == len(whole) + 24 + 4096


def test_report_is_lost_where_commits_are_not_synced(
    disk: Disk,
) -> None:
    dead = Outbox(disk.root / "outbox.db")
    dead._database.execute("pragma synchronous = normal")
    dead.put(REPORT)
    assert disk.power_cut(everything) == ["wal of outbox.db"]
    with Outbox(disk.root / "outbox.db") as outbox:
        assert outbox.pending() == []


def test_outbox_of_the_dead_is_harmless(disk: Disk) -> None:
    with Outbox(disk.root / "outbox.db") as dead:
        dead.put(REPORT)
        disk.power_cut(nothing)
        with Outbox(disk.root / "outbox.db") as outbox:
            with pytest.raises(sqlite3.ProgrammingError):
                dead.acknowledge(REPORT.task_id, REPORT.claim_token)
            assert outbox.pending() == [REPORT]


# A full disk


def test_full_disk_leaves_the_old_content(disk: Disk) -> None:
    path = disk.root / "token"
    replace_file(path, "old")
    with Outbox(disk.root / "outbox.db") as outbox:
        outbox.put(REPORT)
        disk.fill()
        with pytest.raises(OSError, match="No space left on device"):
            replace_file(path, "new")
        with pytest.raises(OSError, match="No space left on device"):
            write_record(disk.root / "state.json", state("one"))
        with pytest.raises(OSError, match="No space left on device"):
            write_order(disk.root / "one", order("work"))
        with pytest.raises(sqlite3.OperationalError, match="full"):
            outbox.put(LATER)
        assert path.read_text() == "old"
        assert not (disk.root / "state.json").exists()
        assert outbox.pending() == [REPORT]
        disk.free()
        outbox.put(LATER)
        replace_file(path, "new")
        assert path.read_text() == "new"
        assert outbox.pending() == [REPORT, LATER]


def test_outbox_does_not_open_on_a_full_disk_nor_for_good(disk: Disk) -> None:
    disk.fill()
    with pytest.raises(sqlite3.OperationalError, match="full"):
        Outbox(disk.root / "outbox.db")
    disk.free()
    with Outbox(disk.root / "outbox.db") as outbox:
        assert outbox.put(REPORT)


def test_full_disk_still_reads_renames_and_removes(disk: Disk) -> None:
    run = disk.root / "one"
    write_order(run, order("work"))
    note_heard(run, 7)
    disk.fill()
    assert read_prompt(set_aside(run)) == "work"
    note_heard(disk.root / "one.aside-1", 8)
    assert heard(disk.root / "one.aside-1") == -1, "it was emptied to be written"
    remove_run(disk.root / "one.aside-1")
    assert list(disk.root.iterdir()) == []


def test_full_disk_has_no_room_for_a_directory_but_for_one_that_is_there(disk: Disk) -> None:
    make(disk.root / "runs")
    disk.fill()
    with pytest.raises(FileExistsError):
        make(disk.root / "runs")
    with pytest.raises(OSError, match="No space left"):
        make(disk.root / "work")


def test_disk_that_loses_power_while_it_is_full_is_full_afterwards(disk: Disk) -> None:
    write_order(disk.root / "one", order("work"))
    disk.fill()
    remove_run(disk.root / "one")
    disk.power_cut(everything)
    assert read_prompt(disk.root / "one") == "work"
    with pytest.raises(OSError, match="No space left"):
        (disk.root / "file").write_text("more")


def test_descriptor_opened_before_the_disk_was_full_finds_it_full(disk: Disk) -> None:
    spool = os.open(disk.root / OUT, os.O_WRONLY | os.O_CREAT)
    with (disk.root / "log").open("ab", buffering=0) as log:
        disk.fill()
        with pytest.raises(OSError, match="No space left"):
            os.write(spool, b"said")
        with pytest.raises(OSError, match="No space left"):
            log.write(b"noted")
    os.close(spool)


def test_other_disks_are_neither_full_nor_cut(tmp_path: Path) -> None:
    full, other = Disk(make(tmp_path / "machine-1")), Disk(make(tmp_path / "machine-10"))
    with disks(full, other):
        full.fill()
        (other.root / "file").write_text("here")
        (tmp_path / "file").write_text("on none of them")
        full.power_cut(everything)
        assert (other.root / "file").read_text() == "here"
        assert other.power_cut(everything) == ["entry of file"]


# While it lasts


def test_who_finds_a_lock_taken_does_not_wait(disk: Disk) -> None:
    held = take_lock(disk.root / "lock")
    assert held is not None
    began = time.monotonic()
    assert take_lock(disk.root / "lock") is None
    assert time.monotonic() - began < 0.5
    os.close(held)


def test_everything_is_as_before_afterwards(tmp_path: Path) -> None:
    before = (os.fsync, os.unlink, os.replace, os.write, open, sqlite3.connect)
    with disks(Disk(tmp_path)):
        assert os.fsync is not before[0]
    assert (os.fsync, os.unlink, os.replace, os.write, open, sqlite3.connect) == before
