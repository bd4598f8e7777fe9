"""A model's provider on loopback: real agent CLIs talk to it, a script says what it answers.

    nursery.start_soon(serve_model, script, listener)
    env["ANTHROPIC_BASE_URL"] = address(listener)

Two protocols, Anthropic's Messages and OpenAI's Responses, as a stream and as one object. Another
one is another three functions to bytes, and a line in `PROTOCOLS`.
"""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import h11
import trio

LISTEN_BACKLOG: Final = 16
RECEIVE_MAX: Final = 1 << 16


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Thinking:
    text: str


@dataclass(frozen=True)
class ToolCall:
    name: str
    input: dict[str, Any]
    id: str = "toolu_1"


Block: TypeAlias = Text | Thinking | ToolCall


@dataclass(frozen=True)
class Reply:
    """`held`: the answer begins when this event is set."""

    blocks: tuple[Block, ...]
    input_tokens: int = 10
    output_tokens: int = 5
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    held: trio.Event | None = None


@dataclass(frozen=True)
class Refusal:
    """An error in the provider's own words: `kind` is its slug."""

    status: int
    kind: str
    message: str
    headers: tuple[tuple[str, str], ...] = ()


Step: TypeAlias = Reply | Refusal
OK: Final = Reply((Text("ok"),))


@dataclass
class Script:
    """Steps for the requests that offer tools, in order, the last one repeated. CLIs send others
    beside them (titles, probes, counts), which get an `ok` and use up nothing."""

    steps: Sequence[Step]
    requests: list[dict[str, Any]] = field(default_factory=list)  # Those that used up a step.
    _asked: trio.Event = field(default_factory=trio.Event)

    def answer(self, request: dict[str, Any]) -> Step:
        if not request.get("tools") or request.get("max_tokens") == 1:
            return OK
        self.requests.append(request)
        self._asked.set()
        self._asked = trio.Event()
        return self.steps[min(len(self.requests), len(self.steps)) - 1]

    async def wait_asked(self, times: int) -> None:
        while len(self.requests) < times:
            await self._asked.wait()


def address(listener: socket.socket) -> str:
    host, port = listener.getsockname()
    return f"http://{host}:{port}"


def open_listener() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0), backlog=LISTEN_BACKLOG)
    listener.setblocking(False)  # noqa: FBT003  The standard library's signature.
    return listener


async def serve_model(script: Script, listener: socket.socket) -> None:
    """Serve until cancelled."""

    async def serve(stream: trio.SocketStream) -> None:
        await _serve_connection(script, stream)

    await trio.serve_listeners(
        serve, [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
    )


async def _serve_connection(script: Script, stream: trio.SocketStream) -> None:
    connection = h11.Connection(h11.SERVER)
    try:
        while request := await _next_request(connection, stream):
            await _answer(script, connection, stream, request)
            if connection.our_state is not h11.DONE:
                break
            connection.start_next_cycle()
    except (trio.BrokenResourceError, h11.RemoteProtocolError):
        pass  # The CLI was stopped, which is what some tests are about.
    finally:
        await trio.aclose_forcefully(stream)


@dataclass(frozen=True)
class _Request:
    path: str
    body: bytes


async def _next_request(connection: h11.Connection, stream: trio.SocketStream) -> _Request | None:
    path, body = "", b""
    while True:
        match connection.next_event():
            case h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(RECEIVE_MAX))
            case h11.Request(target=target):
                path = target.decode().partition("?")[0]
            case h11.Data(data=data):
                body += data
            case h11.EndOfMessage():
                return _Request(path, body)
            case _:
                return None


async def _answer(
    script: Script, connection: h11.Connection, stream: trio.SocketStream, request: _Request
) -> None:
    async def send(*events: h11.Event) -> None:
        for event in events:
            if data := connection.send(event):
                await stream.send_all(data)

    protocol = next((known for end, known in PROTOCOLS if request.path.endswith(end)), None)
    if protocol is None:
        await send(*_response(404, b"", ()))  # No body: it may be a HEAD.
        return
    asked = json.loads(request.body)
    match script.answer(asked):
        case Refusal() as refusal:
            await send(*_response(refusal.status, protocol.refusal(refusal), refusal.headers))
        case Reply() as reply:
            if reply.held is not None:
                await reply.held.wait()
            model = str(asked.get("model"))
            if not asked.get("stream"):
                await send(*_response(200, protocol.whole(reply, model), ()))
                return
            await send(_head(200, "text/event-stream", ()))
            for chunk in protocol.stream(reply, model):
                await send(h11.Data(data=chunk))
            await send(h11.EndOfMessage())


def _response(status: int, body: bytes, headers: tuple[tuple[str, str], ...]) -> list[h11.Event]:
    return [_head(status, "application/json", headers), h11.Data(data=body), h11.EndOfMessage()]


def _head(status: int, kind: str, headers: tuple[tuple[str, str], ...]) -> h11.Response:
    return h11.Response(status_code=status, headers=[("content-type", kind), *headers])


@dataclass(frozen=True)
class _Protocol:
    whole: Callable[[Reply, str], bytes]
    stream: Callable[[Reply, str], Iterator[bytes]]
    refusal: Callable[[Refusal], bytes]


def _anthropic_whole(reply: Reply, model: str) -> bytes:
    content = [_anthropic_block(block) for block in reply.blocks]
    message = _anthropic_message(reply, model) | {"content": content}
    message["usage"]["output_tokens"] = reply.output_tokens
    return json.dumps(message | {"stop_reason": _anthropic_stop(reply)}).encode()


