"""Requests that nobody thought of, made from the description by schemathesis, on a whole node.

They carry the ids and claim tokens of tasks that exist, so that they get past the 404s. What must
hold: no 500, no hang, every answer as described, and nothing lost (R11.3, R11.6).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import msgspec
import pytest
import trio

from understudy.core.lifecycle import EVENT_KIND, MOVES, TERMINAL, Status
from understudy.store.database import Database
from understudy.testing.node import Node

RUN_S = 600
REQUEST_S = 20
SCHEMATHESIS = "from schemathesis.cli import schemathesis; schemathesis()"
UNCHECKED = "positive_data_acceptance"
"""A register without runtimes is JSON of the right shape, and refused all the same."""
CONFIG = "[generation]\nallow-extra-parameters = false\n"
"""A header that we do not know is no error."""
LEGAL = {(leaves, rule.enters) for rule in MOVES.values() for leaves in rule.leaves}
STATUS_OF = {kind: status for status, kind in EVENT_KIND.items()}


class Stage:
    """A runtime, its agent, and tasks in every phase of life."""

    def __init__(self, node: Node, provider: str, agent: str) -> None:
        self.node = node
        self.provider = provider
        self.agent = agent
        self.runtime_id = ""
        self.task_ids: list[str] = []
        self.tokens: list[str] = []
        self.agent_key = ""

    async def set_up(self) -> None:
        body = {
            "workspace_id": str(self.node.workspace.id),
            "daemon_id": "laptop-1",
            "runtimes": [{"type": self.provider}],
        }
        registered = _ok(await self.node.machine.post("/api/daemon/register", json=body))
        self.runtime_id = registered["runtimes"][0]["id"]
        agent = {"name": self.agent, "provider": self.provider, "max_concurrent_tasks": 1000}
        _ok(await self.node.person.post("/api/agents", json=agent))
        for moves in (("start", "complete"), ("start", "fail"), (), ("start",)):
            await self.run(*moves)
        await self.queue()

    async def queue(self) -> None:
        issue = {"title": "Write it down", "agent": self.agent}
        made = _ok(await self.node.person.post("/api/issues", json=issue))
        self.task_ids.append(made["task"]["id"])

    async def run(self, *moves: str) -> None:
        """Another task, claimed, and taken through `moves`."""
        await self.queue()
        path = f"/api/daemon/runtimes/{self.runtime_id}/tasks/claim"
        task = _ok(await self.node.machine.post(path))["task"]
        self.tokens.append(task["claim_token"])
        self.agent_key = task["auth_token"]
        for move in moves:
            path = f"/api/daemon/tasks/{task['id']}/{move}"
            _ok(await self.node.machine.post(path, json={"claim_token": task["claim_token"]}))

    def known(self) -> dict[str, list[str]]:
        """By the names of parameters and fields."""
        return {
            "task_id": self.task_ids[2:],
            "runtime_id": [self.runtime_id],
            "claim_token": self.tokens[2:],
            "workspace_id": [str(self.node.workspace.id)],
            "issue": [f"UND-{number}" for number in range(1, 6)],
            "agent": [self.agent],
        }


def _ok(answer: httpx2.Response) -> Any:
    assert answer.is_success, answer.text
    return answer.json()


def informed(part: Any, known: dict[str, list[str]]) -> Any:
    """The description, narrowed to values that mean something; others are sent as invalid ones."""
    match part:
        case {"name": str(name), "in": "path"} if name in known:
            return part | {"schema": {"enum": known[name]}}
        case {"properties": dict(properties)}:
            more = {
                name: {"anyOf": [{"enum": known[name]}, properties[name]]}  # An answer has others.
                for name in properties.keys() & known.keys()
            }
            return part | {"properties": properties | more}
        case dict():
            return {name: informed(each, known) for name, each in part.items()}
        case list():
            return [informed(each, known) for each in part]
        case _:
            return part


async def rows_of(database: Database) -> dict[UUID, Status]:
    rows = await database.pool.fetch("select id, status from understudy.tasks")
    return {row["id"]: Status(row["status"]) for row in rows}


async def losses(database: Database, before: dict[UUID, Status]) -> list[str]:
    after = await rows_of(database)
    found = [f"{each} is gone" for each in before.keys() - after.keys()]
    found += [
        f"{each} was {status} and is {after[each]}"
        for each, status in before.items()
        if status in TERMINAL and each in after and not _may_follow(status, after[each])
    ]
    found += [line async for line in _untold(database, after)]
    pending = await database.pool.fetch(
        "select issue_id, agent_id, count(*) as n from understudy.tasks"
        " where status in ('queued', 'deferred') group by 1, 2 having count(*) > 1"
    )
    return found + [f"{row['n']} tasks wait for {row['agent_id']}" for row in pending]


async def _untold(database: Database, after: dict[UUID, Status]) -> AsyncIterator[str]:
    """The events tell each task's story: legal moves only, up to what its row says."""
    rows = await database.pool.fetch(
        "select task_id, kind from understudy.events where kind = any($1) order by id",
        list(STATUS_OF),
    )
    stories: dict[UUID, list[Status]] = {}
    for row in rows:
        stories.setdefault(row["task_id"], []).append(STATUS_OF[row["kind"]])
    for task_id, status in after.items():
        story = stories[task_id]
        if story[-1] is not status:
            yield f"{task_id} is {status}, its events: {story}"
        for one, next_one in pairwise(story):
            if not _may_follow(one, next_one):
                yield f"{task_id}: {next_one} after {one}"


