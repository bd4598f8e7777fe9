"""Settings: read once from flags and the environment, frozen, passed down."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from understudy.core.leases import Leases
from understudy.core.limits import Limits

PORT: Final = 7717
ORPHAN_S: Final = 1800.0
ROOTS: Final = Path("/var/lib/understudy")
Transport = Literal["auto", "websocket", "http"]
"""Of a daemon, to its server. `auto`: a websocket, or HTTP where none gets through."""


@dataclass(frozen=True)
class Home:
    """Where Understudy keeps its things on this machine: `UNDERSTUDY_HOME`, or `~/.understudy`.

    Root's is `/var/lib/understudy`: PostgreSQL does not run as root, and the account it runs under
    cannot enter root's home directory.
    """

    path: Path

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Home:
        if chosen := environment.get("UNDERSTUDY_HOME"):
            return cls(Path(chosen).expanduser().absolute())
        if os.geteuid() == 0:
            return cls(ROOTS)
        return cls(Path(environment.get("HOME") or "~").expanduser() / ".understudy")

    def create(self) -> None:
        """For others it can be passed through and not read: the database may be theirs."""
        self.path.mkdir(mode=0o711, parents=True, exist_ok=True)

    @property
    def postgres(self) -> Path:
        return self.path / "postgres"

    @property
    def daemon(self) -> Path:
        return self.path / "daemon"

    @property
    def credentials(self) -> Path:
        return self.path / "credentials.json"


@dataclass(frozen=True)
class ServerConfig:
    home: Home
    host: str = "127.0.0.1"
    port: int = PORT
    database_url: str | None = None
    pool_size: int = 8
    leases: Leases = field(default_factory=Leases)

    @property
    def address(self) -> str:
        host = "127.0.0.1" if self.host in {"0.0.0.0", "::"} else self.host  # noqa: S104
        return f"http://{host}:{self.port}"


@dataclass(frozen=True)
class DaemonConfig:
    """`path` is this daemon's own directory: identity, runs, work directories, outbox."""

    path: Path
    server: str
    token: str
    workspace_id: str
    tasks_max: int = 20
    orphan_s: float = ORPHAN_S
    """For how long an agent goes on when its daemon does not come back (R8.2)."""
    leases: Leases = field(default_factory=Leases)
    limits: Limits = field(default_factory=Limits)
    transport: Transport = "auto"
    search_path: str = field(default_factory=lambda: os.environ.get("PATH", os.defpath))
