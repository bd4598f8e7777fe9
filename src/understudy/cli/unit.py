"""`understudy daemon unit`: the daemon as a service of systemd's, under the user's own account."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Final

import click

from understudy.cli import credentials
from understudy.cli.background import run_options
from understudy.cli.limits import limit_arguments, limit_options
from understudy.core.limits import Limits
from understudy.daemon.stopping import NOW_S

UNIT: Final = """\
# The daemon of Understudy as a service of your own account:
#
#   understudy daemon unit > ~/.config/systemd/user/understudy.service
#   systemctl --user daemon-reload
#   systemctl --user enable --now understudy
#   loginctl enable-linger   # so that it works while you are logged out
#
# stop and restart leave its agents at work; reload starts a newly installed version in place.
# Before you log out of an account that does not linger: understudy daemon stop --drain

[Unit]
Description=Understudy: runs AI coding agents on this machine

[Service]
Type=exec
{environment}
ExecStart={command}
ExecReload=/bin/kill -USR2 $MAINPID
# The daemon alone: its agents run under keepers, and the next daemon takes them over.
KillMode=process
# An agent that takes too much memory must not take the others along.
OOMPolicy=continue
Restart=on-failure
RestartSec=5
# It has said why it cannot start, and a person has to act.
RestartPreventExitStatus=1
TimeoutStopSec={stop_s}
TasksMax=infinity

[Install]
WantedBy=default.target
"""
PROXIES: Final = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")
PASSED_ON: Final = (
    "UNDERSTUDY_HOME", "UNDERSTUDY_TRANSPORT", "PATH", "SSL_CERT_FILE",
    *PROXIES, *(name.lower() for name in PROXIES),
)  # fmt: skip


@click.command()
@run_options
@limit_options
def unit(*, tasks_max: int, orphan_s: float, limits: Limits) -> None:
    """Print a systemd unit for it, with how to install it."""
    options = ["--max-concurrent-tasks", str(tasks_max), "--orphan-after", f"{orphan_s:g}"]
    options += limit_arguments(limits)
    command = [sys.executable, "-m", "understudy", "daemon", "run", *options]
    home = str(credentials.home().path)
    click.echo(unit_text(command, {**os.environ, "UNDERSTUDY_HOME": home}), nl=False)


def unit_text(command: list[str], environment: Mapping[str, str]) -> str:
    """A service manager's environment is nearly empty: agents need the PATH of today."""
    passed = [f"{name}={environment[name]}" for name in PASSED_ON if name in environment]
    return UNIT.format(
        environment="\n".join(f"Environment={quoted(each)}" for each in passed),
        command=" ".join(quoted(each).replace("$", "$$") for each in command),
        stop_s=f"{NOW_S:.0f}",
    )


def quoted(word: str) -> str:
    """As systemd reads it: percent signs and backslashes mean something there."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'
