"""What this machine knows of its server: `credentials.json` in Understudy's home, mode 0600."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from understudy.config import Home
from understudy.core.struct import Struct


class MachineKey(Struct):
    server: str
    key: str
    workspace_id: str


class Credentials(Struct):
    server: str | None = None
    key: str | None = None
    machine: MachineKey | None = None


def home() -> Home:
    return Home.of(os.environ)


def load() -> Credentials:
    """`UNDERSTUDY_SERVER` and `UNDERSTUDY_TOKEN` go before the file."""
    try:
        found = msgspec.json.decode(home().credentials.read_bytes(), type=Credentials)
    except (FileNotFoundError, msgspec.MsgspecError):
        found = Credentials()
    return msgspec.structs.replace(
        found,
        server=os.environ.get("UNDERSTUDY_SERVER") or found.server,
        key=os.environ.get("UNDERSTUDY_TOKEN") or found.key,
    )


def save(credentials: Credentials) -> Path:
    from understudy.daemon.files import replace_file

    path = home().credentials
    home().create()
    replace_file(path, msgspec.json.encode(credentials).decode())
    return path
