"""slow_sync_offline: a slow checkout delayed heartbeats, the machine went offline."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from understudy.core.leases import Leases
from understudy.testing.workplace import Workplace

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
