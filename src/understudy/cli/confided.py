"""What is given to a command out of sight of `ps` (R9.5): links with keys, variables of agents."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator

import click

STDIN = "-"


def given_link(link: str) -> str:
    """`-` is asked for at a terminal, unseen, and else read from stdin."""
    if link != STDIN:
        return link
    if sys.stdin.isatty():
        return str(click.prompt("Link", hide_input=True, err=True)).strip()
    return sys.stdin.readline().strip()


def variables(given: Iterable[str], files: Iterable[str]) -> dict[str, str]:
    """From files first, so that what is typed counts. Raises `BadParameter`."""
    found = dict(pair for file in files for pair in _pairs_in(file))
    return found | dict(_pair(each, f"--env {each.partition('=')[0]}") for each in given)


def _pairs_in(file: str) -> Iterator[tuple[str, str]]:
    """As `docker run --env-file` reads it: a variable a line, to its end and without quoting."""
    try:
        with click.open_file(file, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if (text := line.lstrip().rstrip("\r\n")) and not text.startswith("#"):
                    yield _pair(text, f"--env-file {file}, line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(str(error), param_hint=f"--env-file {file}") from None


def _pair(given: str, where: str) -> tuple[str, str]:
    """Of NAME alone the value is our own. What is wrong with it is told without showing it."""
    name, has_value, value = given.partition("=")
    if not name or (not has_value and name not in os.environ):
        problem = "neither NAME=VALUE nor the name of a variable that is set here"
        raise click.BadParameter(problem, param_hint=where)
    return name, value if has_value else os.environ[name]
