"""The command line against a whole node, in the test's own process."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import trio
from click.testing import CliRunner, Result

from understudy.cli.main import cli
from understudy.testing.node import Node

Call: TypeAlias = Callable[..., Awaitable[Result]]
Ask: TypeAlias = Callable[..., Awaitable[Any]]


async def invoke(
    environment: dict[str, str | None], arguments: tuple[str, ...], stdin: str | None
) -> Result:
    runner = CliRunner(env={"COLUMNS": "200", **environment})
    with trio.fail_after(60):
        return await trio.to_thread.run_sync(lambda: runner.invoke(cli, list(arguments), stdin))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Of a machine that knows nothing yet."""
    return tmp_path / "home"


@pytest.fixture
def anywhere(home: Path) -> Call:
    """`understudy` on that machine."""

    async def call(*arguments: str, stdin: str | None = None, **environment: str) -> Result:
        known = {"UNDERSTUDY_SERVER": None, "UNDERSTUDY_TOKEN": None, "UNDERSTUDY_HOME": str(home)}
        return await invoke({**known, **environment}, arguments, stdin)

    return call


@pytest.fixture
def call(node: Node, anywhere: Call) -> Call:
    """The same, by a person of the node's."""

    async def call(*arguments: str, stdin: str | None = None, **environment: str) -> Result:
        known = {"UNDERSTUDY_SERVER": node.address, "UNDERSTUDY_TOKEN": node.personal_key}
        return await anywhere(*arguments, stdin=stdin, **{**known, **environment})

    return call


@pytest.fixture
def ask(call: Call) -> Ask:
    """What a command that succeeds answers as JSON."""

    async def ask(*arguments: str) -> Any:
        done = await call(*arguments, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    return ask


@pytest.fixture
def tell(call: Call) -> Callable[..., Awaitable[str]]:
    """What a command that succeeds says."""

    async def tell(*arguments: str) -> str:
        done = await call(*arguments)
        assert done.exit_code == 0, done.output
        return str(done.stdout)

    return tell
