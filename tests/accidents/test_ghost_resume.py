"""ghost_resume: each retry resumed a session that its CLI had lost, and failed as the last."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from understudy.testing.workplace import Workplace

# Claude Code, as it does with its transcripts in a directory that may be lost.
CLAUDE = """#!/bin/sh
[ "$1" = --version ] && { echo "2.1.197 (Claude Code)"; exit; }
echo "$*" >> TRACE
while [ $# -gt 0 ]; do
  case $1 in
    --resume) id=$2; [ -e "SESSIONS/$id" ] || { echo "No conversation found: $id" >&2; exit 1; };;
    --session-id) id=$2;;
  esac
  shift
done
read -r prompt
touch "SESSIONS/$id"
echo "{\\"type\\":\\"system\\",\\"subtype\\":\\"init\\",\\"session_id\\":\\"$id\\"}"
echo "{\\"type\\":\\"assistant\\",\\"session_id\\":\\"$id\\",\\"message\\":{\\"model\\":\\"m\\",\\
\\"content\\":[{\\"type\\":\\"text\\",\\"text\\":\\"done\\"}]}}"
echo "{\\"type\\":\\"result\\",\\"subtype\\":\\"RESULT\\",\\"result\\":\\"done\\"}"
read -r rest
"""


def install(workplace: Workplace, directory: Path, result: str) -> None:
    claude = directory / "claude"
    script = CLAUDE.replace("\\\n", "").replace("RESULT", result)
    script = script.replace("TRACE", str(directory / "trace"))
    claude.write_text(script.replace("SESSIONS", str(directory / "sessions")))
    claude.chmod(0o755)
    search_path = f"{directory}{os.pathsep}{os.environ['PATH']}"
    workplace.config = replace(workplace.config, search_path=search_path)


async def run_again(workplace: Workplace) -> str:
    made = await workplace.node.person.post("/api/issues/UND-1/rerun", json={})
    return str(made.json()["id"])


@pytest.mark.parametrize(
    ("result", "status"), [("success", "completed"), ("error_during_execution", "failed")]
)
async def test_a_session_that_is_gone_is_resumed_once_and_never_again(
    workplace: Workplace, tmp_path: Path, result: str, status: str
) -> None:
    """R5.10: the run that met it goes on afresh; however that ends, the id is not offered again."""
    (tmp_path / "bin" / "sessions").mkdir(parents=True)
    install(workplace, tmp_path / "bin", "success")
    async with workplace.open_daemon():
        first = await workplace.wait_status(await workplace.assign("claude"), "completed")
    ghost = first["session_id"]
    (tmp_path / "bin" / "sessions" / ghost).unlink()
    install(workplace, tmp_path / "bin", result)
    async with workplace.open_daemon():
        for _ in range(3):
            done = await workplace.wait_status(await run_again(workplace), "completed", "failed")
            assert done["status"] == status
            assert done["session_id"] != ghost
    asked = (tmp_path / "bin" / "trace").read_text()
    assert asked.count(f"--resume {ghost}") == 1
