"""What a log hides (R9.5)."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from understudy.cli.logs import Redacting
from understudy.core.secrets import LENGTH_MIN, Secrets, confided
from understudy.store.tokens import AGENT, PREFIXES


@pytest.mark.parametrize("prefix", [*PREFIXES.values(), AGENT.rstrip("_")])
def test_a_key_of_ours_is_hidden_but_for_its_kind(prefix: str) -> None:
    """R9.5: in a link, in a header, in quotes."""
    key = f"{prefix}_{'0af3' * 12}"
    for text in (f"/login/{key}", f"Bearer {key}", f"'{key}',", f"x{key}"):
        assert Secrets().hide(text) == text.replace(key, f"{prefix}_***")


def test_what_agents_are_given_is_hidden_wherever_it_stands() -> None:
    """R9.5: a value in another one, and each line of one that has more."""
    secrets = Secrets()
    secrets.add(["hunter2", "hunter2-and-more", "-----BEGIN KEY-----\nabcdefgh\n", "a.c*e+g"])
    assert secrets.hide("hunter2-and-more, hunter2") == "***, ***"
    assert secrets.hide("read abcdefgh\nof a.c*e+g") == "read ***\nof ***"
    secrets.add(["  swordfish  "])
    assert secrets.hide("a swordfish, a hunter2") == "a ***, a ***"
    assert secrets.hide("a-c-e-g usd_0af30af30af3") == "a-c-e-g usd_***"


def test_what_is_too_short_to_be_a_secret_spoils_no_log() -> None:
    secrets = Secrets()
    secrets.add(["1", "true", "", "x" * (LENGTH_MIN - 1)])
    assert secrets.hide("1 of 10 is true: xxxxxx") == "1 of 10 is true: xxxxxx"


def test_what_mcp_servers_are_given_is_hidden_and_how_they_are_started_is_not() -> None:
    """R9.5: environments, headers and what an address carries, in each backend's shape."""
    secrets = Secrets()
    config = {"mcpServers": {
        "forge": {"command": "forge-mcp", "args": ["--verbose"], "env": {"TOKEN": "hunter2"}},
        "board": {"type": "http", "url": "https://ada:pa55word@board/mcp?page=1&key=0af30af3#top",
                  "headers": {"Authorization": "Bearer opensesame"}},
        "listed": {"env": [{"name": "A", "value": "swordfish"}]},
    }}  # fmt: skip
    secrets.add(confided(config))
    for shown in ("forge-mcp --verbose", "https://ada", "@board/mcp?page=1", "Bearer of news"):
        assert secrets.hide(shown) == shown
    for hidden in ("hunter2", "pa55word", "0af30af3", "opensesame", "swordfish"):
        assert secrets.hide(f"is {hidden}, given") == "is ***, given"
    assert list(confided(None)) == []


def test_a_log_line_is_hidden_with_its_arguments_and_its_traceback() -> None:
    """R9.5: at the one place where lines are made, whoever writes them."""
    secrets = Secrets()
    formatter = Redacting(secrets)
    secrets.add(["hunter2"])
    with pytest.raises(ValueError, match="hunter2") as raised:
        int("the password hunter2 is no number")
    caught = (raised.type, raised.value, raised.tb)
    record = logging.LogRecord("x", logging.INFO, "", 1, "given %s", ("hunter2",), caught)
    line = formatter.format(record)
    assert "given ***" in line
    assert "the password *** is no number" in line
    assert "hunter2" not in line


def test_a_log_file_is_its_owners_alone_and_hides_what_is_added_later(tmp_path: Path) -> None:
    """R9.5: in a process of its own, whose root logger it becomes."""
    program = (
        "import logging, sys; from pathlib import Path\n"
        "from understudy.cli.logs import log_to_file\n"
        "secrets = log_to_file(Path(sys.argv[1]))\n"
        "secrets.add(['hunter2'])\n"
        "logging.getLogger('any').info('the password is %s', 'hunter2')"
    )
    log = tmp_path / "made" / "daemon.log"
    subprocess.run([sys.executable, "-c", program, log], check=True, timeout=60)
    assert log.read_text().endswith("any: the password is ***\n")
    assert log.stat().st_mode & 0o777 == 0o600
    assert log.parent.stat().st_mode & 0o777 == 0o700
