"""`understudy up`: the supervisor process of one machine: database, server, daemon, in order."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import click
import msgspec
import trio

from understudy.cli import credentials
from understudy.cli.children import end_child, open_child, wait_answers
from understudy.cli.credentials import Credentials, MachineKey
from understudy.cli.hold import hold
from understudy.config import ServerConfig
from understudy.core.records import User, Workspace
from understudy.core.restarts import CannotStart, ChildEnded, RestartPolicy
from understudy.core.tree import Branch
from understudy.daemon.probe import Found, find_clis
from understudy.daemon.status import is_running, read_status
from understudy.http.serve import CannotListen, open_listeners
from understudy.server import open_database, own_database
from understudy.store import people, tokens
from understudy.store.database import Database
from understudy.store.tokens import Owner
from understudy.supervisor import EXIT_CANNOT_START, open_children, supervise

STOP_S: Final = 15.0
READY_S: Final = 60.0
LINKED_S: Final = 20.0
POLL_S: Final = 0.1


@dataclass(frozen=True)
class UpConfig:
    server: ServerConfig
    repository: str | None
    with_daemon: bool


async def run_up(config: UpConfig) -> None:
    """Until Ctrl-C or SIGTERM; children stop in reverse order. Agents go on under their keepers."""
    async with hold(config.server.home) as lock:
        await _check_free(config)
        await _run(config, lock)


async def _run(config: UpConfig, lock: int) -> None:
    tree = Branch("up")
    async with open_children(stop_s=STOP_S) as children:
        server = config.server
        if server.database_url is None:
            database = own_database(server)
            await children.start(supervise, tree.child("postgres"), database.run, RestartPolicy())
            server = replace(server, database_url=database.url)
        async with open_database(server) as opened:
            link = await _first_steps(opened, replace(config, server=server))
        serve = partial(_serve, server, lock)
        await children.start(supervise, tree.child("server"), serve, RestartPolicy())
        if config.with_daemon:
            work = partial(_work, server, lock)
            await children.start(supervise, tree.child("daemon"), work, RestartPolicy())
        _greet(server, link, await find_clis(os.environ.get("PATH", os.defpath)))
        await trio.sleep_forever()


async def _check_free(config: UpConfig) -> None:
    """Before anything is started or written: else another program would answer in our place."""
    try:
        listeners = await open_listeners(config.server.host, config.server.port)
    except CannotListen as error:
        raise CannotStart(str(error)) from error
    for listener in listeners:
        await listener.aclose()
    if config.with_daemon and is_running(config.server.home.daemon):
        raise CannotStart(
            f"a daemon runs in {config.server.home.daemon} already:"
            " `understudy daemon stop`, or `understudy up --no-daemon`"
        )


async def _first_steps(database: Database, config: UpConfig) -> str:
    """A user, keys for this machine, and the one-time link; what is there already stays."""
    user, workspace = await people.first_user(
        database, name=os.environ.get("USER", "me"), email="me@localhost"
    )
    if config.repository is not None:
        await people.set_repository(database, workspace.id, config.repository)
    await _keep_keys(database, config.server.address, user, workspace)
    code = await tokens.create(database, "login", Owner(user_id=user.id), valid_s=tokens.LINK_S)
    return f"{config.server.address}/login/{code}"


async def _keep_keys(database: Database, address: str, user: User, workspace: Workspace) -> None:
    known = credentials.load()
    owner = Owner(user_id=user.id, workspace_id=workspace.id)
    key, machine = known.key, known.machine
    if key is None or await tokens.find(database, key) is None:
        key = await tokens.create(database, "personal", owner, name="this machine")
    if machine is None or await tokens.find(database, machine.key) is None:
        secret = await tokens.create(database, "daemon", owner, name="this machine")
        machine = MachineKey(server=address, key=secret, workspace_id=str(workspace.id))
    machine = msgspec.structs.replace(machine, server=address)
    credentials.save(Credentials(server=address, key=key, machine=machine))


async def _serve(config: ServerConfig, lock: int, *, task_status: trio.TaskStatus[None]) -> None:
    assert config.database_url is not None
    arguments = ["serve", "--host", config.host, "--port", str(config.port)]
    process = await open_child(
        arguments, {**os.environ, "DATABASE_URL": config.database_url}, descriptors=[lock]
    )
    await _attend("serve", process, partial(_wait_answers, config), task_status)


async def _work(config: ServerConfig, lock: int, *, task_status: trio.TaskStatus[None]) -> None:
    process = await open_child(["daemon", "run"], os.environ, descriptors=[lock])
    await _attend("daemon", process, partial(_wait_linked, config), task_status)


async def _attend(
    name: str,
    process: trio.Process,
    wait_ready: Callable[[], Awaitable[object]],
    task_status: trio.TaskStatus[None],
) -> None:
    """A process of ours as a service. It ends with us, however we end: stdin tells it."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_raise_end, name, process)
            await wait_ready()
            task_status.started()
    finally:
        with trio.CancelScope(shield=True):
            await end_child(process)


async def _raise_end(name: str, process: trio.Process) -> None:
    code = await process.wait()
    if code == 0 and name == "daemon":  # As it was asked to: `understudy daemon stop`.
        click.echo("The daemon was stopped; `understudy daemon start` starts it again.")
        await trio.sleep_forever()
    if code == EXIT_CANNOT_START:
        raise CannotStart(f"understudy {name} could not start")
    raise ChildEnded(f"understudy {name} ended with status {code}")


async def _wait_answers(config: ServerConfig) -> None:
    with trio.move_on_after(READY_S):
        await wait_answers(config.address)
        return
    raise ChildEnded(f"the server did not answer within {READY_S:.0f} s")


async def _wait_linked(config: ServerConfig) -> None:
    """Not for ever: it goes on trying, and its log says what is in the way."""
    with trio.move_on_after(LINKED_S):
        while True:
            found = read_status(config.home.daemon)
            if found is not None and found.is_linked:
                return
            await trio.sleep(POLL_S)


def _greet(config: ServerConfig, link: str, found: list[Found]) -> None:
    click.echo(f"\n  Understudy is at {config.address}\n\n  Log in once with: {link}\n")
    for each in found:
        state = each.problem or f"{each.version} {each.executable}".strip()
        click.echo(f"  {each.provider:<10} {state}")
    click.echo("\n  Ctrl-C stops the server and the daemon; agents at work go on.\n")
