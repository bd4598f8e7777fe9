"""The rows of the database as the rest of the program sees them: frozen, typed, never a dict.

Field names are those of `schema.sql` and of the daemon API (spec section 12), so that a record
encodes as the answer it is.
"""

from __future__ import annotations

from datetime import datetime
from enum import IntEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from msgspec import Meta

from understudy.core.failures import FailureReason
from understudy.core.lifecycle import Move, Status
from understudy.core.struct import Struct


class Priority(IntEnum):
    NONE = 0
    LOW = 1
    MEDIUM = 2
    HIGH = 3
    URGENT = 4


Count = Annotated[int, Meta(ge=0, le=2**53 - 1)]
"""What JSON carries exactly, and sums of which stay within a bigint."""
Indexed = Annotated[str, Meta(max_length=200)]
"""An index of PostgreSQL holds no more than 2,700 bytes of a row."""


class User(Struct):
    id: UUID
    email: str
    name: str


class Workspace(Struct):
    id: UUID
    slug: str
    name: str
    issue_prefix: str
    repository: str | None = None


class Runtime(Struct):
    id: UUID
    workspace_id: UUID
    daemon_id: str
    provider: str
    name: str
    device_name: str
    device_info: str
    status: str
    problem: str | None = None
    incarnation: str | None = None
    node_id: UUID | None = None
    last_seen_at: datetime
    online_since: datetime | None = None
    offline_since: datetime | None = None
    quota_resets_at: datetime | None = None


class Agent(Struct):
    id: UUID
    workspace_id: UUID
    name: str
    provider: str
    runtime_id: UUID | None = None
    instructions: str = ""
    model: str | None = None
    custom_args: list[str] = []
    custom_env: dict[str, str] = {}
    mcp_config: dict[str, Any] | None = None
    max_concurrent_tasks: int = 6
    created_at: datetime


class Issue(Struct):
    id: UUID
    workspace_id: UUID
    number: int
    key: str
    title: str
    description: str
    status: str
    priority: Priority
    repository: str | None = None
    assignee_user_id: UUID | None = None
    assignee_agent_id: UUID | None = None
    assignee_name: str | None = None
    created_at: datetime
    updated_at: datetime


class Task(Struct):
    """T of spec section 12: one attempt. The claim token is not here: only its holder is told."""

    id: UUID
    agent_id: UUID
    runtime_id: UUID | None = None
    issue_id: UUID | None = None
    workspace_id: UUID
    provider: str
    status: Status
    move: Move
    trigger: str
    priority: Priority
    attempt: int
    max_attempts: int
    parent_task_id: UUID | None = None
    retry_task_id: UUID | None = None
    created_at: datetime
    fire_at: datetime | None = None
    dispatched_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    progress: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    error: str | None = None
    failure_reason: FailureReason | None = None
    session_id: str | None = None
    work_dir: str | None = None


class Comment(Struct):
    id: UUID
    issue_id: UUID
    author_user_id: UUID | None = None
    author_agent_id: UUID | None = None
    author_name: str | None = None
    task_id: UUID | None = None
    body: str
    created_at: datetime


class Message(Struct):
    """One thing an agent said or did; `seq` counts from 0 within its task."""

    seq: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    type: Literal["text", "thinking", "tool_use", "tool_result", "error"]
    tool: str | None = None
    content: str | None = None
    input: Any = None
    output: str | None = None
    created_at: datetime | None = None


class Usage(Struct):
    provider: Indexed
    model: Indexed
    input_tokens: Count = 0
    output_tokens: Count = 0
    cache_read_tokens: Count = 0
    cache_write_tokens: Count = 0


class Event(Struct):
    id: int
    workspace_id: UUID
    kind: str
    issue_id: UUID | None = None
    task_id: UUID | None = None
    payload: dict[str, Any]
    created_at: datetime
