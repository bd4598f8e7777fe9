"""Before anything runs: do task, agent, runtime and workspace belong together? (R3.12)"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from understudy.config import DaemonConfig
from understudy.core.failures import FailureReason
from understudy.core.leases import Leases
from understudy.core.lifecycle import Move, Status
from understudy.core.records import Priority
from understudy.daemon.git import Git
from understudy.daemon.link import Link, dial
from understudy.daemon.orders import Unfit, check
from understudy.daemon.outbox import Outbox
from understudy.daemon.repositories import Repositories
from understudy.daemon.slots import Slots
from understudy.daemon.trust import Trust
from understudy.daemon.workshop import Workshop
from understudy.testing.virtual import EPOCH
from understudy.wire.daemon import AgentBrief, ClaimedTask, IssueBrief

WORKSPACE, AGENT, ISSUE, RUNTIME = (uuid.UUID(int=n) for n in range(1, 5))
FOREIGN = uuid.UUID(int=99)


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    config = DaemonConfig(tmp_path, "http://127.0.0.1:1", "key", str(WORKSPACE))
    with Outbox(tmp_path / "outbox.db") as outbox:
        yield Workshop(
            server=config.server,
            workspace_id=config.workspace_id,
            runs=tmp_path / "runs",
            link=Link(dial(config), heartbeat_s=15.0, dice=Random(7)),
            outbox=outbox,
            repositories=Repositories(tmp_path, Git({})),
            slots=Slots(1),
            leases=Leases(),
            trust=Trust(math.inf),
            environment={},
            runtimes={RUNTIME: "scripted"},
        )


def claimed() -> ClaimedTask:
    return ClaimedTask(
        id=uuid.uuid4(),
        agent_id=AGENT,
        issue_id=ISSUE,
        runtime_id=RUNTIME,
        workspace_id=WORKSPACE,
        provider="scripted",
        status=Status.DISPATCHED,
        move=Move.CLAIM,
        trigger="assign",
        priority=Priority.NONE,
        attempt=1,
        max_attempts=2,
        created_at=EPOCH,
        claim_expires_at=EPOCH,
        agent=AgentBrief(id=AGENT, name="Nia"),
        issue=IssueBrief(id=ISSUE, key="UND-7", title="x"),
    )


def test_a_task_whose_parts_belong_together_is_fit(workshop: Workshop) -> None:
    check(claimed(), workshop)


@pytest.mark.parametrize(
    ("foreign", "named"),
    [
        ({"workspace_id": FOREIGN}, "workspace"),
        ({"agent_id": FOREIGN}, "agent"),
        ({"issue_id": FOREIGN}, "issue"),
        ({"runtime_id": FOREIGN}, "runtime"),
        ({"runtime_id": None}, "runtime"),
        ({"provider": "claude"}, "runtime"),
        ({"agent_id": FOREIGN, "workspace_id": FOREIGN}, "workspace and agent"),
    ],
)
def test_a_task_that_was_meant_for_another_is_refused_by_name(
    workshop: Workshop, foreign: dict[str, Any], named: str
) -> None:
    """R3.12"""
    with pytest.raises(Unfit, match=f"the task's {named} are not") as unfit:
        check(replace(claimed(), **foreign), workshop)
    assert unfit.value.reason is FailureReason.INVALID_REQUEST
