"""A slow checkout delayed heartbeats, the machine went offline.

One loop that does one thing after the other is silent while it waits for git. Here liveness has a
task of its own, and a claim is renewed while its directory is prepared (R3.4, R4.8). The world has
no git: a directory that takes six minutes stands for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
import trio

from understudy.core.leases import Leases
from understudy.daemon import workspace
from understudy.daemon.repositories import Repositories
from understudy.daemon.workspace import Order, WorkDir
from understudy.testing.disk import replaced
from understudy.testing.plays import works
from understudy.testing.scenario import Scenario
from understudy.testing.workplace import Workplace

prepare = workspace.prepare


async def prepare_slowly(order: Order, repositories: Repositories) -> WorkDir:
    await trio.sleep(400)
    return await prepare(order, repositories)


def test_slow_sync_offline(enact: Callable[..., None]) -> None:
    """R3.4, R4.8, R4.10: longer than a claim, a silence and the 300 s of a dispatched task."""

    async def story(world: Scenario) -> None:
        await world.machine("laptop")
        fix = await world.assign("Fix the parser", works(60, says="Fixed."))
        for _ in range(39):
            await world.pass_(10)
            assert await world.standing("laptop") == "online"
            assert await fix.outcome() == ["dispatched"]
        await fix.until("completed")
        assert await fix.outcome() == ["completed"]

    with replaced(workspace, "prepare", prepare_slowly):
        enact(story)


HEARTBEATS = 10


async def test_a_checkout_that_hangs_delays_no_heartbeat_and_no_renewal(
    workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R4.8, R3.4"""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    arrived = tmp_path / "arrived"
    monkeypatch.setenv("GIT_SSH_COMMAND", f"sh -c 'echo > {arrived}; cat {gate}' --")
    quick = Leases(heartbeat_s=0.02, renew_every_s=0.05)
    workplace.config = replace(workplace.config, leases=quick)
    node = workplace.node
    async with workplace.open_daemon():
        await node.person.post("/api/agents", json={"name": "Nia", "provider": "scripted"})
        body = {"title": "Clone it", "agent": "Nia", "repository": "ssh://elsewhere/project"}
        task = (await node.person.post("/api/issues", json=body)).json()["task"]
        await workplace.wait(arrived.exists)
        (runtime,) = [
            row
            for row in (await node.person.get("/api/runtimes")).json()
            if row["provider"] == "scripted"
        ]
        runtime_id, heard = UUID(runtime["id"]), set[float]()

        def is_heard_often() -> bool:
            presence = node.site.cast.presence(runtime_id)
            assert presence is not None
            heard.add(presence.heard_at)
            return len(heard) > HEARTBEATS

        await workplace.wait(is_heard_often)
        assert (await workplace.task(task["id"]))["status"] == "dispatched"
