"""up and serve: the processes of one machine."""

from __future__ import annotations

import sys
from functools import partial

import click

from understudy.cli import credentials
from understudy.config import PORT, ServerConfig

HOST = click.option("--host", default="127.0.0.1", show_default=True, envvar="UNDERSTUDY_HOST")
PORT_OPTION = click.option(
    "--port",
    default=PORT,
    show_default=True,
    type=click.IntRange(0, 65535),
    envvar="UNDERSTUDY_PORT",
)
DATABASE = click.option(
    "--database-url", envvar="DATABASE_URL", help="A PostgreSQL of yours; else an embedded one."
)


@click.command()
@HOST
@PORT_OPTION
@DATABASE
@click.option(
    "--repository", help="Where work happens unless the issue names another: path or URL."
)
@click.option("--no-daemon", is_flag=True, help="Run no agents on this machine.")
def up(
    *, host: str, port: int, database_url: str | None, repository: str | None, no_daemon: bool
) -> None:
    """The board, a database and a daemon on this machine. Ctrl-C stops them; agents go on."""
    from understudy.cli.logs import log_to_stderr
    from understudy.cli.paths import as_repository
    from understudy.cli.up import UpConfig, run_up
    from understudy.supervisor import run_tree

    log_to_stderr("WARNING")
    config = UpConfig(
        server=ServerConfig(credentials.home(), host=host, port=port, database_url=database_url),
        repository=as_repository(repository),
        with_daemon=not no_daemon,
    )
    sys.exit(run_tree(partial(run_up, config)))


@click.command()
@HOST
@PORT_OPTION
@DATABASE
def serve(*, host: str, port: int, database_url: str | None) -> None:
    """A server node alone; several may share one DATABASE_URL."""
    from understudy.cli.logs import log_to_file, log_to_stderr
    from understudy.parent import has_parent
    from understudy.server import run_node
    from understudy.supervisor import run_tree

    home = credentials.home()
    home.create()
    if has_parent():  # The terminal is `up`'s.
        log_to_file(home.path / "server.log")
    else:
        log_to_stderr("INFO")
    config = ServerConfig(home, host=host, port=port, database_url=database_url)
    sys.exit(run_tree(partial(run_node, config)))
