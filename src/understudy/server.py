"""One server node: its whole tree on one screen, in the order in which it starts."""

from __future__ import annotations

import gc
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from random import Random, SystemRandom
from typing import Final, TypeAlias, final

import trio

from understudy.actors import broadcast
from understudy.actors.actor import spawn
from understudy.actors.broadcast import Broadcast, Tail
from understudy.actors.cast import Cast
from understudy.actors.courier import Courier
from understudy.actors.node import NodeLease
from understudy.actors.sweepers import Sweepers, all_sweeps
from understudy.config import ServerConfig
from understudy.core.restarts import CannotStart, RestartPolicy
from understudy.core.tree import Branch
from understudy.http.app import create_app
from understudy.http.serve import CannotListen, ServeConfig, open_listeners, serve
from understudy.http.site import Site
from understudy.parent import until_parent_ends
from understudy.store import schema
from understudy.store.connection import Connection, open_connection
from understudy.store.database import Database
from understudy.store.embedded import EmbeddedServer
from understudy.store.embedded import run_server as run_postgres
from understudy.store.errors import DatabaseUnavailable
from understudy.store.notices import Dial, Listener, Notifier
from understudy.store.pool import Pool
from understudy.supervisor import open_children, sole, supervise
from understudy.version import VERSION

logger = logging.getLogger(__name__)

DATABASE: Final = "understudy"
STOP_S: Final = 10.0
PLANS: Final = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_bitmapscan": "off",
    "jit": "off",
}
"""A queue's statistics are always stale: what was planned for an empty table scans a full one.
Every statement here has an index to go through. The moves alone, by pgbench: a third more."""
Socket: TypeAlias = trio.abc.Listener[trio.abc.HalfCloseableStream]


async def run_server(
    config: ServerConfig,
    tree: Branch,
    listeners: Sequence[Socket],
    *,
    dial: Dial | None = None,
    dice: Random | None = None,
    task_status: trio.TaskStatus[Site] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled, then stop: no new requests, streams closed, actors, connections.

    `dial` leads to the database of `config` unless a simulated world has another way to one.
    """
    dial = dial or partial(_dial, config)
    async with (
        open_database(config, dial, dice) as database,
        open_children(stop_s=STOP_S) as children,
    ):
        tail, stopping, node_id = Tail(), trio.Event(), database.new_id()
        notifier = Notifier(dial, node_id)
        news = await spawn(
            children,
            tree.child("broadcast"),
            partial(Broadcast, database, tail, notifier.note),
            mailbox_max=16,
            policy=RestartPolicy(),
        )
        cast = Cast(database, node_id=node_id, leases=config.leases, tail=tail, news=news)
        lease = NodeLease(database, config, node_id, partial(_tell_peers, cast, notifier))
        listener = Listener(dial, node_id, partial(_hear_peers, cast, lease))
        cast.leased_until = lease.ends_at
        sweepers = Sweepers(
            all_sweeps(database, node_id, config.leases, lease.may_judge),
            partial(cast.committed, None),
        )
        courier = Courier(cast, sweepers)
        await children.start(supervise, tree.child("node"), lease.run, RestartPolicy())
        await children.start(cast.run, tree)
        await children.start(sweepers.run, tree.child("sweepers"))
        await children.start(supervise, tree.child("courier"), courier.run, RestartPolicy())
        await children.start(supervise, tree.child("notifier"), notifier.run, RestartPolicy())
        await children.start(supervise, tree.child("listener"), listener.run, RestartPolicy())
        site = Site(database, cast, sweepers, tree, stopping, VERSION)
        http = partial(serve, create_app(site), listeners, config=ServeConfig(), stopping=stopping)
        await children.start(
            supervise, tree.child("http"), http, RestartPolicy(), finish=stopping.set
        )
        task_status.started(site)
        await trio.sleep_forever()


def _tell_peers(cast: Cast, notifier: Notifier, has_peers: bool) -> None:  # noqa: FBT001
    """Who has just come speaks first: the others may not know that they are not alone any more."""
    is_first = has_peers and not cast.has_peers
    cast.has_peers = notifier.has_peers = has_peers
    if is_first:
        notifier.note()


def _hear_peers(cast: Cast, lease: NodeLease) -> None:
    broadcast.nudged(cast.news)
    lease.meet()


async def run_node(config: ServerConfig) -> None:
    """The process behind `understudy serve`."""
    try:
        listeners = await open_listeners(config.host, config.port)
    except CannotListen as error:
        raise CannotStart(str(error)) from error
    tree = Branch("server")
    async with open_children(stop_s=STOP_S) as children:
        if config.database_url is None:
            database = own_database(config)
            await children.start(supervise, tree.child("postgres"), database.run, RestartPolicy())
            config = replace(config, database_url=database.url)
        gc.freeze()
        logger.info("listening on %s", config.address)
        await until_parent_ends(partial(run_server, config, tree, listeners))


@final
class OwnDatabase:
    """The embedded PostgreSQL of this machine as a service."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._server = server
        self.url = server.dsn(DATABASE)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(run_postgres, self._server)
                await trio.to_thread.run_sync(self._server.ensure_database, DATABASE)
                task_status.started()
        except* DatabaseUnavailable as group:
            raise CannotStart(str(sole(group))) from group


def own_database(config: ServerConfig) -> OwnDatabase:
    config.home.create()
    return OwnDatabase(EmbeddedServer(config.home.postgres))


@asynccontextmanager
async def open_database(
    config: ServerConfig, dial: Dial | None = None, dice: Random | None = None
) -> AsyncIterator[Database]:
    """Brought up to today's schema."""
    pool = Pool(dial or partial(_dial, config), size=config.pool_size)
    try:
        await _bring_up(pool)
        yield Database(pool, dice or SystemRandom())
    finally:
        await pool.aclose()


async def _dial(config: ServerConfig) -> Connection:
    assert config.database_url is not None
    return await open_connection(config.database_url, options=PLANS)


async def _bring_up(pool: Pool) -> None:
    try:
        async with pool.connection() as connection:
            await schema.bring_up(connection)
    except (DatabaseUnavailable, schema.NewerDatabase) as error:
        raise CannotStart(f"the database cannot be used: {error}") from error
