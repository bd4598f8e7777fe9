"""Cancels of agents that do not want to go: how long until each is provably gone (R7.1, R7.2).

pytest -s -m slow tests/system/test_cancels.py      200 of them, eight at once
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from statistics import quantiles
from typing import Any, Final

import pytest
import trio

from understudy.core.lifecycle import TERMINAL
from understudy.daemon import processes
from understudy.daemon.kept import Kept
from understudy.daemon.processes import Process
from understudy.testing.machine import Machine, open_machine
from understudy.testing.node import Node

LOOK_AGAIN_S: Final = 0.02
BOUND_S: Final = 45.0
"""Of one cancel, so that nothing waits for ever. The goal is 6 s (R7.2); it is printed."""

# `stay` is a process that no polite signal ends. Its last argument is the run, so that it is found
# even where it has thrown away its environment, and with it the mark.
STAY: Final = """
stay='trap "" INT TERM HUP QUIT; echo up; while :; do sleep 0.2; done'
"""
STUBBORN: Final = {
    "ignores every signal": 'sh -c "$stay" sh $UNDERSTUDY_RUN & eval "$stay"',
    "double-forked in a session of its own": (
        '(setsid sh -c "$stay" sh $UNDERSTUDY_RUN & (setsid sh -c "$stay" sh $UNDERSTUDY_RUN &))'
        "; exec sleep 600"
    ),
    "in a tool": (
        """echo '{"type":"tool_use","id":"1","name":"shell","input":{}}';"""
        'sh -c "$stay" sh $UNDERSTUDY_RUN & trap "" INT TERM;'
        'setsid --wait sh -c "$stay" sh $UNDERSTUDY_RUN'
    ),
    "without its environment": (
        'setsid env -i PATH="$PATH" sh -c "$stay" sh $UNDERSTUDY_RUN &'
        '(env -i PATH="$PATH" setsid sh -c "$stay" sh $UNDERSTUDY_RUN &); exec sleep 600'
    ),
}
STUBBORN_PROCESSES: Final = 2  # Each of them has so many that say "up".


@dataclass
class Cancels:
    """`took_s`: from the person's request to a task that is cancelled, one for each."""

    machine: Machine
    took_s: list[float] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    async def cancel(self, agent: str) -> None:
        task = await self.machine.assign(agent, title=f"For {agent}")
        await self._wait_up(task)
        assert len(living(task)) >= STUBBORN_PROCESSES, "it would not see what is left"
        asked_at = trio.current_time()
        asked = await self.machine.node.person.post(f"/api/tasks/{task}/cancel")
        assert asked.is_success, asked.text
        ended = await self._wait_ended(task)
        self.took_s.append(trio.current_time() - asked_at)
        left = living(task)
        self.left += [f"{agent}: {processes.name(each)} ({each.pid})" for each in left]
        processes.send(left, signal.SIGKILL)
        assert (ended["status"], ended["error"]) == ("cancelled", None), ended

    async def _wait_up(self, task: str) -> None:
        out = Kept(self.machine.config.path / "runs" / task).run_dir / "out"
        with trio.fail_after(BOUND_S):
            while not out.exists() or out.read_text().count("up\n") < STUBBORN_PROCESSES:  # noqa: ASYNC110  A file.
                await trio.sleep(LOOK_AGAIN_S)

    async def _wait_ended(self, task: str) -> Any:
        with trio.fail_after(BOUND_S):
            while True:
                shown = (await self.machine.get(f"/api/tasks/{task}"))["task"]
                if shown["status"] in TERMINAL:
                    return shown
                await trio.sleep(LOOK_AGAIN_S)


def living(task: str) -> list[Process]:
    """What is left of a run: by its mark, or by the argument that names it."""
    argument = f"\0{task}\0".encode()
    named = [entry for entry in processes.PROC.glob("[0-9]*") if argument in _command_line(entry)]
    found = [processes.identify(int(entry.name)) for entry in named]
    return sorted({*processes.marked(task), *filter(None, found)})


def _command_line(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize(
    ("count", "at_once"),
    [(5, 5), pytest.param(200, 8, marks=pytest.mark.slow)],
)
async def test_a_cancelled_agent_is_gone_with_all_its_stubborn_children(
    node: Node, tmp_path: Path, count: int, at_once: int
) -> None:
    """R7.1, R7.2: from the person's request through daemon and keeper to `stopped`."""
    with open_machine(node, tmp_path / "daemon") as machine:
        for name, script in STUBBORN.items():
            arguments = ["sh", "-c", STAY + script]
            fields: dict[str, object] = {"custom_args": arguments, "max_concurrent_tasks": 20}
            await machine.agent(name, "command", **fields)
        cancels = Cancels(machine)
        async with machine.daemon():
            await cancel_all(cancels, count, at_once)
        show(cancels, at_once)
        assert (cancels.left, len(cancels.took_s)) == ([], count)


async def cancel_all(cancels: Cancels, count: int, at_once: int) -> None:
    agents, turn = cycle(STUBBORN), trio.CapacityLimiter(at_once)

    async def take_turn(agent: str) -> None:
        async with turn:
            await cancels.cancel(agent)

    async with trio.open_nursery() as nursery:
        for agent, _ in zip(agents, range(count), strict=False):
            nursery.start_soon(take_turn, agent)


def show(cancels: Cancels, at_once: int) -> None:
    cuts = quantiles(cancels.took_s, n=100, method="inclusive")
    print(  # noqa: T201  The figure is what this test is for.
        f"\n{len(cancels.took_s)} cancels, {at_once} at once: p50 {cuts[49]:.1f} s,"
        f" p99 {cuts[98]:.1f} s, worst {max(cancels.took_s):.1f} s; the goal is 6 s at p99;"
        f" processes left: {len(cancels.left)}"
    )
