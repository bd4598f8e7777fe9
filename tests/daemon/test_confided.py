"""What agents are confided is hidden in their daemon's log (R9.5)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

import trio

from understudy.config import DaemonConfig
from understudy.core.secrets import Secrets
from understudy.core.tree import Branch
from understudy.daemon import link
from understudy.daemon.main import run_daemon
from understudy.testing.crossing import Crossing
from understudy.testing.node import Node
from understudy.testing.workplace import Workplace

SERVERS: Final = {"forge": {"url": "http://forge", "headers": {"Authorization": "Bearer sesame77"}}}
AGENT: Final = {
    "name": "Nia", "provider": "command", "custom_args": ["sleep", "1000"],
    "custom_env": {"FORGE_KEY": "hunter22"}, "mcp_config": {"mcpServers": SERVERS},
}  # fmt: skip


async def test_a_daemon_hides_what_a_run_is_given_from_its_claim_on_and_when_it_finds_it_again(
    node: Node, tmp_path: Path
) -> None:
    """R9.5: in the environment of the agent, and in what only its MCP servers are to see."""
    path = tmp_path / "daemon"
    config = DaemonConfig(path, node.address, node.daemon_key, str(node.workspace.id))
    workplace = Workplace(node, path, Crossing(link.dial(config)), config)
    await node.person.post("/api/agents", json=AGENT)
    made = await node.person.post("/api/issues", json={"title": "Do it", "agent": "Nia"})
    task_id = made.json()["task"]["id"]
    for secrets in (Secrets(), Secrets()):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(run_daemon, config, Branch("daemon"), secrets=secrets))
            await workplace.wait(lambda: secrets.hide("hunter22") == "***")  # noqa: B023
            assert secrets.hide("the key sesame77") == "the key ***"
            await workplace.wait_status(task_id, "running")
            nursery.cancel_scope.cancel()
    async with workplace.open_daemon():
        await node.person.post(f"/api/tasks/{task_id}/cancel")
        await workplace.wait_status(task_id, "cancelled")
