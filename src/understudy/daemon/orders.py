"""From a claimed task to a run that can be started: checked, prepared, specified."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Annotated, Final

import msgspec

from understudy.core.failures import FailureReason
from understudy.core.struct import Struct
from understudy.daemon.backends import acp_reader, command, scripted
from understudy.daemon.backends.backend import Launch, ResumeRefused, RunSpec, Usage
from understudy.daemon.backends.providers import BACKENDS
from understudy.daemon.briefs import LAST_RESORT, Brief, Skill
from understudy.daemon.machine import new_id
from understudy.daemon.record import AFRESH, RunOrder
from understudy.daemon.rundir import Spec
from understudy.daemon.workshop import Workshop
from understudy.daemon.workspace import Order, WorkDir
from understudy.wire.daemon import ClaimedTask

OURS: Final = "UNDERSTUDY_"
CEILING: Final = "GIT_CEILING_DIRECTORIES"
HANDOVER: Final = (
    "You have worked on this before, in a session that cannot be continued ({}). What was done then"
    " is in your directory and in the comments on the issue: look there before you begin."
)
# Nobody knows which file these read: their instructions come before the prompt.
PROGRAMS: Final = frozenset({acp_reader.PROVIDER, command.PROVIDER, scripted.PROVIDER})


class SkillFile(Struct):
    path: str
    content: str


class AgentSkill(Struct):
    """As a claim brings it (spec section 11)."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    description: str = ""
    content: str = ""
    files: tuple[SkillFile, ...] = ()


