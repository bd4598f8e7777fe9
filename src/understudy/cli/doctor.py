"""`understudy doctor`: what is wrong, and how to repair it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from understudy.cli import credentials
from understudy.cli.checks import (
    Finding,
    State,
    broken,
    daemon,
    disk,
    git,
    limits,
    note,
    ok,
    outbox,
    permissions,
    runs,
)
from understudy.cli.client import FAILED, UnspokenProxy, is_loopback, open_http
from understudy.cli.credentials import Credentials
from understudy.cli.output import json_option, show_json
from understudy.config import Home
from understudy.version import VERSION

if TYPE_CHECKING:
    import httpx2

ANSWER_S: Final = 10.0
SKEW_S_MAX: Final = 30.0
SYMBOLS: Final = {State.OK: "ok", State.NOTE: "note", State.BROKEN: "BROKEN"}
LOGINS: Final = {
    "claude": (
        ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"),
        "~/.claude/.credentials.json",
        "run `claude` once and log in",
    ),
    "codex": (
        ("OPENAI_API_KEY", "CODEX_API_KEY"),
        "~/.codex/auth.json",
        "run `codex login`",
    ),
}
"""By provider: variables with a key, the file of a login, how to log in."""


@click.command()
@json_option
def doctor(*, as_json: bool) -> None:
    """What is wrong on this machine, and how to repair it; 1 if anything is broken."""
    findings = list(_findings(credentials.home(), credentials.load()))
    is_well = all(each.state is not State.BROKEN for each in findings)
    if as_json:
        show_json({"ok": is_well, "findings": [asdict(each) for each in findings]})
    else:
        for each in findings:
            click.echo(f"{SYMBOLS[each.state]:<7} {each.check:<12} {each.found}")
            if each.repair:
                click.echo(f"{'':<20} -> {each.repair}")
    sys.exit(0 if is_well else FAILED)


def _findings(home: Home, known: Credentials) -> Iterator[Finding]:
    now = time.time()  # noqa: TID251  To compare with the server's, and with files'.
    yield from permissions(home)
    yield from disk(home)
    yield from git()
    yield from limits()
    yield from _clis()
    yield from _server(known, now)
    if known.machine is not None:
        yield from daemon(home)
    yield from runs(home, now)
    yield from outbox(home)


def _clis() -> Iterator[Finding]:
    import trio

    from understudy.daemon.probe import find_clis

    found = [each for each in trio.run(find_clis, os.environ.get("PATH", os.defpath))
             if each.executable]  # fmt: skip
    if not found:
        yield note("agents", "there is no agent CLI on PATH",
                   "npm install -g @anthropic-ai/claude-code, for example")  # fmt: skip
    for each in found:
        if each.problem:
            what, _, repair = each.problem.rpartition("; ")
            yield broken(each.provider, what, repair)
        else:
            yield _login(each.provider, f"{each.version} at {each.executable}")


def _login(provider: str, said: str) -> Finding:
    if provider not in LOGINS:
        return ok(provider, said)
    variables, file, how = LOGINS[provider]
    if any(map(os.environ.get, variables)) or Path(file).expanduser().exists():
        return ok(provider, f"{said}, logged in")
    repair = f"{how}, or give your agents {variables[0]} in their environment"
    return note(provider, f"{said}, and no login is to be seen", repair)


def _server(known: Credentials, now: float) -> Iterator[Finding]:
    import httpx2

    server = known.machine.server if known.machine else known.server
    if server is None:
        repair = "`understudy up` starts one here; `understudy join LINK` joins one"
        yield broken("server", "this machine belongs to no server", repair)
        return
    try:
        client = open_http(httpx2.Client, server, timeout=ANSWER_S)
    except UnspokenProxy as unspoken:
        what, _, repair = str(unspoken).partition(": ")
        yield broken("server", what, repair)
        return
    with client as http:
        try:
            answer = http.get("/api/health")
        except httpx2.TransportError as error:
            yield broken("server", f"{server} cannot be reached: {error}", _where(server))
            return
        yield _health(server, answer)
        yield from _clock(answer, now)
        if known.machine is not None:
            yield _key(http, "machine key", known.machine.key)
        if known.key is not None:
            yield _key(http, "login", known.key)


def _where(server: str) -> str:
    if is_loopback(server):
        return "start it: understudy up"
    return "is it up, and is the network? `understudy join LINK` if it has moved"


def _health(server: str, answer: httpx2.Response) -> Finding:
    said = answer.json() if "json" in answer.headers.get("content-type", "") else {}
    match said.get("status"):
        case "ok" if said.get("version") == VERSION:
            return ok("server", f"{server} answers, version {VERSION}")
        case "ok":
            return note("server", f"{server} has version {said.get('version')}, here is {VERSION}",
                        "upgrade the older one")  # fmt: skip
        case "database_away":
            repair = "is PostgreSQL up, and its disk not full? see the server's log"
            return broken("server", f"{server} cannot reach its database", repair)
        case _:
            return broken("server", f"{server} answers {answer.status_code}, not as ours does",
                          "is the address right? `understudy join LINK` sets it")  # fmt: skip


def _clock(answer: httpx2.Response, now: float) -> Iterator[Finding]:
    if "date" not in answer.headers:
        return
    ahead_s = now - parsedate_to_datetime(answer.headers["date"]).timestamp()
    said = f"{abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} the server's"
    if abs(ahead_s) > SKEW_S_MAX:
        yield broken("clock", said, "sudo timedatectl set-ntp true, on the one that is wrong")
    else:
        yield ok("clock", said)


def _key(http: httpx2.Client, name: str, key: str) -> Finding:
    import httpx2

    try:
        answer = http.get("/api/workspaces", headers={"Authorization": f"Bearer {key}"})
    except httpx2.TransportError as error:
        return broken(name, f"it could not be tried: {error}", "try again")
    if answer.is_success:
        return ok(name, "the server accepts it")
    how = "join" if name == "machine key" else "login"
    return broken(name, f"the server refuses it ({answer.status_code})",
                  f"understudy {how} LINK, with a link from `understudy {how}` there")  # fmt: skip
