"""The API of people and scripts as a table, as `CALLS` is the daemon's: what is documented of it.

The routes themselves stand in `http/`. A test compares: whoever adds one there adds a row here.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from understudy.core import tree
from understudy.core.records import Agent, Event, Issue, Message, Runtime, Task, Workspace
from understudy.core.struct import Struct
from understudy.wire import board

Key = Literal["person", "machine", "either", "none"]
"""Whose key opens it."""


class Query(Struct, kw_only=False):
    name: str
    type: type
    about: str
    where: Literal["query", "header"] = "query"


class Route(Struct, kw_only=False):
    """`{…_id}` in a path is a UUID, any other name a string. A stream sends `answer`s."""

    method: Literal["GET", "POST", "PATCH", "PUT", "DELETE"]
    path: str
    answer: Any
    request: type[Struct] | None = None
    status: int = 200
    refusals: dict[int, str] = {}
    """Beyond what any route of its kind may answer."""
    key: Key = "person"
    query: tuple[Query, ...] = ()
    is_stream: bool = False


WORKSPACE: Final = Query("workspace", str, "The slug or id of one of your workspaces.")
AFTER: Final = Query("after", int, "What has a greater position; `Last-Event-ID` comes first.")
LAST_EVENT_ID: Final = Query("Last-Event-ID", int, "Where the reader was.", where="header")
CURSOR: Final = (AFTER, LAST_EVENT_ID)

ROUTES: Final[dict[str, Route]] = {
    "me": Route("GET", "/api/me", board.Me),
    "workspaces": Route("GET", "/api/workspaces", list[Workspace], key="either"),
    "health": Route("GET", "/api/health", board.Health, key="none"),
    "tree": Route("GET", "/api/tree", tree.Node),
    "sweeps": Route("GET", "/api/sweeps", list[board.Sweep]),
    "sweep_now": Route("POST", "/api/sweeps/{sweep}", board.Sweep),
    "openapi": Route("GET", "/api/openapi.json", dict[str, Any], key="none"),
    "login": Route(
        "POST",
        "/api/login",
        board.CreatedToken,
        board.Login,
        201,
        {401: "This code was used before, or has expired."},
        key="none",
    ),
    "create_login_link": Route("POST", "/api/login/links", board.LoginLink, status=201),
    "create_token": Route("POST", "/api/tokens", board.CreatedToken, board.CreateToken, 201),
    "agents": Route("GET", "/api/agents", list[Agent]),
    "create_agent": Route(
        "POST",
        "/api/agents",
        Agent,
        board.CreateAgent,
        201,
        {409: "There is an agent of that name."},
    ),
    "runtimes": Route("GET", "/api/runtimes", list[Runtime]),
    "delete_runtime": Route(
        "DELETE",
        "/api/runtimes/{runtime_id}",
        Runtime,
        refusals={409: "Runs are in flight on it."},
    ),
    "ping": Route(
        "POST",
        "/api/runtimes/{runtime_id}/pings",
        board.Pinged,
        status=202,
        refusals={409: "Its daemon is not connected to this node."},
    ),
    "show_ping": Route("GET", "/api/runtimes/{runtime_id}/pings/{ping_id}", board.Pinged),
    "issues": Route("GET", "/api/issues", list[Issue]),
    "create_issue": Route("POST", "/api/issues", board.Assigned, board.CreateIssue, 201),
    "issue": Route("GET", "/api/issues/{issue}", board.IssueDetail),
    "update_issue": Route("PATCH", "/api/issues/{issue}", board.Assigned, board.UpdateIssue),
    "assign": Route("POST", "/api/issues/{issue}/assign", board.Assigned, board.Assign),
    "comment": Route(
        "POST", "/api/issues/{issue}/comments", board.Commented, board.CreateComment, 201
    ),
    "rerun": Route("POST", "/api/issues/{issue}/rerun", Task, board.RerunIssue, 202),
    "cancel_issue": Route("POST", "/api/issues/{issue}/cancel", board.CancelledIssue),
    "tasks": Route("GET", "/api/tasks", list[Task]),
    "task": Route("GET", "/api/tasks/{task_id}", board.TaskDetail),
    "why": Route("GET", "/api/tasks/{task_id}/why", board.Why),
    "cancel_task": Route(
        "POST",
        "/api/tasks/{task_id}/cancel",
        board.Cancelled,
        refusals={409: "It has ended otherwise."},
    ),
    "messages": Route("GET", "/api/tasks/{task_id}/messages", list[Message], query=(AFTER,)),
    "task_stream": Route(
        "GET", "/api/tasks/{task_id}/stream", Message, query=CURSOR, is_stream=True
    ),
    "events": Route("GET", "/api/events", Event, query=CURSOR, is_stream=True),
}
