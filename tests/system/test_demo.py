"""The demo is the promise in one command: it is run as a user runs it."""

from __future__ import annotations

import json
import signal

import trio

from understudy.testing.processes import Machine, open_machine, wait_until


def scratch(machine: Machine) -> list[str]:
    return [path.name for path in machine.directory.glob("understudy-demo-*")]


async def test_the_demo_loses_nothing_doubles_nothing_and_cleans_up() -> None:
    async with open_machine() as machine:
        machine.environment["TMPDIR"] = str(machine.directory)
        done = await machine.run("demo", "--json")
        assert done.returncode == 0, done.stderr.decode()
        verdict = json.loads(done.stdout.splitlines()[-1])
        assert verdict.pop("seconds") > 0
        assert verdict == {
            "runs": 3, "completed": 3, "lost": 0, "doubled": 0, "adopted": 1, "agent_restarts": 0,
        }  # fmt: skip
        assert b"SIGKILL" in done.stderr
        assert machine.left() == {}
        assert scratch(machine) == []


async def test_a_demo_that_is_interrupted_ends_its_agent_and_cleans_up() -> None:
    async with open_machine() as machine:
        machine.environment["TMPDIR"] = str(machine.directory)
        demo = await machine.start("demo")
        await wait_until(lambda: "is assigned" in machine.said("demo"))
        demo.send_signal(signal.SIGINT)
        with trio.fail_after(60):
            assert await demo.wait() == 130
        assert machine.left() == {}
        assert scratch(machine) == []
