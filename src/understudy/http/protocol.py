"""What a peer may say: Hypercorn's HTTP/1.1 and websocket protocols with their gaps closed."""

from __future__ import annotations

import re
from collections import deque
from typing import TypeVar, cast, final

import h11
import trio
from hypercorn.events import Closed, RawData
from hypercorn.protocol.events import Body, Data, Request, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import Response as HttpResponse
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol, H11WSConnection
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.protocol.ws_stream import ASGIWebsocketState, FrameTooLargeError, WSStream
from hypercorn.typing import ASGISendEvent, H11SendableEvent
from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.frame_protocol import CloseReason

S = TypeVar("S", bound=HTTPStream | WSStream)
Headers = list[tuple[bytes, bytes]]


@final
class Http1(H11Protocol):
    """HTTP/1.1 and nothing else. HTTP/2, which Hypercorn would speak, is a proxy's business."""

    _held = b""
    _websocket: BoundedWebsocket | None = None

    @property
    def is_peer_sending(self) -> bool:
        if self._websocket is not None:
            return not self._websocket.is_over
        return self.connection.their_state is not h11.DONE

    def hear_out(self, data: bytes) -> None:
        """Take what comes in after our last word. Only a websocket's close is of interest."""
        if self._websocket is not None:
            self._websocket.hear_out(data)

    async def _check_protocol(self, event: h11.Request) -> None:
        """Offer no upgrade to HTTP/2; `_create_stream` refuses it as a version."""

    async def _create_stream(self, request: h11.Request) -> None:
        refusal = _refusal(request)
        if refusal is not None:
            await self._send_error_response(refusal)
            await self.send(Closed())
            return
        headers = list(request.headers)
        if _asks_for_websocket(request):
            self.stream = self._websocket = self._open_stream(BoundedWebsocket)
            self.connection = H11WSConnection(cast("h11.Connection", self.connection))
            headers = _without_extensions(headers)
        else:
            self.stream = self._open_stream(BoundedRequest)
        self.keep_alive_requests += 1
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=headers,
                http_version=request.http_version.decode(),
                method=request.method.decode().upper(),
                raw_path=_path(request.target),
                state=self.connection_state,
            )
        )

    async def stream_send(self, event: StreamEvent) -> None:
        """Announce the close that Hypercorn makes behind an answer to a request not heard out.

        Unannounced it would meet the client's next request, which then may or may not have been
        carried out.
        """
        if isinstance(event, HttpResponse) and self.connection.their_state is h11.SEND_BODY:
            event.headers.append((b"connection", b"close"))
        await super().stream_send(event)

    def _open_stream(self, stream: type[S]) -> S:
        return stream(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        """Hold a response's head back until its body begins: one packet instead of two or three."""
        try:
            data = self._held + self.connection.send(event)
        except h11.LocalProtocolError:
            if self.connection.their_state is not h11.ERROR:
                raise
            return
        self._held = data if isinstance(event, h11.Response) else b""
        if data and not self._held:
            await self.send(RawData(data))


def _refusal(request: h11.Request) -> int | None:
    """A status for what h11 lets through and Hypercorn, wsproto or Quart would crash on."""
    if request.http_version not in {b"1.0", b"1.1"}:
        return 505
    if not _path(request.target).startswith(b"/"):
        return 400
    tokens = {b"connection", b"sec-websocket-protocol"}
    if not all(value.isascii() for name, value in request.headers if name in tokens):
        return 400
    return None


def _path(target: bytes) -> bytes:
    """Strip what only proxies need: `http://host/path` is `/path`."""
    return re.sub(rb"^https?://[^/?]*(?=/)", b"", target, flags=re.IGNORECASE)


def _asks_for_websocket(request: h11.Request) -> bool:
    fields = dict(request.headers)
    tokens = fields.get(b"connection", b"").lower().split(b",")
    return (
        request.method == b"GET"
        and fields.get(b"upgrade", b"").strip().lower() == b"websocket"
        and b"upgrade" in (token.strip() for token in tokens)
    )


def _without_extensions(headers: Headers) -> Headers:
    """Decline compression: 64 KiB on the wire could be 64 MiB before any limit is looked at."""
    return [(name, value) for name, value in headers if name != b"sec-websocket-extensions"]


@final
class BoundedRequest(HTTPStream):
    """A request whose body is measured as it comes: Quart 0.23 measures it once it is complete."""

    _body_bytes = 0
    _is_refused = False

    async def handle(self, event: StreamEvent) -> None:
        if isinstance(event, Body):
            self._body_bytes += len(event.data)
            if self._body_bytes > self.config.wsgi_max_body_size:
                await self._refuse_body()
                return
        await super().handle(event)

    async def _refuse_body(self) -> None:
        self._is_refused = True
        if self.state is ASGIHTTPState.REQUEST:
            await self._send_error_response(413)
        await self.send(StreamClosed(stream_id=self.stream_id))

    async def app_send(self, message: ASGISendEvent | None) -> None:
        if self.closed or self._is_refused:
            await trio.lowlevel.checkpoint()
        else:
            await super().app_send(message)


@final
class BoundedWebsocket(WSStream):
    _is_refused = False

    @property
    def is_over(self) -> bool:
        """Whether both sides have said close."""
        return self.handshake.accepted and self.connection.state is ConnectionState.CLOSED

    def hear_out(self, data: bytes) -> None:
        if self.handshake.accepted and not self.is_over:
            self.connection.receive_data(data)
            deque(self.connection.events(), maxlen=0)

    async def handle(self, event: StreamEvent) -> None:
        is_data = isinstance(event, Body | Data)
        if is_data and not self.closed and not self.handshake.accepted:
            await self._refuse_early_bytes()
            return
        await super().handle(event)
        if isinstance(event, Request) and self.closed:  # No handshake; it was answered with 400.
            await self.send(StreamClosed(stream_id=self.stream_id))

    async def _refuse_early_bytes(self) -> None:
        """Hang up. Hypercorn answers and stays, and the handler's next word ends the process."""
        self._is_refused = True
        if self.state is ASGIWebsocketState.HANDSHAKE:
            await self._send_error_response(400)
        await self.send(StreamClosed(stream_id=self.stream_id))

    async def app_send(self, message: ASGISendEvent | None) -> None:
        if (
            self.closed or self._is_refused
        ):  # Without a checkpoint a handler that only sends would stop the world.
            await trio.lowlevel.checkpoint()
        else:
            await super().app_send(message)

    async def _handle_events(self) -> None:
        for event in self.connection.events():
            if isinstance(event, TextMessage | BytesMessage):
                await self._take(event)
            elif isinstance(event, Ping):
                await self._send_wsproto_event(event.response())
            elif isinstance(event, CloseConnection):  # Theirs, or wsproto's verdict on a bad frame.
                await self._end(event.response())

    async def _take(self, message: TextMessage | BytesMessage) -> None:
        try:
            self.buffer.extend(message)
        except FrameTooLargeError:
            # Closing is not enough: Hypercorn would go on collecting the rest of the message.
            await self._end(CloseConnection(code=CloseReason.MESSAGE_TOO_BIG))
            return
        if message.message_finished:
            assert self.app_put is not None
            await self.app_put(self.buffer.to_message())
            self.buffer.clear()

    async def _end(self, close: CloseConnection) -> None:
        await self._send_wsproto_event(close)
        await self.send(StreamClosed(stream_id=self.stream_id))
