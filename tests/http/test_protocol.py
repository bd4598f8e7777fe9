"""docs/protocol.md shows every call and every frame, as they are.

The exchanges are made here, on a node, and written down. `make docs` writes them into the document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, get_args
from uuid import UUID

import msgspec
import pytest

from understudy.core.records import Message, Usage
from understudy.core.struct import Struct
from understudy.store import tasks
from understudy.testing.node import Node
from understudy.wire import daemon as wire
from understudy.wire import frames
from understudy.wire.daemon import CALLS
from understudy.wire.errors import Refusal, not_found

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "protocol.md"
MARKED: Final = re.compile(r"<!-- (exchange|frame) (.+?) -->\n(.*?)<!-- end -->\n", re.DOTALL)
BODY: Final = re.compile(r"^```\w*\n(?:.*?\n\n)??([\[{].*?)^```$", re.DOTALL | re.MULTILINE)
UUIDS: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
SECRET: Final = re.compile(r"\b(us\w_)[0-9a-f]{16,}")
CAPABILITIES: Final = f"{wire.CLAIM_LEASE}, {wire.FENCED_REPORTS}"
NOW, IN_A_MINUTE = "2026-01-01T12:00:00Z", "2026-01-01T12:01:00Z"
EMPTY: Final[tuple[object, ...]] = (msgspec.UNSET, None, "", [], {})
PING: Final = UUID("5bd0a4c4-3a64-4c7c-8e6a-0a1f0d6f4d11")


def frame_types(*unions: Any) -> dict[str, type[Struct]]:
    return {each.__struct_config__.tag: each for union in unions for each in get_args(union)}


FRAMES: Final = frame_types(frames.FromDaemon, frames.FromServer)


def shown(value: object) -> Any:
    """As JSON, without what is null or empty, and the same at each run."""
    match value:
        case msgspec.Struct():
            return {
                each.name: IN_A_MINUTE if each.name == "claim_expires_at" else shown(found)
                for each in msgspec.structs.fields(value)
                if (found := getattr(value, each.name)) not in EMPTY or each.required
            }
        case msgspec.Raw():
            return msgspec.json.decode(value)
        case datetime():
            return NOW
        case list():
            return [shown(each) for each in value]
        case dict():
            return {str(key): shown(each) for key, each in value.items()}
        case _:
            return msgspec.to_builtins(value)


def pretty(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value)).decode()


class Scribe:
    """A daemon that writes down what it says and hears."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.written: dict[str, str] = {}
        self._ids: dict[str, str] = {}

    async def ask(
        self,
        call: str,
        request: Struct | None = None,
        subject: UUID | None = None,
        *,
        refused: int | None = None,
        title: str | None = None,
    ) -> Any:
        shape = CALLS[call]
        path = shape.path.replace("<subject>", str(subject))
        client = self.node.stranger if refused == 401 else self.node.machine
        headers = {"X-Client-Capabilities": CAPABILITIES}
        content = msgspec.json.encode(shown(request or wire.Nothing()))
        content = content if shape.method == "POST" else b""
        answer = await client.request(shape.method, path, content=content, headers=headers)
        assert answer.status_code == (refused or shape.status), answer.text
        kind = Any if refused else shape.answer
        heard = msgspec.json.decode(answer.content, type=kind) if answer.content else None
        said = [f"{shape.method} {path} HTTP/1.1"]
        said += [] if refused == 401 else ["Authorization: Bearer usd_…"]
        said += [f"X-Client-Capabilities: {CAPABILITIES}"]
        said += ["", pretty(msgspec.json.decode(content))] if content else []
        self.write(title or call, "http", *said)
        status = f"HTTP/1.1 {answer.status_code} {HTTPStatus(answer.status_code).phrase}"
        body = ["", pretty(shown(heard))] if answer.content else []
        self.write(title or call, "http", status, *body)
        return heard

    def frame(self, frame: frames.FromDaemon | frames.FromServer) -> None:
        tag = type(frame).__struct_config__.tag
        self.write(str(tag), "json", pretty({"type": tag} | shown(frame)))

    def write(self, title: str, language: str, *lines: str) -> None:
        text = SECRET.sub(r"\1…", "\n".join(lines))
        text = UUIDS.sub(lambda found: self._short(found[0]), text)
        self.written[title] = self.written.get(title, "") + f"```{language}\n{text}\n```\n"

    def _short(self, identity: str) -> str:
        digits = f"{len(self._ids) + 1:x}" * 32
        made = f"{digits[:8]}-{digits[:4]}-{digits[:4]}-{digits[:4]}-{digits[:12]}"
        return self._ids.setdefault(identity, made)


