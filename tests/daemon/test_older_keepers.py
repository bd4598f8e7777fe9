"""A daemon takes over the runs of an older version (R8.1).

What stands here was recorded from the first version that had keepers, and is never changed. When a
format changes, what the last one wrote is recorded beside it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
import trio

from understudy.daemon import rundir
from understudy.daemon.kept import KeeperRefused, Kept
from understudy.daemon.outbox import FORMAT as OUTBOX_FORMAT
from understudy.daemon.record import FORMAT as ORDER_FORMAT
from understudy.daemon.record import ORDER, UnreadableOrder, read_order
from understudy.daemon.rundir import Standing

RUN: Final = "0190f000-0000-7000-8000-000000000001"
SPEC: Final = {
    "format": 1, "run": RUN, "argv": ["sh", "-c", "echo one; sleep 2; exit 3"], "cwd": "/home",
    "env": {"PATH": "/usr/bin:/bin"}, "stdin": "two\n", "close_stdin": False, "interrupt": None,
    "interrupt_signal": 2, "done": None, "linger_s": 10.0, "grace_s": 2.0, "max_s": None,
    "orphan_s": 1800.0, "spool_max": 1073741824,
}  # fmt: skip
STATE: Final = {
    "format": 1, "run": RUN, "boot_id": "14400109-59f3-4384-b53b-e1fa59deadbc",
    "started_at": 1795280931.156157, "keeper_pid": 18275, "keeper_start": 670527,
    "agent_pid": 18278, "agent_start": 670530,
}  # fmt: skip
EXIT: Final = {
    "format": 1, "run": RUN, "why": "exited", "started_at": 1795280931.156157,
    "ended_at": 1795280933.3179436, "code": 3, "signal": None, "error": None, "out_bytes": 4,
    "err_bytes": 0, "swept": [], "left": [],
}  # fmt: skip
ANSWER: Final = {
    "ok": True, "format": 1, "next_n": 1, "stdin_open": True, "agent_alive": True, "ending": None,
    "out_bytes": 4, "err_bytes": 0,
}  # fmt: skip
ORDER_OF_OLD: Final = (
    '{"format":1,"task":{"id":"0190f000-0000-7000-8000-000000000001",'
    '"agent_id":"0190f000-0000-7000-8000-000000000002","runtime_id":null,"issue_id":null,'
    '"workspace_id":"0190f000-0000-7000-8000-000000000003","provider":"command",'
    '"status":"dispatched","move":"claim","trigger":"assign","priority":0,"attempt":1,'
    '"max_attempts":2,"parent_task_id":null,"created_at":"2026-01-01T00:00:00Z",'
    '"dispatched_at":null,"started_at":null,"completed_at":null,"cancel_requested_at":null,'
    '"progress":null,"result":null,"error":null,"failure_reason":null,"session_id":null,'
    '"work_dir":null,"claim_token":"0190f000-0000-7000-8000-000000000004",'
    '"claim_expires_at":"2026-01-01T00:00:00Z","agent":{"id":'
    '"0190f000-0000-7000-8000-000000000002","name":"Nia","instructions":"","skills":[],'
    '"custom_env":{},"custom_args":["sh","-c","exit 3"],"mcp_config":null,"model":null},'
    '"issue":null,"repos":[],"prior_session_id":null,"prior_work_dir":null,'
    '"trigger_comment_id":null,"trigger_comment_content":null,"auth_token":null},"spec":{"prompt":'
    '"Do it","work_dir":"/tmp","run_dir":"/tmp/run","env":{"PATH":"/usr/bin:/bin"},"executable":"",'
    '"model":null,"instructions":"","custom_args":["sh","-c","exit 3"],"mcp_config":null,'
    '"resume":null,"session_id":null,"requests_max":null},"branch":"understudy/nia/UND-1",'
    '"base_commit":null}'
)

# Holds the lock and answers as the first keepers did; a stop is all that it does.
KEEPER: Final = """
import fcntl, json, socket, sys
answer, end = json.loads(sys.argv[1]), sys.argv[2]
lock = open("lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
listener = socket.socket(socket.AF_UNIX)
listener.bind("ctl")
listener.listen()
print("up", flush=True)
while True:
    client = listener.accept()[0]
    for line in client.makefile():
        known = json.loads(line)["op"] in ("ping", "write", "close_stdin", "signal", "stop")
        refusal = {"ok": False, "error": "cannot do this now"}
        client.sendall(json.dumps(answer if known else refusal).encode() + b"\\n")
        if json.loads(line)["op"] == "stop":
            open("exit.json", "w").write(end)
            sys.exit()
"""


def recorded(run_dir: Path, **files: object) -> None:
    for name, record in files.items():
        (run_dir / f"{name}.json").write_text(json.dumps(record))


@contextmanager
def older_keeper(run_dir: Path) -> Iterator[Kept]:
    recorded(run_dir, spec=SPEC, state=STATE)
    with subprocess.Popen(
        [sys.executable, "-c", KEEPER, json.dumps(ANSWER), json.dumps(EXIT)],
        cwd=run_dir,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        try:
            yield Kept(run_dir)
        finally:
            process.kill()


async def test_an_older_keeper_is_found_spoken_with_and_heard_to_its_end(tmp_path: Path) -> None:
    """R8.1: what it does not know it refuses, and nobody depends on that."""
    with older_keeper(tmp_path) as kept, trio.fail_after(30):
        assert kept.look() is Standing.KEPT
        assert (kept.spec().run, kept.state().agent_pid) == (RUN, 18278)
        assert kept.spec().trusted_until is None
        assert (await kept.ping()).next_n == 1
        with pytest.raises(KeeperRefused):
            await kept.trust(1.0)
        await kept.stop("cancelled")
        end = await kept.wait_exit()
        assert end is not None
        assert (end.why, end.code, end.out_bytes) == ("exited", 3, 4)


def test_an_older_order_is_read(tmp_path: Path) -> None:
    """R8.1: with what was not known then left at its default."""
    (tmp_path / ORDER).write_text(ORDER_OF_OLD)
    order = read_order(tmp_path)
    assert order is not None
    assert (order.task.agent.name, order.spec.prompt) == ("Nia", "Do it")
    assert (order.refused, order.seq_first, order.task.is_movable) == (None, 0, False)


def test_an_order_of_a_newer_version_is_not_guessed_at(tmp_path: Path) -> None:
    """R8.1: after a downgrade. Its run is set aside, not started again."""
    (tmp_path / ORDER).write_text(ORDER_OF_OLD.replace('"format":1', '"format":2', 1))
    with pytest.raises(UnreadableOrder, match="has format 2, we know 1"):
        read_order(tmp_path)


def test_a_format_that_is_new_has_a_recording_of_the_old() -> None:
    """Who raises a format teaches its reader the one before, and records that one here."""
    assert (rundir.FORMAT, ORDER_FORMAT, OUTBOX_FORMAT) == (1, 1, 1)