def _anthropic_stream(reply: Reply, model: str) -> Iterator[bytes]:
    yield _event("message_start", message=_anthropic_message(reply, model))
    for index, block in enumerate(reply.blocks):
        yield _event("content_block_start", index=index, content_block=_anthropic_empty(block))
        for delta in _anthropic_deltas(block):
            yield _event("content_block_delta", index=index, delta=delta)
        yield _event("content_block_stop", index=index)
    yield _event(
        "message_delta",
        delta={"stop_reason": _anthropic_stop(reply), "stop_sequence": None},
        usage={"output_tokens": reply.output_tokens},
    )
    yield _event("message_stop")


def _anthropic_refusal(refusal: Refusal) -> bytes:
    error = {"type": refusal.kind, "message": refusal.message}
    return json.dumps({"type": "error", "error": error}).encode()


def _anthropic_message(reply: Reply, model: str) -> dict[str, Any]:
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": reply.input_tokens,
            "output_tokens": 1,
            "cache_read_input_tokens": reply.cache_read_tokens,
            "cache_creation_input_tokens": reply.cache_write_tokens,
        },
    }


def _anthropic_stop(reply: Reply) -> str:
    calls = any(isinstance(block, ToolCall) for block in reply.blocks)
    return "tool_use" if calls else "end_turn"


def _anthropic_block(block: Block) -> dict[str, Any]:
    match block:
        case Text(text):
            return {"type": "text", "text": text}
        case Thinking(text):
            return {"type": "thinking", "thinking": text, "signature": "c2lnbmVk"}
        case ToolCall(name, tool_input, id_):
            return {"type": "tool_use", "id": id_, "name": name, "input": tool_input}


def _anthropic_empty(block: Block) -> dict[str, Any]:
    match block:
        case Text():
            return {"type": "text", "text": ""}
        case Thinking():
            return {"type": "thinking", "thinking": "", "signature": ""}
        case ToolCall(name, _, id_):
            return {"type": "tool_use", "id": id_, "name": name, "input": {}}


def _anthropic_deltas(block: Block) -> list[dict[str, Any]]:
    match block:
        case Text(text):
            return [{"type": "text_delta", "text": text}]
        case Thinking(text):
            signature = {"type": "signature_delta", "signature": "c2lnbmVk"}
            return [{"type": "thinking_delta", "thinking": text}, signature]
        case ToolCall(_, tool_input):
            return [{"type": "input_json_delta", "partial_json": json.dumps(tool_input)}]


def _event(kind: str, **fields: Any) -> bytes:  # noqa: ANN401  They are JSON.
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def _openai_whole(reply: Reply, model: str) -> bytes:
    return json.dumps(_openai_response(reply, model)).encode()


def _openai_stream(reply: Reply, model: str) -> Iterator[bytes]:
    whole = _openai_response(reply, model)
    begun = whole | {"status": "in_progress", "output": [], "usage": None}
    yield _event("response.created", response=begun)
    for index, item in enumerate(whole["output"]):
        begun = item | {"status": "in_progress", **_openai_empty(item)}
        yield _event("response.output_item.added", output_index=index, item=begun)
        for part in item.get("content", ()):
            place = {"output_index": index, "content_index": 0, "item_id": item["id"]}
            empty = part | {"text": ""}
            yield _event("response.content_part.added", part=empty, **place)
            yield _event("response.output_text.delta", delta=part["text"], **place)
        yield _event("response.output_item.done", output_index=index, item=item)
    yield _event("response.completed", response=whole)


def _openai_refusal(refusal: Refusal) -> bytes:
    error = {"type": refusal.kind, "code": refusal.kind, "message": refusal.message}
    return json.dumps({"error": error}).encode()


def _openai_response(reply: Reply, model: str) -> dict[str, Any]:
    """Its `input_tokens` include those from the cache."""
    read = reply.input_tokens + reply.cache_read_tokens + reply.cache_write_tokens
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "model": model,
        "status": "completed",
        "output": [_openai_item(block) for block in reply.blocks],
        "usage": {
            "input_tokens": read,
            "input_tokens_details": {
                "cached_tokens": reply.cache_read_tokens,
                "cache_write_tokens": reply.cache_write_tokens,
            },
            "output_tokens": reply.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": read + reply.output_tokens,
        },
    }


def _openai_item(block: Block) -> dict[str, Any]:
    id_ = uuid.uuid4().hex
    match block:
        case Text(text):
            part = {"type": "output_text", "text": text, "annotations": []}
            return {"type": "message", "id": f"msg_{id_}", "role": "assistant", "content": [part]}
        case Thinking(text):
            summary = [{"type": "summary_text", "text": text}]
            return {"type": "reasoning", "id": f"rs_{id_}", "summary": summary}
        case ToolCall(name, tool_input, call_id):
            call = {"name": name, "call_id": call_id, "arguments": json.dumps(tool_input)}
            return {"type": "function_call", "id": f"fc_{id_}", **call}


def _openai_empty(item: dict[str, Any]) -> dict[str, Any]:
    empty = {"content": [], "summary": [], "arguments": ""}
    return {name: value for name, value in empty.items() if name in item}


# A path's end, with whatever base before it.
PROTOCOLS: Final = (
    ("/v1/messages", _Protocol(_anthropic_whole, _anthropic_stream, _anthropic_refusal)),
    ("/v1/responses", _Protocol(_openai_whole, _openai_stream, _openai_refusal)),
)
