"""The daemon API (spec sections 11 and 12): each call's request, answer and path, once.

`CALLS` is the one table: HTTP routes, websocket frames and documentation are made from it, so a
call cannot mean two things. Requests ignore fields they do not know: an older server must
understand a newer daemon, and the other way round.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from msgspec import UNSET, Meta, UnsetType

from understudy.core.failures import FailureReason
from understudy.core.records import Indexed, Message, Task, Usage
from understudy.core.struct import Struct

CLAIM_LEASE: Final = "claim-lease"
"""The capability of a daemon that knows claim tokens (R3.6)."""
FENCED_REPORTS: Final = "fenced-reports"
"""And that names the token in whatever it tells of a run, not in its moves alone (R3.13)."""


class Request(Struct, omit_defaults=True):
    """Base of what is sent with its defaults left out."""


# Machines ---------------------------------------------------------------------------------------


class RuntimeOffer(Request):
    """A CLI that a daemon has found. `problem` says why it cannot run, with the repair (R9.4)."""

    type: Indexed = ""
    name: str = ""
    version: str = ""
    status: str = "online"
    problem: str | None = None


class HeldTask(Request):
    task_id: UUID
    claim_token: UUID | None = None


class Inventory(Request):
    """What a daemon still runs, and what it finished but could not report (R6.2)."""

    running: list[HeldTask] = []
    finished: list[HeldTask] = []


class Register(Request):
    workspace_id: str = ""
    daemon_id: Indexed = ""
    device_name: str = ""
    cli_version: str = ""
    runtimes: list[RuntimeOffer] = []
    incarnation: str | None = None
    after: list[str] | None = None
    """The processes that this one knows to be over: it has their place. None where it has never
    heard of any, or does not keep count."""
    inventory: Inventory | None = None


class RegisteredRuntime(Request):
    id: UUID
    name: str
    provider: str
    status: str


class Repository(Request):
    url: str
    description: str = ""


Verdict = Literal["keep", "stop", "send"]
"""keep: it is yours, go on. stop: it is no longer yours. send: report the end you have."""


class Registered(Struct):
    runtimes: list[RegisteredRuntime]
    repos: list[Repository] = []
    repos_version: str = ""
    settings: dict[str, Any] = {}
    verdicts: dict[str, Verdict] = {}
    trust_s: dict[UUID, float] = {}
    """By runtime: for so long after the request was sent its work stays its own (R4.11)."""
    taken_by: str | UnsetType = UNSET
    """The device that has registered with this identity since, and is heard: none of the runtimes
    are the asker's."""


class Deregister(Request):
    runtime_ids: list[str] = []


class Ping(Struct):
    id: UUID
    runtime_id: UUID


class Pong(Request):
    ping_id: UUID


class Heartbeat(Request):
    runtime_id: str = ""


class Heartbeats(Request):
    """All runtimes of one daemon at once: over the websocket."""

    runtime_ids: list[UUID]
    incarnation: str | None = None


class HeartbeatHeard(Struct):
    """`pending_ping`: a person waits for a sign (R4.12); `pong` answers."""

    status: str = "ok"
    pending_ping: Ping | UnsetType = UNSET


class HeartbeatsHeard(Struct):
    gone: list[UUID] = []
    """Runtimes the server does not know (R4.7), or knows by another process: register again."""
    trust_s: dict[UUID, float] = {}
    """As in `Registered`."""
    cancelled: list[HeldTask] = []
    """Runs to stop whose cancellation has not been confirmed: what a push may have missed."""
    pending_pings: list[Ping] = []


class Acknowledged(Struct):
    status: str = "ok"


# Claims -----------------------------------------------------------------------------------------


class Nothing(Request):
    """A request without fields."""


class AgentBrief(Struct):
    id: UUID
    name: str
    instructions: str = ""
    skills: list[dict[str, Any]] = []
    custom_env: dict[str, str] = {}
    custom_args: list[str] = []
    mcp_config: dict[str, Any] | None = None
    model: str | None = None


class IssueBrief(Struct):
    """What the agent is to do. [beyond the compatible part]"""

    id: UUID
    key: str
    title: str
    description: str = ""


class ClaimedTask(Task):
    """A task with its lease and all that its run needs."""

    claim_token: UUID | None = None
    claim_expires_at: datetime
    agent: AgentBrief
    issue: IssueBrief | None = None
    repos: list[Repository] = []
    is_movable: bool = False
    """Another machine may take it over while this one is not heard (R4.11)."""
    prior_session_id: str | None = None
    prior_work_dir: str | None = None
    trigger_comment_id: UUID | None = None
    trigger_comment_content: str | None = None
    """All that was said to the agent since, if more than one comment called it (R10.2)."""
    auth_token: str | None = None
    """The agent's own key; it dies with the claim (R9.5)."""


class Claimed(Struct):
    task: ClaimedTask | None


