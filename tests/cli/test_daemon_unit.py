"""`understudy daemon unit`: what matters in it, and that systemd can read it."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeAlias

import pytest
from click.testing import CliRunner, Result

from understudy.cli.main import cli
from understudy.cli.unit import quoted, unit_text
from understudy.config import Home
from understudy.daemon.stopping import NOW_S, SIGNALS, Ending

Call: TypeAlias = Callable[..., Awaitable[Result]]
STRANGE: Final = {"UNDERSTUDY_HOME": '/home/ada/50% "of" it\\x', "PATH": "/bin", "SECRET": "x"}


def settings(unit: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in unit.splitlines() if not line.startswith("#"))
    return {name: value for name, _, value in pairs if value}


async def test_a_stop_of_the_service_stops_no_agent(anywhere: Call, home: Path) -> None:
    """R7.4, R8.1: nor does an agent that takes too much memory, nor a restart."""
    done = await anywhere("daemon", "unit", "--max-concurrent-tasks", "3")
    assert done.exit_code == 0
    unit = settings(done.stdout)
    assert unit["KillMode"] == "process"
    assert unit["OOMPolicy"] == "continue"
    assert unit["Restart"] == "on-failure"
    assert unit["RestartPreventExitStatus"] == "1"
    assert float(unit["TimeoutStopSec"]) >= NOW_S
    assert (unit["TasksMax"], unit["WantedBy"]) == ("infinity", "default.target")
    assert unit["ExecStart"].endswith('"daemon" "run" "--max-concurrent-tasks" "3"'
                                      ' "--orphan-after" "1800"')  # fmt: skip
    assert f'Environment="UNDERSTUDY_HOME={home}"' in done.stdout
    assert "systemctl --user enable --now understudy" in done.stdout


async def test_the_service_has_the_limits_that_were_asked_for(anywhere: Call) -> None:
    """R4.10"""
    unit = settings((await anywhere("daemon", "unit", "--max-requests", "7")).stdout)
    assert unit["ExecStart"].endswith('"--max-requests" "7"')


def test_the_service_works_where_this_shell_does_and_goes_its_way_to_the_server() -> None:
    """A service manager passes on none of the shell's environment."""
    ways = {
        "UNDERSTUDY_TRANSPORT": "http", "SSL_CERT_FILE": "/ca.pem", "HTTPS_PROXY": "http://h:1",
        "no_proxy": "board",
    }  # fmt: skip
    done = CliRunner(env={**ways, "UNDERSTUDY_HOME": None}).invoke(cli, ["daemon", "unit"])
    for name, value in {**ways, "UNDERSTUDY_HOME": str(Home.of({}).path)}.items():
        assert f'Environment="{name}={value}"\n' in done.stdout


async def test_a_reload_is_a_restart_in_place(anywhere: Call) -> None:
    unit = settings((await anywhere("daemon", "unit")).stdout)
    assert SIGNALS[signal.SIGUSR2] is Ending.RESTART
    assert unit["ExecReload"] == "/bin/kill -USR2 $MAINPID"


def test_nothing_secret_is_passed_on_and_what_is_special_to_systemd_is_escaped() -> None:
    """R9.5"""
    unit = unit_text(["/opt/my python", "$x"], STRANGE)
    assert "SECRET" not in unit
    assert 'Environment="UNDERSTUDY_HOME=/home/ada/50%% \\"of\\" it\\\\x"' in unit
    assert 'ExecStart="/opt/my python" "$$x"' in unit
    assert quoted("a%b") == '"a%%b"'


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
async def test_systemd_has_nothing_to_say_against_it(anywhere: Call, tmp_path: Path) -> None:
    file = tmp_path / "understudy.service"
    file.write_text((await anywhere("daemon", "unit")).stdout)
    done = subprocess.run(  # noqa: ASYNC221  It takes a moment.
        ["systemd-analyze", "verify", file], capture_output=True, timeout=60, check=False
    )
    assert file.name not in done.stderr.decode()  # What it says of others is not our business.