class Unfit(Exception):
    """The run cannot begin; `reason` is what to report."""

    def __init__(self, reason: FailureReason, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


def check(task: ClaimedTask, workshop: Workshop) -> None:
    """Task, agent, runtime and workspace must agree (R3.12). Raises `Unfit`."""
    provider = workshop.runtimes.get(task.runtime_id) if task.runtime_id else None
    disagreements = {
        "workspace": str(task.workspace_id) != workshop.workspace_id,
        "agent": task.agent.id != task.agent_id,
        "issue": task.issue is not None and task.issue.id != task.issue_id,
        "runtime": bool(workshop.runtimes) and provider != task.provider,
    }
    if wrong := [name for name, differs in disagreements.items() if differs]:
        sentence = f"the task's {' and '.join(wrong)} are not those of this machine"
        raise Unfit(FailureReason.INVALID_REQUEST, sentence)
    if task.provider not in BACKENDS:
        sentence = f"this daemon knows no provider {task.provider}: upgrade it"
        raise Unfit(FailureReason.MISSING_CONFIG, sentence)
    found = workshop.found.get(task.provider)
    if found is not None and found.problem:
        raise Unfit(FailureReason.EXECUTABLE_MISSING, found.problem)


def work_order(task: ClaimedTask) -> Order:
    """What `workspace.prepare` needs to know."""
    issue = task.issue
    return Order(
        workspace_id=task.workspace_id,
        task_id=task.id,
        agent_id=task.agent_id,
        agent_name=task.agent.name,
        issue_id=task.issue_id,
        issue_key=issue.key if issue else None,
        provider=task.provider,
        brief=Brief(
            title=f"{issue.key}: {issue.title}" if issue else "A task",
            description=issue.description if issue else "",
            instructions="" if task.provider in PROGRAMS else task.agent.instructions,
            skills=tuple(_skills(task)),
        ),
        created_at=task.created_at,
        repository=task.repos[0].url if task.repos else None,
        prior_work_dir=task.prior_work_dir,
    )


def _skills(task: ClaimedTask) -> Iterator[Skill]:
    try:
        told = msgspec.convert(task.agent.skills, list[AgentSkill])
    except msgspec.ValidationError as error:
        sentence = f"a skill of agent {task.agent.name} cannot be read: {error}"
        raise Unfit(FailureReason.INVALID_REQUEST, sentence) from None
    for each in told:
        files = {file.path: file.content for file in each.files}
        yield Skill(each.name, each.content, each.description, files)


def run_order(task: ClaimedTask, work: WorkDir, workshop: Workshop) -> RunOrder:
    found = workshop.found.get(task.provider)
    resumes = work.is_reused and task.prior_session_id is not None
    spec = RunSpec(
        prompt=prompt(task, work),
        work_dir=str(work.path),
        run_dir=str(workshop.run_dir(task.id)),
        env=_environment(task, work, workshop),
        executable=found.executable if found else "",
        model=task.agent.model,
        instructions="" if _reads_brief(task, work) else task.agent.instructions,
        custom_args=tuple(task.agent.custom_args),
        mcp_config=task.agent.mcp_config,
        resume=task.prior_session_id if resumes else None,
        session_id=str(new_id()),
        requests_max=workshop.limits.requests_max,
    )
    return RunOrder(task=task, spec=spec, branch=work.branch, base_commit=work.base_commit)


def afresh(
    order: RunOrder, refused: ResumeRefused, *, seq_first: int, spent: Iterable[Usage]
) -> RunOrder:
    """The same task in a session and a run directory of its own, with a hand-over note (R5.10)."""
    spec = replace(
        order.spec,
        prompt=f"{order.spec.prompt}\n\n{HANDOVER.format(refused.error)}",
        run_dir=f"{order.spec.run_dir}/{AFRESH}",
        resume=None,
        session_id=str(new_id()),
    )
    return msgspec.structs.replace(
        order, spec=spec, refused=refused.session_id, seq_first=seq_first, spent=tuple(spent)
    )


def _reads_brief(task: ClaimedTask, work: WorkDir) -> bool:
    """By itself. What has to be asked for may go unread, so it cannot be all that an agent gets."""
    return task.provider not in PROGRAMS and not _is_last_resort(work)


def _is_last_resort(work: WorkDir) -> bool:
    return work.brief.name == LAST_RESORT


def prompt(task: ClaimedTask, work: WorkDir) -> str:
    """What the agent is asked, whole: its CLI may not read the brief by itself."""
    parts = [*_asked(task, work)]
    if _is_last_resort(work):
        parts.append(f"Read {LAST_RESORT} first: it is your brief.")
    return "\n\n".join(part for part in parts if part)


def _asked(task: ClaimedTask, work: WorkDir) -> Iterator[str]:
    if task.issue is None:
        yield task.trigger_comment_content or "Do what your instructions say."
        return
    yield f"{task.issue.key}: {task.issue.title}"
    yield task.issue.description
    if task.trigger_comment_content:
        yield f"The comment that called you:\n\n{task.trigger_comment_content}"
    place = "You are in a directory of your own"
    if work.branch:
        place += f", a git worktree on branch {work.branch}: commit your work there"
    yield f"{place}. Your last message is posted as your comment on the issue."


def _environment(task: ClaimedTask, work: WorkDir, workshop: Workshop) -> dict[str, str]:
    """The machine's, without the daemon's own settings, with the agent's and the task's: the key
    is the agent's own, and dies with the claim (R9.5)."""
    issue = task.issue
    told = {
        "UNDERSTUDY_TASK": str(task.id),
        "UNDERSTUDY_ISSUE": issue.key if issue else "",
        "UNDERSTUDY_ISSUE_TITLE": issue.title if issue else "",
        "UNDERSTUDY_AGENT": task.agent.name,
        "UNDERSTUDY_SERVER": workshop.server,
        "UNDERSTUDY_TOKEN": task.auth_token or "",
    }
    inherited = workshop.environment.items()
    kept = {name: value for name, value in inherited if not name.startswith(OURS)}
    if work.branch is None:  # Then no repository above the directory is the agent's own.
        ceilings = [str(workshop.repositories.root), *filter(None, [kept.get(CEILING)])]
        kept[CEILING] = os.pathsep.join(ceilings)
    return {**kept, **task.agent.custom_env, **told}


def keeper_spec(order: RunOrder, launch: Launch, workshop: Workshop) -> Spec:
    return Spec(
        run=str(order.task.id),
        argv=list(launch.argv),
        cwd=order.spec.work_dir,
        env=launch.env,
        stdin=launch.stdin,
        close_stdin=launch.close_stdin,
        interrupt=launch.interrupt,
        done=launch.done,
        orphan_s=workshop.orphan_s,
        trusted_until=_trusted_until(order.task, workshop),
        spool_max=workshop.limits.spool_bytes_max,
    )


def _trusted_until(task: ClaimedTask, workshop: Workshop) -> float | None:
    """R4.11: nobody else can take what is not movable."""
    if not task.is_movable or task.runtime_id is None:
        return None
    return workshop.trust.until_boot_s(task.runtime_id)
