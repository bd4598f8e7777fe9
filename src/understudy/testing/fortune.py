"""What will become of a simulated agent's run: how long it works, and how it ends."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from understudy.testing.evidence import Run
from understudy.testing.simulated_machine import SimulatedMachine
from understudy.wire.daemon import ClaimedTask

WORK_S: Final = (0.0, 1.0, 15.0, 60.0, 120.0, 240.0)
REASONS: Final = (
    "agent_error", "provider_network", "provider_network", "provider_overloaded", "agent_stalled",
    "runtime_shutdown", "auth", "quota_exhausted", "a reason of its own",
)  # fmt: skip
ASKED_S: Final = (None, 10.0, 100.0)
"""What an overloaded provider asks for."""
QUOTA_S: Final = (30.0, 150.0)
AGENTS: Final = ("Agent 0", "Agent 1", "Agent 2", "Agent 3")


def tell(machine: SimulatedMachine, task: ClaimedTask) -> tuple[Run, float]:
    """The run, and for how many seconds it works."""
    chance, name = machine.chance, machine.name
    output = f"{name} did {task.id}"
    if chance.strikes(f"{name}/calls", 0.15):
        output += f" @{chance.pick(f'{name}/callee', AGENTS)}."
    run = Run(task, name, output, brief=task.trigger_comment_content or "")
    if chance.strikes(f"{name}/fails", 0.35):
        run.reason = chance.pick(f"{name}/reason", REASONS)
    if run.reason == "provider_overloaded":
        run.retry_after_s = chance.pick(f"{name}/asked", ASKED_S)
    elif run.reason == "quota_exhausted":
        run.retry_after_s = chance.pick(f"{name}/quota", QUOTA_S)
    return run, chance.pick(f"{name}/work", WORK_S)


def is_deaf(machine: SimulatedMachine, task_id: UUID) -> bool:
    """Whether it will never say that this run is gone."""
    return machine.chance.strikes(f"{machine.name}/deaf to {task_id}", 0.05)
