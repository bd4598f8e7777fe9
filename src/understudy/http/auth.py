"""Who asks: a key in the header, or the browser's cookie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

from quart.wrappers import Request, Websocket

from understudy.core.records import User, Workspace
from understudy.store import people, tokens
from understudy.store.database import Database
from understudy.store.tasks import Fence
from understudy.store.tokens import AGENT, Grant, Keyholder
from understudy.wire.daemon import CLAIM_LEASE, FENCED_REPORTS
from understudy.wire.errors import Refused, invalid, not_found

COOKIE: Final = "understudy_session"
SESSION_S: Final = 30 * 24 * 3600.0
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})

T = TypeVar("T")


@dataclass(frozen=True)
class Machine:
    """A daemon at work in one workspace. `fence`: in what it names claim tokens (R3.6, R3.13)."""

    workspace_id: UUID
    fence: Fence


@dataclass(frozen=True)
class Person:
    """Somebody at a board."""

    user: User
    workspace: Workspace


@dataclass(frozen=True)
class AgentAtWork:
    """An agent in its run; its key dies with the claim (R9.5, R3.13)."""

    task_id: UUID
    workspace: Workspace


Somebody: TypeAlias = Person | AgentAtWork
"""Whoever may read the board and speak on it."""


async def machine(request: Request | Websocket, database: Database) -> Machine:
    """Raises `Refused`: 401 without a valid key, 403 for one that opens no daemon API."""
    grant = await _grant(_bearer(request), database)
    if grant.kind not in {"daemon", "personal"} or grant.workspace_id is None:
        raise Refused(403, "forbidden", "this key is not a machine's: make one with a daemon key")
    header = request.headers.get("X-Client-Capabilities", "")
    return Machine(grant.workspace_id, _fence({each.strip() for each in header.split(",")}))


def _fence(capabilities: set[str]) -> Fence:
    if CLAIM_LEASE not in capabilities:
        return "none"
    return "full" if FENCED_REPORTS in capabilities else "lease"


async def is_machine(request: Request, database: Database) -> bool:
    secret = _bearer(request)
    return secret is not None and (await _grant(secret, database)).kind == "daemon"


async def person(request: Request, database: Database) -> Person:
    """Raises `Refused`: 401 without a valid key, 403 for a machine's or a forged request."""
    secret = _sent(_bearer(request) or _cookie(request))
    holder = _known(await tokens.find_keyholder(database, secret))
    if holder.grant.kind not in {"session", "personal"} or holder.user is None:
        raise Refused(403, "forbidden", "this key is not a person's")
    return Person(holder.user, _workspace(request, holder))


async def somebody(request: Request, database: Database) -> Somebody:
    """Raises `Refused`, as `person` does; here an agent at work is welcome, too."""
    secret = _bearer(request)
    if secret is None or not secret.startswith(AGENT):
        return await person(request, database)
    grant = await _grant(secret, database)
    assert grant.task_id is not None
    assert grant.workspace_id is not None
    workspace = await people.find_workspace(database, grant.workspace_id)
    assert workspace is not None, "a task goes with its workspace"
    return AgentAtWork(grant.task_id, workspace)


async def _grant(secret: str | None, database: Database) -> Grant:
    return _known(await tokens.find(database, _sent(secret)))


def _sent(secret: str | None) -> str:
    if secret is None:
        raise Refused(401, "unauthenticated", "no key: send `Authorization: Bearer <key>`")
    return secret


def _known(found: T | None) -> T:
    if found is None:
        raise Refused(401, "unauthenticated", "this key is unknown, expired or revoked")
    return found


def _bearer(request: Request | Websocket) -> str | None:
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    return secret.strip() or None if scheme.lower() == "bearer" else None


def _cookie(request: Request) -> str | None:
    secret = request.cookies.get(COOKIE)
    if secret and request.method not in SAFE_METHODS:
        # The browser sends the cookie along whoever made the form: the page must be our own.
        origin = request.headers.get("Origin")
        if origin is not None and _host(origin) != request.host:
            raise Refused(403, "forbidden", f"this page ({origin}) may not act here")
    return secret


def _host(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _workspace(request: Request, holder: Keyholder) -> Workspace:
    """The one that `?workspace=` names, by slug or id; the key's own; or the person's first."""
    mine, own_id = holder.workspaces, holder.grant.workspace_id
    if own_id is not None:
        mine = [each for each in mine if each.id == own_id]
    if wanted := request.args.get("workspace"):
        mine = [each for each in mine if wanted in {each.slug, str(each.id)}]
    if not mine:
        raise not_found("workspace")
    return mine[0]


def parse_id(text: str, what: str) -> UUID:
    """Raises `Refused` (400): a malformed id is not a proof that something is gone (R4.6)."""
    try:
        return UUID(text)
    except ValueError:
        raise invalid(f"{what} is not an id: {text[:80]!r}") from None
