"""The programs in examples/ do what they say, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import trio

from understudy.testing.desk import Desk
from understudy.testing.machine import Machine, open_machine
from understudy.testing.node import Node

EXAMPLES = Path(__file__).parents[2] / "examples"
LINUS = {"custom_args": [sys.executable, str(EXAMPLES / "command_agent.py")]}
CLIENT_S = 90
RECEIVE_MAX = 1 << 16


@pytest.fixture
def machine(node: Node, tmp_path: Path) -> Iterator[Machine]:
    with open_machine(node, tmp_path / "daemon", os.environ["PATH"]) as machine:
        yield machine


async def test_the_command_agent_comments_on_the_links_that_lead_nowhere(
    machine: Machine, tmp_path: Path
) -> None:
    """R9.1"""
    user = Desk(tmp_path).repository()
    user.commit("README.md", "[ours](docs/a%20b.md#top) [theirs](https://example.org) `[no](no)`\n")
    user.commit("docs/a b.md", "[back](../README.md) [lost](<lost.md>)\n")
    async with machine.daemon():
        await machine.agent("Linus", "command", **LINUS)
        task_id = await machine.assign("linus", title="Links?", repository=str(user.path))
        shown = await machine.wait_status(task_id, "completed")
    lost = "- `docs/a b.md` links to `lost.md`"
    assert shown["task"]["result"]["output"] == f"Broken links: 1\n{lost}"
    assert shown["task"]["result"]["changes"]["uncommitted"] == 0
    told = await machine.messages(task_id)
    assert [(each["type"], each["tool"], each["output"]) for each in told] == [
        ("text", None, None),
        ("tool_use", "check_links", None),
        ("tool_result", "check_links", "All links lead somewhere."),
        ("tool_use", "check_links", None),
        ("tool_result", "check_links", lost),
    ]
    assert told[3]["input"] == {"path": "docs/a b.md"}


@dataclass
class Cutter:
    """A way to the server that breaks the first stream once a message has come through."""

    port: int
    heads: list[bytes] = field(default_factory=list)

    @property
    def streams(self) -> list[bytes]:
        return [head for head in self.heads if b"/stream " in head]

    async def serve(self, client: trio.SocketStream) -> None:
        """Until either side is gone: it may leave with a reset."""
        try:
            await self._carry(client)
        except* trio.BrokenResourceError:
            pass

    async def _carry(self, client: trio.SocketStream) -> None:
        async with client, await trio.open_tcp_stream("127.0.0.1", self.port) as server:
            head = await client.receive_some(RECEIVE_MAX)
            self.heads.append(head)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._answer, server, client, nursery.cancel_scope)
                while head:
                    await server.send_all(head)
                    head = await client.receive_some(RECEIVE_MAX)

    async def _answer(
        self, server: trio.SocketStream, client: trio.SocketStream, both: trio.CancelScope
    ) -> None:
        is_to_be_cut = len(self.streams) == 1 and b"/stream " in self.heads[-1]
        try:
            async for data in server:
                await client.send_all(data)
                if is_to_be_cut and b"task:message" in data:
                    break
        except trio.BrokenResourceError:
            pass  # The client has heard enough.
        both.cancel()


async def test_the_client_misses_nothing_when_its_stream_breaks(
    machine: Machine, nursery: trio.Nursery
) -> None:
    """R11.4"""
    cutter = Cutter(int(machine.node.address.rpartition(":")[2]))
    [listener] = await nursery.start(partial(trio.serve_tcp, cutter.serve, 0, host="127.0.0.1"))
    env = {
        "PATH": os.environ["PATH"],
        "UNDERSTUDY_SERVER": f"http://127.0.0.1:{listener.socket.getsockname()[1]}",
        "UNDERSTUDY_TOKEN": machine.node.personal_key,
    }
    async with machine.daemon():
        await machine.agent("Nia", "scripted", custom_args=["--steps", "2", "--step-s", "0.1"])
        with trio.fail_after(CLIENT_S):
            done = await trio.run_process(
                [sys.executable, str(EXAMPLES / "api_client.py"), "nia", "Write it down"],
                env=env, stdin=subprocess.DEVNULL, capture_stdout=True, check=False,
            )  # fmt: skip
    first, *told, last = done.stdout.decode().splitlines()
    assert (done.returncode, first) == (0, "UND-1 is assigned to nia.")
    assert last == "completed: All 2 steps are done: see notes/UND-1.md."
    [task] = (await machine.get("/api/issues/UND-1"))["tasks"]
    messages = await machine.messages(task["id"])
    assert len(told) == len(messages)
    said = [line for line in told if not line.startswith(("-> ", "<- "))]
    assert said == [each["content"] for each in messages if not each["type"].startswith("tool")]
    assert len(cutter.streams) >= 2
    assert b"Last-Event-ID" not in cutter.streams[0]
    assert b"last-event-id: " in cutter.streams[1].lower()
    nursery.cancel_scope.cancel()
