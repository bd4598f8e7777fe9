"""demo: see for yourself that nothing is lost."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import click

from understudy.cli.client import FAILED

if TYPE_CHECKING:
    from understudy.cli.evidence import Outcome


@click.command()
@click.option("--database-url", help="An empty PostgreSQL database; else an embedded one.")
@click.option("--keep", is_flag=True, help="Leave the scratch directory, and say where it is.")
@click.option("--json", "as_json", is_flag=True, help="For scripts: the verdict as one object.")
def demo(*, database_url: str | None, keep: bool, as_json: bool) -> None:
    """Three runs in a scratch repository; the daemon is killed in the middle of the second.

    Real processes throughout: PostgreSQL, a server, a daemon, agents that commit to git. The exit
    code is 0 only if nothing was lost and nothing was done twice.
    """
    from understudy.cli.logs import log_to_stderr
    from understudy.cli.rehearsal import rehearse
    from understudy.supervisor import run_tree

    log_to_stderr("ERROR")
    began = time.monotonic()
    tell = partial(_tell, _timeline(to_stderr=as_json), began)
    outcomes: list[Outcome] = []

    async def play() -> None:
        outcomes.append(await rehearse(directory, database_url, tell))

    with _scratch(keep=keep) as directory:
        tell(f"everything happens in {directory}")
        code = run_tree(play)
    if not outcomes:
        sys.exit(code or FAILED)
    outcome, seconds = outcomes[0], time.monotonic() - began
    for sentence in outcome.sentences():
        tell(sentence, style="red")
    _show_json(outcome, seconds) if as_json else _show(outcome)
    sys.exit(0 if outcome.is_good else FAILED)


@contextmanager
def _scratch(*, keep: bool) -> Iterator[Path]:
    directory = Path(mkdtemp(prefix="understudy-demo-"))
    directory.chmod(0o711)  # If we are root the database is somebody else.
    try:
        yield directory
    finally:
        if keep:
            click.echo(f"kept: {directory}", err=True)
        else:
            shutil.rmtree(directory, ignore_errors=True)


def _timeline(*, to_stderr: bool) -> Callable[[str, str], None]:
    from rich.console import Console

    console = Console(stderr=to_stderr, highlight=False, soft_wrap=True)
    return lambda line, style: console.print(line, style=style, markup=False)


def _tell(write: Callable[[str, str], None], began: float, sentence: str, style: str = "") -> None:
    if not style:
        style = "bold yellow" if sentence.startswith("SIGKILL") else "default"
    write(f"{time.monotonic() - began:6.1f} s  {sentence}", style)


def _show_json(outcome: Outcome, seconds: float) -> None:
    counts = {
        "runs": len(outcome.runs),
        "completed": outcome.completed,
        "lost": outcome.lost,
        "doubled": outcome.doubled,
        "adopted": outcome.adopted,
        "agent_restarts": outcome.agent_restarts,
        "seconds": round(seconds, 1),
    }
    click.echo(json.dumps(counts))


def _show(outcome: Outcome) -> None:
    verdict = (
        f"runs {len(outcome.runs)}, completed {outcome.completed}, lost {outcome.lost}, "
        f"doubled {outcome.doubled}, agent processes restarted {outcome.agent_restarts}"
    )
    click.secho(f"\n{verdict}", bold=True, fg="green" if outcome.is_good else "red")
