"""Real keepers, real agents, real signals. Nothing of a run outlives its test."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from understudy.daemon import processes, rundir
from understudy.daemon.boottime import boot_s
from understudy.daemon.kept import (
    KeeperFailed,
    KeeperGone,
    KeeperRefused,
    Kept,
    spawn_keeper,
)
from understudy.daemon.lines import Line, Torn
from understudy.daemon.machine import here
from understudy.daemon.processes import Process
from understudy.daemon.rundir import Exit, Spec, Standing, UnknownFormat
from understudy.daemon.spool import Spool

STUBBORN = """
trap '' INT TERM HUP
echo up $$
while :; do sleep 0.2; done
"""


@dataclass
class Runs:
    root: Path
    known: list[tuple[Kept, str]] = field(default_factory=list)

    def spec(self, script: str, **changes: object) -> Spec:
        """An agent that is a shell script."""
        run, path = uuid.uuid4().hex, {"PATH": os.environ["PATH"]}
        spec = Spec(run=run, argv=["sh", "-c", script], cwd=str(self.root), env=path, grace_s=0.3)
        return spec._replace(**cast(dict[str, Any], changes))

    def directory(self, spec: Spec) -> Path:
        run_dir = self.root / f"run{len(self.known)}"
        self.known.append((Kept(run_dir), spec.run))
        return run_dir

    async def start(self, script: str, **changes: object) -> Kept:
        spec = self.spec(script, **changes)
        return await spawn_keeper(self.directory(spec), spec)

    def end(self) -> None:
        for kept, run in self.known:
            while left := [*keepers(kept), *processes.marked(run)]:
                processes.send(left, signal.SIGKILL)
                time.sleep(0.01)


def keepers(kept: Kept) -> list[Process]:
    if not (kept.run_dir / rundir.STATE).exists():
        return []
    state = kept.state()
    keeper = Process(state.keeper_pid, state.keeper_start)
    return [keeper] if processes.identify(keeper.pid) == keeper else []


def kill_keeper(kept: Kept) -> None:
    os.kill(kept.state().keeper_pid, signal.SIGKILL)


def keeper_file(kept: Kept, name: str) -> str:
    return Path(f"/proc/{kept.state().keeper_pid}/{name}").read_text()


def output(kept: Kept) -> str:
    return (kept.run_dir / rundir.OUT).read_text()


async def wait_until(condition: Callable[[], object]) -> None:
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110  Files and processes send no event.
            await trio.sleep(0.01)


async def wait_output(kept: Kept, text: str) -> None:
    await wait_until(lambda: text in output(kept))


async def wait_over(kept: Kept) -> Exit:
    with trio.fail_after(30):
        record = await kept.wait_exit()
    assert record is not None
    return record


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    runs = Runs(tmp_path)
    yield runs
    runs.end()


DAEMON = """
import sys, trio
from pathlib import Path
from understudy.daemon.kept import spawn_keeper
from understudy.daemon.rundir import SPEC, Spec, read_record

async def main(run_dir, spec):
    await spawn_keeper(run_dir, spec)
    print("up", flush=True)
    await trio.sleep_forever()

