"""What an agent is told and given, from what the server says of its task."""

from __future__ import annotations

import math
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import msgspec
import pytest

from understudy.config import DaemonConfig
from understudy.core.leases import Leases
from understudy.core.lifecycle import Move, Status
from understudy.core.records import Priority
from understudy.daemon.briefs import Skill
from understudy.daemon.link import Link, dial
from understudy.daemon.orders import Unfit, run_order, work_order
from understudy.daemon.outbox import Outbox
from understudy.daemon.record import RunOrder
from understudy.daemon.slots import Slots
from understudy.daemon.trust import Trust
from understudy.daemon.workshop import Workshop
from understudy.daemon.workspace import WorkDir, prepare
from understudy.testing.desk import Clone, Desk
from understudy.wire.daemon import AgentBrief, ClaimedTask, IssueBrief, Repository

INSTRUCTIONS = "Speak like a pirate."


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture
def workshop(desk: Desk, tmp_path: Path) -> Iterator[Workshop]:
    config = DaemonConfig(tmp_path, "http://127.0.0.1:1", "key", str(desk.ids["workspace"]))
    with Outbox(tmp_path / "outbox.db") as outbox:
        yield Workshop(
            server=config.server,
            workspace_id=config.workspace_id,
            runs=tmp_path / "runs",
            link=Link(dial(config), heartbeat_s=15.0, dice=Random(7)),
            outbox=outbox,
            repositories=desk.repositories,
            slots=Slots(1),
            leases=Leases(),
            trust=Trust(math.inf),
            environment=desk.env,
        )


def claimed(desk: Desk, provider: str, repository: Clone | None = None) -> ClaimedTask:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    agent_id, issue_id = desk.ids["agent"], desk.ids["issue"]
    return ClaimedTask(
        id=uuid.uuid4(),
        agent_id=agent_id,
        issue_id=issue_id,
        workspace_id=desk.ids["workspace"],
        provider=provider,
        status=Status.DISPATCHED,
        move=Move.CLAIM,
        trigger="assign",
        priority=Priority.NONE,
        attempt=1,
        max_attempts=2,
        created_at=at,
        claim_token=uuid.uuid4(),
        claim_expires_at=at,
        agent=AgentBrief(id=agent_id, name="Nia", instructions=INSTRUCTIONS),
        issue=IssueBrief(id=issue_id, key="UND-7", title="Fix the login page"),
        repos=[Repository(url=str(repository.path))] if repository else [],
    )


async def ordered(task: ClaimedTask, workshop: Workshop) -> tuple[RunOrder, WorkDir]:
    work = await prepare(work_order(task), workshop.repositories)
    work.claim.close()
    return run_order(task, work, workshop), work


@pytest.mark.parametrize("provider", ["claude", "codex", "acp", "command", "scripted"])
async def test_instructions_are_given_once(desk: Desk, workshop: Workshop, provider: str) -> None:
    """R8.7: in the file that the CLI reads by itself, or to the program with its prompt."""
    order, work = await ordered(claimed(desk, provider, desk.repository()), workshop)
    assert work.brief is not None
    told = [work.brief.read_text(), order.spec.instructions, order.spec.prompt]
    assert sum(text.count(INSTRUCTIONS) for text in told) == 1
    assert (INSTRUCTIONS in work.brief.read_text()) == (provider in {"claude", "codex"})


async def test_a_brief_that_no_cli_looks_for_is_named_in_the_prompt(
    desk: Desk, workshop: Workshop
) -> None:
    """R8.7"""
    order, _ = await ordered(claimed(desk, "claude"), workshop)
    assert "UNDERSTUDY.md" not in order.spec.prompt
    user = desk.repository()
    for name in ("CLAUDE.md", "CLAUDE.local.md"):
        user.commit(name, "the user's own\n")
    task = claimed(desk, "claude", user)
    order, work = await ordered(task, workshop)
    assert work.brief == work.path / "UNDERSTUDY.md"
    assert "UNDERSTUDY.md" in order.spec.prompt
    assert order.spec.instructions == INSTRUCTIONS, "heard even if it does not read"
    task = msgspec.structs.replace(task, id=uuid.uuid4(), issue=None, issue_id=None)
    order, _ = await ordered(task, workshop)
    assert "UNDERSTUDY.md" in order.spec.prompt