async def issue(node: Node, title: str) -> UUID:
    made = await node.person.post("/api/issues", json={"title": title, "agent": "Nia"})
    return UUID(made.json()["issue"]["id"])


async def converse(node: Node) -> dict[str, str]:
    scribe = Scribe(node)
    runtime_id = await of_the_machine(scribe)
    await of_a_run(scribe, runtime_id)
    first, second = await of_claims(scribe, runtime_id)
    await of_a_cancelled_run(scribe, first)
    of_frames(scribe, second)
    await of_an_orphan(scribe, runtime_id)
    await scribe.ask("deregister", wire.Deregister(runtime_ids=[str(runtime_id)]))
    return scribe.written


async def of_the_machine(scribe: Scribe) -> UUID:
    node = scribe.node
    lost = wire.HeldTask(task_id=PING, claim_token=node.user.id)
    request = wire.Register(
        workspace_id=str(node.workspace.id),
        daemon_id="laptop-1",
        device_name="laptop",
        cli_version="0.1.0",
        runtimes=[wire.RuntimeOffer(type="claude", version="2.0.14")],
        incarnation="b1946ac9",
        inventory=wire.Inventory(running=[lost]),
    )
    await scribe.ask("register", request, refused=401, title="401")
    await scribe.ask("register", wire.Register(daemon_id="laptop-1"), refused=400, title="400")
    registered: wire.Registered = await scribe.ask("register", request)
    runtime_id = registered.runtimes[0].id
    await scribe.ask("heartbeat", wire.Heartbeat(runtime_id=str(runtime_id)))
    await scribe.ask("heartbeats", wire.Heartbeats(runtime_ids=[runtime_id]))
    await scribe.ask("pong", wire.Pong(ping_id=PING), runtime_id)
    return runtime_id


async def of_a_run(scribe: Scribe, runtime_id: UUID) -> None:
    node = scribe.node
    agent = {"name": "Nia", "provider": "claude", "runtime_id": str(runtime_id)}
    await node.person.post("/api/agents", json=agent)
    issue_id = await issue(node, "Fix the login page")
    await scribe.ask("pending", None, runtime_id)
    claimed: wire.Claimed = await scribe.ask("claim", None, runtime_id)
    assert claimed.task is not None
    task_id, token = claimed.task.id, claimed.task.claim_token
    await scribe.ask("lease", wire.Held(claim_token=token), task_id)
    stale = wire.Held(claim_token=node.user.id)
    await scribe.ask("start", stale, task_id, refused=409, title="start 409")
    await scribe.ask("start", wire.Held(claim_token=token), task_id)
    progress = wire.Progress(claim_token=token, summary="Reading the tests", step=1, total=3)
    await scribe.ask("progress", progress, task_id)
    said = Message(seq=0, type="text", content="I look at the form first.")
    ran = Message(seq=1, type="tool_use", tool="Bash", input={"command": "pytest -q"})
    await scribe.ask("messages", wire.Messages(claim_token=token, messages=[said, ran]), task_id)
    session = wire.Session(claim_token=token, session_id="5f8c", work_dir="/srv/runs/7a1b")
    await scribe.ask("session", session, task_id)
    spent = Usage(provider="anthropic", model="sonnet", input_tokens=1200, output_tokens=350)
    await scribe.ask("usage", wire.UsageReport(claim_token=token, usage=[spent]), task_id)
    ended = wire.Complete(
        claim_token=token,
        output="The form checks the address now.",
        branch_name="understudy/nia/UND-1",
        session_id="5f8c",
        work_dir="/srv/runs/7a1b",
    )
    await scribe.ask("complete", ended, task_id)
    await scribe.ask("gc_check", None, issue_id)
    await scribe.ask("repos", None, node.workspace.id)


async def of_claims(scribe: Scribe, runtime_id: UUID) -> tuple[wire.ClaimedTask, wire.ClaimedTask]:
    await issue(scribe.node, "Write the changelog")
    await issue(scribe.node, "Count the words")
    request = wire.ClaimMany(runtime_ids=[runtime_id], slots=2)
    claimed: wire.ClaimedMany = await scribe.ask("claims", request)
    first, second = claimed.tasks
    ended = wire.Fail(
        claim_token=second.claim_token,
        error="429: the limit of requests is reached",
        failure_reason="provider_overloaded",
        retry_after_s=30.0,
    )
    await scribe.ask("fail", ended, second.id)
    return first, second