class ClaimMany(Request):
    """For several runtimes of one daemon at once, up to its free slots (R3.11)."""

    runtime_ids: list[UUID] = []
    slots: Annotated[int, Meta(ge=1, le=100)] = 1


class ClaimedMany(Struct):
    tasks: list[ClaimedTask]


class Recovered(Struct):
    """How many tasks were given up, and for how many of them another attempt was made (R6.1)."""

    orphaned: int
    retried: int


# A run ------------------------------------------------------------------------------------------


class Held(Request):
    """A request that names the claim it acts under.

    A malformed token is a 400, never none (R3.5).
    """

    claim_token: UUID | None = None


class Stopped(Held):
    """The run's process tree is gone (R7.1), but for `left`: names of what SIGKILL did not end."""

    left: Annotated[list[Annotated[str, Meta(max_length=100)]], Meta(max_length=20)] = []


class Progress(Held):
    summary: str = ""
    step: int | None = None
    total: int | None = None


class Messages(Held):
    messages: list[Message] = []


class Session(Held):
    session_id: str | None = None
    work_dir: str | None = None
    refused_session_id: str | None = None
    """What the CLI would not continue: never offered again (R5.10)."""


class UsageReport(Held):
    usage: list[Usage] = []


class Complete(Held):
    output: str = ""
    pr_url: str | None = None
    branch_name: str | None = None
    changes: dict[str, Any] | None = None
    session_id: str | None = None
    work_dir: str | None = None


class Fail(Held):
    error: str = ""
    failure_reason: str = FailureReason.UNKNOWN
    """A slug of `core/failures.py`; any other counts as unknown."""
    session_id: str | None = None
    work_dir: str | None = None
    retry_after_s: Annotated[float, Meta(ge=0, le=366 * 86400)] | None = None
    """What the provider asks for: a Retry-After, or the time until its quota resets (R5.2)."""
    refused_session_id: str | None = None


class TaskStatus(Struct):
    status: str


class GcCheck(Struct):
    """Of an issue: may its directories go?"""

    status: str
    updated_at: datetime


class Repositories(Struct):
    workspace_id: UUID
    repos: list[Repository]
    repos_version: str = ""
    settings: dict[str, Any] = {}


class CallShape(Struct, kw_only=False):
    """One call. `subject` is the kind of id in its path: the id the call is about."""

    method: Literal["GET", "POST"]
    path: str
    request: type[Struct]
    answer: type
    subject: Literal["runtime", "task", "issue", "workspace"] | None = None
    status: int = 200
    """HTTP's, when it is done; 204 has no body."""


def _task(verb: str, request: type[Struct], answer: type = Task) -> CallShape:
    return CallShape("POST", f"/api/daemon/tasks/<subject>/{verb}", request, answer, "task")


CALLS: Final[dict[str, CallShape]] = {
    "register": CallShape("POST", "/api/daemon/register", Register, Registered),
    "deregister": CallShape("POST", "/api/daemon/deregister", Deregister, Acknowledged),
    "heartbeat": CallShape("POST", "/api/daemon/heartbeat", Heartbeat, HeartbeatHeard),
    "heartbeats": CallShape("POST", "/api/daemon/heartbeats", Heartbeats, HeartbeatsHeard),
    "pong": CallShape("POST", "/api/daemon/runtimes/<subject>/pong", Pong, Acknowledged, "runtime"),
    "recover": CallShape(
        "POST", "/api/daemon/runtimes/<subject>/recover-orphans", Nothing, Recovered, "runtime"
    ),
    "claims": CallShape("POST", "/api/daemon/tasks/claim", ClaimMany, ClaimedMany),
    "claim": CallShape(
        "POST", "/api/daemon/runtimes/<subject>/tasks/claim", Nothing, Claimed, "runtime"
    ),
    "pending": CallShape(
        "GET", "/api/daemon/runtimes/<subject>/tasks/pending", Nothing, list[Task], "runtime"
    ),
    "status": CallShape("GET", "/api/daemon/tasks/<subject>/status", Nothing, TaskStatus, "task"),
    "lease": _task("lease", Held),
    "start": _task("start", Held),
    "progress": _task("progress", Progress, Acknowledged),
    "messages": _task("messages", Messages, Acknowledged),
    "session": CallShape(
        "POST", "/api/daemon/tasks/<subject>/session", Session, Acknowledged, "task", 204
    ),
    "usage": _task("usage", UsageReport, Acknowledged),
    "complete": _task("complete", Complete),
    "fail": _task("fail", Fail),
    "stopped": _task("stopped", Stopped),
    "gc_check": CallShape(
        "GET", "/api/daemon/issues/<subject>/gc-check", Nothing, GcCheck, "issue"
    ),
    "repos": CallShape(
        "GET", "/api/daemon/workspaces/<subject>/repos", Nothing, Repositories, "workspace"
    ),
}
