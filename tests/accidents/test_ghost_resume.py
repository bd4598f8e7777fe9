"""Each retry resumed a session that its CLI had lost, and failed as the last.

A session id that is offered until a run succeeds with it is offered for ever. Here one refusal
retires it, and the task goes on afresh (R5.10). The world's Claude Code is a script; below, a shell
plays it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from understudy.testing.scenario import Scenario
from understudy.testing.simulated_process import Agent
from understudy.testing.workplace import Workplace


class ForgetfulClaude:
    """It cannot continue the first session that it began. `resumed`: which ones it was to.

    `reason` and `output` of its results are for the auditor, who knows no Claude Code.
    """

    def __init__(self) -> None:
        self.resumed = list[str | None]()
        self.first: str | None = None

    async def play(self, agent: Agent) -> int:
        resumed = option(agent, "--resume")
        self.resumed.append(resumed)
        session = resumed or option(agent, "--session-id")
        if self.first is None:
            self.first = session
            return await self._lose_network(agent, session)
        if session == self.first:
            agent.complain(b"No conversation found with session ID\n")
            return 1
        return await self._succeed(agent, session)

    async def _lose_network(self, agent: Agent, session: str | None) -> int:
        speak(agent, session)
        await agent.sleep(30)
        error = "API Error: Unable to connect to API"
        told = {"is_error": True, "result": error, "reason": "provider_network"}
        agent.say("result", subtype="success", **told)
        return 1

    async def _succeed(self, agent: Agent, session: str | None) -> int:
        speak(agent, session)
        await agent.sleep(30)
        agent.say("result", subtype="success", result="Fixed.", output="Fixed.")
        return 0


def option(agent: Agent, name: str) -> str | None:
    argv = agent.spec.argv
    return argv[argv.index(name) + 1] if name in argv else None


def speak(agent: Agent, session: str | None) -> None:
    message = {"model": "m", "content": [{"type": "text", "text": "Let me see."}]}
    agent.say("assistant", session_id=session, message=message)


def test_ghost_resume(enact: Callable[..., None]) -> None:
    """R5.9, R5.10: refused once, then afresh in the same task; the next one is offered that."""

    async def story(world: Scenario) -> None:
        claude = ForgetfulClaude()
        await world.agent("Nia", provider="claude")
        await world.machine("laptop", provider="claude")
        fix = await world.assign("Fix the parser", claude.play)
        await world.pass_(60)
        await fix.until("completed")
        assert await fix.outcome() == ["provider_network", "completed"]
        assert claude.resumed == [None, claude.first, None]
        await fix.comment("And its tests, @Nia.")
        again = await fix.until("completed")
        assert claude.resumed[3:] == [again["session_id"]]
        assert again["session_id"] != claude.first

    enact(story)


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