async def of_a_cancelled_run(scribe: Scribe, task: wire.ClaimedTask) -> None:
    node, held = scribe.node, wire.Held(claim_token=task.claim_token)
    started = await node.machine.post(
        f"/api/daemon/tasks/{task.id}/start", content=msgspec.json.encode(held)
    )
    assert started.is_success
    await tasks.cancel(node.database, node.workspace.id, task.id, by=node.user.id)
    await scribe.ask("status", None, task.id)
    await scribe.ask("stopped", held, task.id)


async def of_an_orphan(scribe: Scribe, runtime_id: UUID) -> None:
    await issue(scribe.node, "Sort the imports")
    path = f"/api/daemon/runtimes/{runtime_id}/tasks/claim"
    assert (await scribe.node.machine.post(path)).json()["task"]
    await scribe.ask("recover", None, runtime_id)


def of_frames(scribe: Scribe, task: wire.ClaimedTask) -> None:
    assert task.runtime_id is not None
    held = wire.HeldTask(task_id=task.id, claim_token=task.claim_token)
    start = msgspec.Raw(msgspec.json.encode(wire.Held(claim_token=task.claim_token)))
    ended = msgspec.Raw(msgspec.json.encode(wire.TaskStatus(status="running")))
    gone: Refusal = not_found("task").refusal
    for frame in (
        frames.Calls(
            payload=[
                frames.Call(id=1, call="start", subject=task.id, body=start),
                frames.Call(id=2, call="status", subject=task.id),
            ]
        ),
        frames.CreditGranted(payload=frames.Credit(total=6, runtime_ids=[task.runtime_id])),
        frames.Beating(payload=frames.Beat(runtime_id=str(task.runtime_id))),
        frames.BeatHeard(payload=frames.Beaten(runtime_id=str(task.runtime_id))),
        frames.TaskAvailable(payload=frames.Available(runtime_id=task.runtime_id)),
        frames.Answers(
            payload=[frames.Answer(id=2, body=ended), frames.Answer(id=1, refusal=gone)]
        ),
        frames.TasksPushed(payload=[task]),
        frames.Cancel(payload=[held]),
        frames.RuntimesGone(payload=[task.runtime_id]),
        frames.Pinged(payload=wire.Ping(id=PING, runtime_id=task.runtime_id)),
        frames.Bye(),
    ):
        scribe.frame(frame)


def examples(kind: str) -> Iterator[tuple[str, list[Any]]]:
    for found in MARKED.finditer(DOCUMENT.read_text()):
        if found[1] == kind:
            yield found[2], [msgspec.json.decode(body) for body in BODY.findall(found[3])]


async def test_the_document_shows_what_is_said(node: Node, request: pytest.FixtureRequest) -> None:
    written = await converse(node)
    old = DOCUMENT.read_text()
    new = MARKED.sub(
        lambda found: f"<!-- {found[1]} {found[2]} -->\n{written[found[2]]}<!-- end -->\n", old
    )
    if request.config.getoption("--write-docs"):
        DOCUMENT.write_text(new)
    assert new == old or request.config.getoption("--write-docs"), "`make docs` writes it again"


def test_every_call_has_its_exchange_and_every_frame_its_example() -> None:
    missing = set(CALLS) - {name for name, _ in examples("exchange")}
    assert not missing, f"a step of `converse` and a place in docs/protocol.md: {missing}"
    missing = set(FRAMES) - {name for name, _ in examples("frame")}
    assert not missing, f"a line in `of_frames` and a place in docs/protocol.md: {missing}"


@pytest.mark.parametrize("name", CALLS)
def test_an_exchange_is_of_the_types_that_decode(name: str) -> None:
    shape, bodies = CALLS[name], dict(examples("exchange"))[name]
    kinds = [shape.request] if shape.method == "POST" else []
    kinds += [shape.answer] if shape.status == 200 else []
    for body, kind in zip(bodies, kinds, strict=True):
        assert is_within(body, msgspec.to_builtins(msgspec.convert(body, kind, strict=False)))


@pytest.mark.parametrize("tag", FRAMES)
def test_a_frame_is_of_the_type_that_decodes(tag: str) -> None:
    (body,) = dict(examples("frame"))[tag]
    is_ours = tag in frame_types(frames.FromDaemon)
    decode = frames.decode_from_daemon if is_ours else frames.decode_from_server
    frame = decode(msgspec.json.encode(body))
    assert is_within(body, msgspec.json.decode(frames.encode(frame)))


def is_within(part: Any, whole: Any) -> bool:
    """Nothing was ignored."""
    match part, whole:
        case dict(), dict():
            return all(name in whole and is_within(part[name], whole[name]) for name in part)
        case list(), list():
            return len(part) == len(whole) and all(map(is_within, part, whole))
        case _:
            return bool(part == whole)
