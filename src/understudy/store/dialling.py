"""From a connection string to an open session."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import psycopg
import trio
from psycopg import pq
from psycopg.abc import ConnDict
from psycopg.conninfo import (
    conninfo_attempts,
    conninfo_to_dict,
    make_conninfo,
    timeout_from_conninfo,
)
from psycopg.pq.abc import PGconn

from understudy.store.errors import DatabaseUnavailable
from understudy.store.session import Session
from understudy.store.waits import Waits, shake_hands

# What the connection string may say otherwise. A server whose machine lost its power never says
# goodbye: the kernel notices within a minute instead of two hours.
DEFAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "fallback_application_name": "understudy",
        "connect_timeout": "10",
        "keepalives_idle": "30",
        "keepalives_interval": "10",
        "keepalives_count": "3",
        "tcp_user_timeout": "60000",
    }
)


async def open_session(conninfo: str, options: Mapping[str, str], waits: Waits) -> Session:
    """Try every address the string names, in order."""
    parameters = _parameters(conninfo, options)
    refusal = psycopg.OperationalError("no address to connect to")
    for attempt in await _attempts(parameters):
        try:
            return Session(await _connect(attempt, waits), waits)
        except psycopg.OperationalError as error:
            refusal = error
        except trio.TooSlowError:
            refusal = psycopg.OperationalError("no answer within connect_timeout")
    raise DatabaseUnavailable(str(refusal).strip()) from refusal


def _parameters(conninfo: str, options: Mapping[str, str]) -> ConnDict:
    parameters = conninfo_to_dict(conninfo)
    settings = {"timezone": "UTC", **options}
    ours = " ".join(f"-c {name}={_escaped(value)}" for name, value in settings.items())
    theirs = parameters.get("options", "")
    return {
        **DEFAULTS,
        **parameters,
        "client_encoding": "utf8",
        "options": f"{theirs} {ours}".strip(),
    }


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


async def _attempts(parameters: ConnDict) -> list[ConnDict]:
    """One set of parameters per address. Names are looked up in a thread: getaddrinfo blocks."""
    try:
        if _is_address(parameters):
            return conninfo_attempts(parameters)
        return await trio.to_thread.run_sync(conninfo_attempts, parameters, abandon_on_cancel=True)
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable(str(error)) from error


def _is_address(parameters: ConnDict) -> bool:
    host = str(parameters.get("host", ""))
    if host.startswith("/") or "hostaddr" in parameters:
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _connect(parameters: ConnDict, waits: Waits) -> PGconn:
    pgconn = pq.PGconn.connect_start(make_conninfo("", **parameters).encode())
    try:
        with trio.fail_after(timeout_from_conninfo(parameters)):
            await shake_hands(pgconn, pgconn.connect_poll, waits)
    except BaseException:
        pgconn.finish()
        raise
    pgconn.nonblocking = 1
    return pgconn
