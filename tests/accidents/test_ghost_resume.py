"""ghost_resume: each retry resumed a session that its CLI had lost, and failed as the last."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from understudy.testing.workplace import Workplace

# Claude Code, when it loses its transcripts: what it began it cannot resume. Then its network goes.
CLAUDE = r"""#!/bin/sh
[ "$1" = --version ] && { echo "2.1.197 (Claude Code)"; exit; }
echo "$*" >> TRACE
case "$*" in *--resume*) echo "No conversation found with session ID" >&2; exit 1;; esac
[ -e BEGUN ] && { echo "Unable to connect to API" >&2; exit 1; }
read -r prompt
touch BEGUN
while [ "$1" != --session-id ]; do shift; done
said='{"model":"m","content":[{"type":"text","text":"hello"}]}'
error='API Error: Unable to connect to API'
printf '{"type":"system","subtype":"init","session_id":"%s"}\n' "$2"
printf '{"type":"assistant","session_id":"%s","message":%s}\n' "$2" "$said"
printf '{"type":"result","subtype":"success","is_error":true,"result":"%s"}\n' "$error"
read -r rest
"""


def install(workplace: Workplace, directory: Path) -> None:
    directory.mkdir()
    script = CLAUDE.replace("BEGUN", str(directory / "begun"))
    (directory / "claude").write_text(script.replace("TRACE", str(directory / "trace")))
    (directory / "claude").chmod(0o755)
    search_path = f"{directory}{os.pathsep}{os.environ['PATH']}"
    workplace.config = replace(workplace.config, search_path=search_path)


async def test_a_session_that_is_gone_is_resumed_once_and_never_again(
    workplace: Workplace, tmp_path: Path
) -> None:
    """R5.10: the retry that met it went on afresh; however that ended, it is not offered again."""
    install(workplace, tmp_path / "bin")

    def asked() -> list[bool]:
        return ["--resume" in line for line in (tmp_path / "bin/trace").read_text().splitlines()]

    async with workplace.open_daemon():
        first = await workplace.wait_status(await workplace.assign("claude"), "failed")
        assert first["session_id"], "its retry is offered this"
        await workplace.wait_status(first["retry_task_id"], "failed")
        assert asked() == [False, True, False]
        made = await workplace.node.person.post("/api/issues/UND-1/rerun", json={})
        await workplace.wait_status(made.json()["id"], "failed")
    assert (asked().count(True), asked()[3]) == (1, False)