trio.run(main, Path(sys.argv[1]), read_record(Path(sys.argv[2]), Spec))
"""


def run_killed_daemon(run_dir: Path, spec: Path) -> None:
    program = [sys.executable, "-c", DAEMON]
    with subprocess.Popen([*program, run_dir, spec], stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == b"up\n"
        daemon.kill()


async def test_agent_works_on_when_its_daemon_is_killed(runs: Runs, tmp_path: Path) -> None:
    """R8.1: a new daemon finds the run, speaks with it, and misses no line."""
    spec = runs.spec("echo one; read line; echo $line; exit 3")
    run_dir = runs.directory(spec)
    rundir.write_record(tmp_path / "spec", spec)
    run_killed_daemon(run_dir, tmp_path / "spec")

    kept = Kept(run_dir)
    assert kept.look() is Standing.KEPT
    with trio.fail_after(30):
        await kept.write((await kept.ping()).next_n, "two\n")
        with Spool(run_dir) as spool:
            lines = [piece async for pieces in spool for piece in pieces]
    assert lines == [Line(0, 4, b"one"), Line(4, 8, b"two")]
    assert (await wait_over(kept)).code == 3


@pytest.mark.parametrize(
    ("script", "code", "number"), [("exit 3", 3, None), ("kill -9 $$", None, 9)]
)
async def test_exit_is_written_down(
    runs: Runs, script: str, code: int | None, number: int | None
) -> None:
    """R8.1"""
    record = await wait_over(await runs.start(f"printf abc; {script}"))
    assert (record.why, record.code, record.signal) == ("exited", code, number)
    assert (record.out_bytes, record.err_bytes) == (3, 0)
    assert record.ended_at >= record.started_at


async def test_killed_keeper_takes_its_agent_along_and_writes_no_exit(runs: Runs) -> None:
    """R8.1: keeper_lost. What the agent started lives on until it is swept by its mark."""
    kept = await runs.start("setsid sleep 600 & echo up; sleep 600")
    await wait_output(kept, "up")
    agent = kept.state().agent_pid
    assert agent is not None
    kill_keeper(kept)
    with trio.fail_after(30):
        assert await kept.wait_exit() is None
    assert kept.look() is Standing.LOST
    await wait_until(lambda: processes.identify(agent) is None)
    with trio.fail_after(30):
        assert "sleep" in await kept.sweep()
    assert processes.marked(kept.spec().run) == []


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("exec sh stubborn", id="leader"),
        pytest.param("setsid sh stubborn & wait", id="tool in its own session"),
        pytest.param("(sh stubborn &); exec sleep 600", id="re-parented"),
        pytest.param("(setsid sh -c '(setsid sh stubborn &)' &); exec sleep 600", id="daemonised"),
        pytest.param("setsid setsid sh stubborn & exec sh stubborn", id="both"),
    ],
)
async def test_stop_leaves_nothing_of_the_tree(runs: Runs, script: str) -> None:
    """R7.2: however stubborn, wherever it hangs."""
    (runs.root / "stubborn").write_text(STUBBORN)
    kept = await runs.start(script)
    await wait_output(kept, "up")
    await kept.stop("cancelled")
    record = await wait_over(kept)
    assert (record.why, record.left) == ("cancelled", [])
    assert processes.marked(kept.spec().run) == []


async def test_tool_that_dropped_the_mark_is_found_below_the_keeper(runs: Runs) -> None:
    """R7.2: re-parented to a subreaper, it is still a descendant."""
    (runs.root / "stubborn").write_text(STUBBORN)
    kept = await runs.start("(env -i PATH=$PATH setsid sh stubborn &); exec sleep 600")
    await wait_output(kept, "up")
    tool = processes.identify(int(output(kept).split()[1]))
    assert tool is not None
    assert tool not in processes.marked(kept.spec().run)
    try:
        await kept.stop("cancelled")
        await wait_over(kept)
        assert processes.identify(tool.pid) != tool
    finally:
        processes.send([tool], signal.SIGKILL)


async def test_what_an_earlier_keeper_of_the_run_lost_is_swept_too(runs: Runs) -> None:
    """R7.2: by its mark, since it is nobody's descendant any more."""
    spec = runs.spec("exit 0")
    with leftover(spec.run) as lost:
        record = await wait_over(await spawn_keeper(runs.directory(spec), spec))
        assert record.swept in (["sleep"], ["setsid"])  # It may not have become `sleep` yet.
        assert lost.wait(30) == -signal.SIGTERM


def leftover(run: str) -> subprocess.Popen[bytes]:
    path = {"PATH": os.environ["PATH"]}
    return subprocess.Popen(["sleep", "600"], env=path | {processes.MARKER: run})


async def test_stop_asks_then_tells_then_kills(runs: Runs) -> None:
    """R7.2"""
    kept = await runs.start(
        "trap 'echo INT' INT; trap 'echo TERM' TERM; echo up; while :; do sleep 0.05; done"
    )
    await wait_output(kept, "up")
    await kept.stop("cancelled")
    assert (await wait_over(kept)).signal == signal.SIGKILL
    assert output(kept) == "up\nINT\nTERM\n"