async def test_a_directory_without_a_repository_is_part_of_no_other(
    desk: Desk, workshop: Workshop
) -> None:
    """Else `git commit -a` of an agent would commit what its user has left lying around."""
    outer = desk.clone(desk.directory)
    outer.git("init", "--quiet")
    order, work = await ordered(claimed(desk, "scripted"), workshop)
    nested = work.path / "nested"
    nested.mkdir()
    assert is_in_repository(nested, desk.env)
    assert not is_in_repository(work.path, order.spec.env)
    assert not is_in_repository(nested, order.spec.env)
    desk.clone(work.path).git("init", "--quiet")
    assert is_in_repository(nested, order.spec.env)


def is_in_repository(directory: Path, env: Mapping[str, str]) -> bool:
    command = ["git", "rev-parse", "--git-dir"]
    return subprocess.run(command, cwd=directory, env=env, check=False).returncode == 0


async def test_a_users_own_ceiling_stays(desk: Desk, workshop: Workshop) -> None:
    own = {"GIT_CEILING_DIRECTORIES": "/mnt/slow"}
    order, _ = await ordered(
        claimed(desk, "scripted"), replace(workshop, environment={**desk.env, **own})
    )
    root = desk.repositories.root
    assert order.spec.env["GIT_CEILING_DIRECTORIES"] == f"{root}:/mnt/slow"
    order, _ = await ordered(claimed(desk, "scripted", desk.repository()), workshop)
    assert "GIT_CEILING_DIRECTORIES" not in order.spec.env


async def test_an_agent_has_its_own_key_and_never_its_machines(
    desk: Desk, workshop: Workshop
) -> None:
    """R9.5: so that `understudy` works inside a run, as the agent."""
    task = claimed(desk, "command")
    agent = msgspec.structs.replace(task.agent, custom_env={"UNDERSTUDY_TOKEN": "anybody's"})
    task = msgspec.structs.replace(task, auth_token="uat_1", agent=agent)
    machines = {**desk.env, "UNDERSTUDY_TOKEN": "usd_machine", "UNDERSTUDY_HOME": "/var/machine"}
    shop = replace(workshop, environment=machines)
    order, _ = await ordered(task, shop)
    ours = {name: each for name, each in order.spec.env.items() if name.startswith("UNDERSTUDY_")}
    assert (ours["UNDERSTUDY_TOKEN"], ours["UNDERSTUDY_SERVER"]) == ("uat_1", shop.server)
    assert "usd_machine" not in ours.values()
    assert "UNDERSTUDY_HOME" not in ours
    order, _ = await ordered(msgspec.structs.replace(task, auth_token=None), shop)
    assert order.spec.env["UNDERSTUDY_TOKEN"] == "", "no claim token, no key"


async def test_all_that_was_said_to_the_agent_is_in_its_prompt(
    desk: Desk, workshop: Workshop
) -> None:
    """R10.2"""
    said = "Ada: first\n\nBo: second"
    task = msgspec.structs.replace(claimed(desk, "claude"), trigger_comment_content=said)
    order, _ = await ordered(task, workshop)
    assert said in order.spec.prompt


async def test_each_launch_has_a_session_of_its_own(desk: Desk, workshop: Workshop) -> None:
    """R5.8: known before the program starts, and never used twice: Claude Code would refuse."""
    task = claimed(desk, "claude")
    orders = [(await ordered(task, workshop))[0] for _ in range(2)]
    assert len({uuid.UUID(str(order.spec.session_id)) for order in orders}) == 2


def test_the_skills_of_an_agent_are_in_its_brief(desk: Desk) -> None:
    """R8.7"""
    files = [{"path": "lib/a.py", "content": "1"}]
    told = {"name": "Release", "description": "How to", "content": "Do.", "files": files}
    task = claimed(desk, "claude")
    agent = msgspec.structs.replace(task.agent, skills=[told, {"name": "Bare"}])
    brief = work_order(msgspec.structs.replace(task, agent=agent)).brief
    release = Skill("Release", "Do.", "How to", {"lib/a.py": "1"})
    assert brief.skills == (release, Skill("Bare", "", "", {}))


@pytest.mark.parametrize("told", [{}, {"name": ""}, {"name": "x", "files": ["a"]}])
def test_a_skill_that_cannot_be_read_is_reported(desk: Desk, told: dict[str, object]) -> None:
    """R9.6"""
    task = claimed(desk, "claude")
    agent = msgspec.structs.replace(task.agent, skills=[told])
    with pytest.raises(Unfit, match="a skill of agent Nia cannot be read"):
        work_order(msgspec.structs.replace(task, agent=agent))