def _may_follow(one: Status, other: Status) -> bool:
    return one is other or (one, other) in LEGAL


@contextmanager
def nothing_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.ERROR):
        yield
    assert not [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]


async def fuzz(node: Node, description: Path, key: str | None, *options: str) -> None:
    header = ["--header", f"Authorization: Bearer {key}"] if key else []
    with trio.fail_after(RUN_S):
        done = await trio.run_process(
            [
                *(sys.executable, "-c", SCHEMATHESIS, "run", str(description)),
                *("--url", node.address, "--request-timeout", str(REQUEST_S)),
                *("--checks", "all", "--exclude-checks", UNCHECKED, "--exclude-tag", "stream"),
                *("--continue-on-failure", "--no-color", "--output-sanitize", "false"),
                *("--warnings", "off"),
                *header,
                *options,
            ],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd=description.parent,
        )
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


KEYS: dict[str, Callable[[Stage], str | None]] = {
    "a person": lambda stage: stage.node.personal_key,
    "a machine": lambda stage: stage.node.daemon_key,
    "an agent": lambda stage: stage.agent_key,
    "nobody": lambda stage: None,
}
SHORT = ("--phases", "coverage,fuzzing", "--max-examples", "3", "--no-shrink")
SHORTER = ("--phases", "fuzzing", "--max-examples", "3", "--no-shrink")
LONG = ("--phases", "coverage,fuzzing,stateful", "--max-examples", "50")
LIVE = ("--exclude-operation-id-regex", "complete|fail|stopped|recover|rerun|cancel|deregister")
"""Else no task lives long enough to be reported on."""


@pytest.mark.parametrize(
    ("who", "options"),
    [
        ("a person", SHORT),
        ("a machine", (*SHORTER, *LIVE)),
        ("an agent", SHORTER),
        ("nobody", SHORTER),
        *(pytest.param(who, LONG, marks=pytest.mark.slow) for who in KEYS),
        pytest.param("a machine", (*LONG, *LIVE), marks=pytest.mark.slow),
    ],
)
async def test_nothing_that_is_sent_breaks_hangs_or_loses(
    who: str,
    options: tuple[str, ...],
    node: Node,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """R11.3, R11.6"""
    stage = Stage(node, "scripted", "Nia")
    await stage.set_up()
    before = await rows_of(node.database)
    description = tmp_path / "openapi.json"
    document = _ok(await node.stranger.get("/api/openapi.json"))
    description.write_bytes(msgspec.json.encode(informed(document, stage.known())))
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    seed = f"--seed={request.config.getoption('--seed')}"
    with nothing_logged(caplog):
        await fuzz(node, description, KEYS[who](stage), seed, *options)
    assert not await losses(node.database, before)
    await Stage(node, "another", "Afterwards").set_up()