async def test_interrupt_frame_comes_before_any_signal(runs: Runs) -> None:
    """R7.2: the CLI's own interrupt first."""
    kept = await runs.start("read frame; echo got $frame; exit 7", interrupt="stop\n", grace_s=20)
    await kept.stop("cancelled")
    record = await wait_over(kept)
    assert (record.why, record.code) == ("cancelled", 7)
    assert output(kept) == "got stop\n"
    assert kept.frames() == ["stop\n"]


async def test_first_reason_to_stop_stands(runs: Runs) -> None:
    kept = await runs.start("echo up; sleep 600")
    await kept.stop("cancelled")
    with pytest.raises(KeeperGone), trio.fail_after(30):
        while True:
            await kept.stop("changed_my_mind")
    assert (await wait_over(kept)).why == "cancelled"


async def test_what_outlives_a_normal_end_is_swept(runs: Runs) -> None:
    """R7.2"""
    kept = await runs.start("setsid sleep 600 & exit 0")
    record = await wait_over(kept)
    assert (record.why, record.code) == ("exited", 0)
    assert record.swept in (["sleep"], ["setsid"])  # It may not have become `sleep` yet.
    assert processes.marked(kept.spec().run) == []


async def test_agent_is_stopped_when_no_daemon_comes_back(runs: Runs) -> None:
    """R8.2: spool and directory stay."""
    kept = await runs.start("echo out; sleep 600", orphan_s=0.2)
    assert (await wait_over(kept)).why == "orphaned"
    assert output(kept) == "out\n"


async def test_any_word_from_a_daemon_keeps_the_agent(runs: Runs) -> None:
    """R8.2: three times the deadline, pinged eight times within each."""
    kept = await runs.start("sleep 600", orphan_s=2)
    for _ in range(24):
        assert (await kept.ping()).ending is None
        await trio.sleep(0.25)


async def test_an_agent_ends_when_its_task_may_be_given_away_whoever_pings(runs: Runs) -> None:
    """R4.11: a daemon that came back and has no link is no reason to go on."""
    kept = await runs.start("sleep 600", trusted_until=boot_s() + 600)
    assert (await kept.trust(boot_s() + 1)).ending is None
    with trio.fail_after(30):
        while (await kept.ping()).ending is None:  # noqa: ASYNC110  It is asked on purpose.
            await trio.sleep(0.1)
    assert (await wait_over(kept)).why == "runtime_offline"


async def test_a_promise_that_is_renewed_keeps_the_agent(runs: Runs) -> None:
    """R4.11: for as long as there is one; without one nothing ends it."""
    kept, other = [await runs.start("sleep 600", trusted_until=at) for at in (boot_s() + 2, None)]
    for _ in range(8):
        assert (await kept.trust(boot_s() + 2)).ending is None
        await trio.sleep(0.5)
    assert (await wait_over(kept)).why == "runtime_offline"
    assert (await other.ping()).ending is None


@pytest.mark.parametrize(
    ("script", "limit", "why"),
    [
        ("sleep 600", {"max_s": 0.2}, "max_time"),
        ("yes", {"spool_max": 100_000}, "spool_full"),
        ("yes >&2", {"spool_max": 100_000}, "spool_full"),
    ],
)
async def test_limits_end_a_run(runs: Runs, script: str, limit: dict[str, float], why: str) -> None:
    assert (await wait_over(await runs.start(script, **limit))).why == why


async def test_agent_that_leaves_after_its_result_has_exited(runs: Runs) -> None:
    """R9.3: the linger ends early, and the exit status is the agent's own."""
    kept = await runs.start("echo result; cat; exit 4", done="^result$", linger_s=600)
    record = await wait_over(kept)
    assert (record.why, record.code) == ("exited", 4)


async def test_sigterm_to_the_keeper_ends_the_run_in_order(runs: Runs) -> None:
    kept = await runs.start("setsid sleep 600 & echo up; sleep 600")
    await wait_output(kept, "up")
    os.kill(kept.state().keeper_pid, signal.SIGTERM)
    assert (await wait_over(kept)).why == "keeper_sigterm"
    assert processes.marked(kept.spec().run) == []


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"argv": ["/nowhere/agent"]}, "/nowhere/agent"),
        ({"cwd": "/nowhere"}, "/nowhere"),
        ({"argv": ["sh", "a\0b"]}, "null byte"),
    ],
)
async def test_agent_that_cannot_start_is_an_exit_like_any_other(
    runs: Runs, change: dict[str, Any], error: str
) -> None:
    kept = await runs.start("", **change)
    record = await wait_over(kept)
    assert record.why == "spawn_failed"
    assert error in (record.error or "")


