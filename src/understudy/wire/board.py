"""The API of people and scripts: requests and answers of boards, issues, agents, machines."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from msgspec import Meta

from understudy.core.lifecycle import Status
from understudy.core.records import (
    Agent,
    Comment,
    Issue,
    Priority,
    Runtime,
    Task,
    Usage,
    User,
    Workspace,
)
from understudy.core.situation import Constraint
from understudy.core.struct import Struct

Title = Annotated[str, Meta(min_length=1, max_length=500)]
Text = Annotated[str, Meta(max_length=200_000)]
AgentName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$")]
Provider = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
IssueStatus = Literal["backlog", "todo", "in_progress", "in_review", "done", "cancelled"]


class Me(Struct):
    user: User
    workspaces: list[Workspace]


class CreateAgent(Struct, forbid_unknown_fields=True):
    name: AgentName
    provider: Provider
    runtime_id: UUID | None = None
    instructions: Text = ""
    model: str | None = None
    custom_args: list[str] = []
    custom_env: dict[str, str] = {}
    mcp_config: dict[str, Any] | None = None
    max_concurrent_tasks: Annotated[int, Meta(ge=1, le=1000)] = 6


class CreateIssue(Struct, forbid_unknown_fields=True):
    title: Title
    description: Text = ""
    status: IssueStatus = "todo"
    priority: Priority = Priority.NONE
    repository: Annotated[str, Meta(max_length=2000)] | None = None
    agent: str | None = None
    """Assign at once: an agent's name or id."""


class UpdateIssue(Struct, forbid_unknown_fields=True):
    status: IssueStatus


class Assign(Struct, forbid_unknown_fields=True):
    agent: str
    """An agent's name or id."""


class Assigned(Struct):
    """`outcome`: enqueued, assigned (the issue waits in the backlog), unchanged, pending (this
    agent is at it already), self (the agent that asks is), too_many_hops (agents call agents)."""

    outcome: str
    issue: Issue
    task: Task | None = None


class RerunIssue(Struct, forbid_unknown_fields=True):
    """R7.6. `task_id`: run the agent of that task again, not the assignee. `fresh`: in a new
    session. `after`: behind what runs now, instead of cancelling it."""

    task_id: UUID | None = None
    fresh: bool = False
    after: bool = False


class Cancelled(Struct):
    """`outcome`: moved (it is cancelled), requested (its machine is to stop it first), replayed."""

    outcome: str
    task: Task


class CancelledIssue(Struct):
    issue: Issue
    tasks: list[Cancelled]


class CreateComment(Struct, forbid_unknown_fields=True):
    body: Annotated[str, Meta(min_length=1, max_length=200_000)]


class Called(Struct):
    """An agent that a comment called. `outcome`: enqueued; joined (a task that waits already);
    waiting (until its run ends); too_many_hops (agents have called one another too often)."""

    agent_id: UUID
    agent: str
    outcome: str
    task_id: UUID | None = None


class Commented(Comment):
    called: list[Called] = []


class IssueDetail(Struct):
    issue: Issue
    tasks: list[Task]
    comments: list[Comment]


class Why(Struct):
    """Where a task is, and what would change that: `sentence`, then "it changes" and `changes`.

    `constraint` is a slug of `core/situation.py`, null once the task has ended.
    """

    task_id: UUID
    status: Status
    sentence: str
    constraint: Constraint | None = None
    changes: str | None = None
    changes_at: datetime | None = None


class TaskDetail(Struct):
    task: Task
    why: Why
    agent: Agent
    issue: Issue | None
    runtime: Runtime | None
    usage: list[Usage]


class Pinged(Struct):
    """Ask again until it is answered."""

    ping_id: UUID
    is_answered: bool
    round_trip_s: float | None = None


class CreateToken(Struct, forbid_unknown_fields=True):
    kind: Literal["personal", "daemon"]
    name: Annotated[str, Meta(max_length=100)] = ""


class CreatedToken(Struct):
    """The only time the token itself is shown."""

    token: str
    workspace_id: UUID | None


class Login(Struct, forbid_unknown_fields=True):
    code: str


class LoginLink(Struct):
    path: str
    valid_s: float


class Sweep(Struct):
    """What a sweep of this node has done since the node started. Times in seconds."""

    name: str
    runs: int
    rows: int
    last_rows: int
    last_ago_s: float | None
    last_took_s: float
    longest_s: float


class Health(Struct):
    status: Literal["ok", "database_away"]
    version: str