async def test_second_keeper_refuses_a_run_that_has_one(runs: Runs) -> None:
    """R8.1: also when it was started before it could know."""
    kept = await runs.start("echo up; sleep 600")
    with pytest.raises(KeeperFailed, match="is kept"):
        await spawn_keeper(kept.run_dir, kept.spec())
    assert await here().start_keeper(kept.run_dir, ()) == "another keeper holds the lock"
    assert output(kept) == "up\n"


@pytest.mark.parametrize("lost", [False, True], ids=["over", "lost"])
async def test_no_run_is_started_twice(runs: Runs, *, lost: bool) -> None:
    kept = await runs.start("echo up; read _")
    await wait_output(kept, "up")
    if lost:
        kill_keeper(kept)
    else:
        await kept.close_stdin()
    with trio.fail_after(30):
        await kept.wait_exit()
    assert await here().start_keeper(kept.run_dir, ()) == "this run was started before"
    assert output(kept) == "up\n"


async def test_frame_sent_twice_is_written_once(runs: Runs) -> None:
    """R8.1: numbered frames."""
    kept = await runs.start("cat; echo end; exec sleep 600", stdin="zero\n")
    assert (await kept.write(1, "one\n")).next_n == 2
    assert (await kept.write(1, "one\n")).next_n == 2
    with pytest.raises(KeeperRefused, match="the next is 2"):
        await kept.write(3, "three\n")
    await kept.close_stdin()
    with pytest.raises(KeeperRefused, match="closed"):
        await kept.write(2, "two\n")
    await wait_output(kept, "end")
    assert output(kept) == "zero\none\nend\n"
    assert kept.frames() == ["zero\n", "one\n"]


async def test_frame_without_room_on_the_disk_is_refused_whole(runs: Runs) -> None:
    kept = await runs.start("cat", stdin="zero\n")
    keeper, no_limit = kept.state().keeper_pid, resource.RLIM_INFINITY
    resource.prlimit(keeper, resource.RLIMIT_FSIZE, (50, no_limit))
    with pytest.raises(KeeperRefused, match="no space left"):
        await kept.write(1, "x" * 100 + "\n")
    resource.prlimit(keeper, resource.RLIMIT_FSIZE, (no_limit, no_limit))
    await kept.write(1, "one\n")
    assert kept.frames() == ["zero\n", "one\n"]


async def test_stdin_too_large_for_the_pipe_waits_in_the_keeper(runs: Runs) -> None:
    os.mkfifo(runs.root / "go")
    frame = "x" * 3_000_000 + "\n"
    kept = await runs.start("read _ < go; exec cat", stdin=frame, close_stdin=True)
    assert (await kept.ping()).stdin_open
    await trio.Path(runs.root / "go").write_text("go\n")
    await wait_over(kept)
    assert output(kept) == frame


async def test_agent_inherits_nothing_but_its_spec(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R9.5: not even the keeper knows the daemon's secrets."""
    monkeypatch.setenv("UNDERSTUDY_TOKEN", "secret")
    monkeypatch.setenv("SOMETHING", "else")
    kept = await runs.start("env; sleep 600", env={"PATH": os.environ["PATH"], "MINE": "1"})
    await wait_output(kept, "MINE")
    names = {line.partition("=")[0] for line in output(kept).splitlines()}
    assert names - {"PWD", "SHLVL", "_", "OLDPWD"} == {"PATH", "MINE", "UNDERSTUDY_RUN"}
    assert "secret" not in keeper_file(kept, "environ")


async def test_agent_can_be_interrupted_though_its_daemon_cannot(runs: Runs) -> None:
    """An ignored signal is inherited; a daemon under nohup ignores some."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        kept = await runs.start("grep SigIgn /proc/self/status")
    finally:
        signal.signal(signal.SIGINT, before)
    await wait_over(kept)
    ignored = int(output(kept).split()[1], 16)
    assert not ignored & 1 << signal.SIGINT - 1


@pytest.mark.parametrize(
    "request_line",
    [
        b"\xff\n",
        b"[1]\n",
        b'"x"\n',
        b'{"op":"write","n":"x"}\n',
        b'{"op":"signal","number":9999}\n',
        b"[" * 9999 + b"\n",
    ],
)
async def test_no_request_ends_a_keeper(runs: Runs, request_line: bytes) -> None:
    kept = await runs.start("sleep 600")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(kept.run_dir / rundir.CONTROL))
        client.sendall(request_line)
        assert b'"ok": false' in client.recv(4096)
    assert (await kept.ping()).agent_alive


async def test_keeper_is_reached_through_any_path(runs: Runs) -> None:
    """A socket's address has room for 108 bytes."""
    spec = runs.spec("sleep 600")
    deep = runs.root / ("d" * 100)
    deep.mkdir()
    run_dir = deep / "run"
    runs.known.append((Kept(run_dir), spec.run))
    kept = await spawn_keeper(run_dir, spec)
    assert (await kept.ping()).agent_alive


async def test_where_no_run_is_nobody_answers(tmp_path: Path) -> None:
    """It may be still being prepared, or just have been removed."""
    with pytest.raises(KeeperGone):
        await Kept(tmp_path / "not yet").ping()


async def test_exit_waits_for_room_on_the_disk(runs: Runs) -> None:
    kept = await runs.start("read _")
    obstacle = kept.run_dir / f"{rundir.EXIT}.new"
    obstacle.mkdir()
    await kept.close_stdin()
    await wait_until(lambda: "cannot write the exit" in (kept.run_dir / rundir.LOG).read_text())
    obstacle.rmdir()
    assert (await wait_over(kept)).why == "exited"


async def test_keeper_that_cannot_begin_says_why(runs: Runs) -> None:
    spec = runs.spec("echo up", done="(")
    run_dir = runs.directory(spec)
    with pytest.raises(KeeperFailed, match="missing \\)"):
        await spawn_keeper(run_dir, spec)
    assert Kept(run_dir).look() is Standing.UNBORN


async def test_half_a_line_at_the_end_is_torn(runs: Runs) -> None:
    """R5.11"""
    kept = await runs.start("echo whole; printf half")
    with trio.fail_after(30), Spool(kept.run_dir) as spool:
        pieces = [piece async for pieces in spool for piece in pieces]
    assert pieces == [Line(0, 6, b"whole"), Torn(6, 10, b"half")]


async def test_keeper_is_small(runs: Runs) -> None:
    kept = await runs.start("sleep 600")
    resident_kb = int(keeper_file(kept, "status").partition("VmRSS:")[2].split()[0])
    assert resident_kb < 15_000


@pytest.mark.parametrize(
    ("state", "held", "exited", "standing"),
    [
        (False, False, False, Standing.UNBORN),
        (False, True, False, Standing.KEPT),
        (True, True, False, Standing.KEPT),
        (True, True, True, Standing.OVER),
        (True, False, True, Standing.OVER),
        (True, False, False, Standing.LOST),
    ],
)
def test_directory_tells_its_standing(
    tmp_path: Path, *, state: bool, held: bool, exited: bool, standing: Standing
) -> None:
    for name, there in ((rundir.STATE, state), (rundir.EXIT, exited)):
        if there:
            (tmp_path / name).touch()
    with (tmp_path / rundir.LOCK).open("w") as lock:
        if held:
            fcntl.flock(lock, fcntl.LOCK_EX)
        assert rundir.look(tmp_path) is standing


def test_record_of_another_format_is_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / rundir.EXIT).write_text('{"format": 2, "how": "otherwise"}')
    with pytest.raises(UnknownFormat):
        Kept(tmp_path).exit()


THREADED = """
import ctypes, threading
threading.Thread(target=threading.Event().wait).start()
print("up", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


async def test_process_without_its_main_thread_is_alive(runs: Runs) -> None:
    """It looks like a zombie and works on."""
    kept = await runs.start("", argv=[sys.executable, "-c", THREADED])
    await wait_output(kept, "up")
    agent = kept.state().agent_pid
    assert agent is not None
    stat = Path(f"/proc/{agent}/stat")
    await wait_until(lambda: ") Z " in stat.read_text())
    assert processes.identify(agent) is not None
