"""Speak with the server: one call, one answer, or a clear end with an exit code (R11.5)."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn, TypeVar, final
from urllib.parse import urlsplit

import click

from understudy.cli import credentials

CALL_S: Final = 30.0
STREAM_SILENCE_S: Final = 60.0
"""The server pings a stream every 15 s."""
RECONNECT_S: Final = 60.0
RECONNECT_PAUSE_S: Final = 1.0

FAILED, USAGE, NOT_FOUND, CONFLICT, FORBIDDEN, AWAY = 1, 2, 3, 4, 5, 6
"""Exit codes, by the class of failure. `tasks.ENDS` has those of a run that was watched."""
BY_STATUS: Final = {400: USAGE, 401: FORBIDDEN, 403: FORBIDDEN, 404: NOT_FOUND, 409: CONFLICT}

H = TypeVar("H")

AGENT_KEY: Final = "usa_"
AGENT_MAY: Final = (
    ". An agent's key opens the board while its run lasts: it reads issues, agents and tasks, makes"
    " issues, comments, moves and assigns"
)


def give_up(sentence: str, code: int) -> NoReturn:
    click.echo(f"understudy: {sentence}", err=True)
    sys.exit(code)


@final
class Client:
    """With the person's key of this machine."""

    def __init__(self, server: str, key: str | None) -> None:
        import httpx2

        self.server = server.rstrip("/")
        self._is_agent = key is not None and key.startswith(AGENT_KEY)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        try:
            self._http = open_http(httpx2.Client, self.server, headers=headers, timeout=CALL_S)
        except UnspokenProxy as unspoken:
            give_up(str(unspoken), AWAY)
        click.get_current_context().call_on_close(self._http.close)

    def get(self, path: str, **query: object) -> Any:
        return self._call("GET", path, params=query)

    def post(self, path: str, body: object = None) -> Any:
        return self._call("POST", path, json={} if body is None else body)

    def patch(self, path: str, body: object) -> Any:
        return self._call("PATCH", path, json=body)

    def delete(self, path: str) -> Any:
        return self._call("DELETE", path)

    def _call(self, method: str, path: str, **how: Any) -> Any:
        import httpx2

        try:
            answer = self._http.request(method, path, **how)
        except httpx2.TimeoutException:
            give_up(f"{self.server} did not answer within {CALL_S:.0f} s", AWAY)
        except httpx2.TransportError as error:
            self._give_up_away(error)
        if not answer.is_success:
            self._refuse(answer.status_code, answer.text)
        return answer.json() if answer.content else None

    def events(self, path: str) -> Iterator[tuple[str, Any]]:
        """Server-sent events until the stream ends.

        When it breaks it is opened again, behind the last event seen, for `RECONNECT_S`.
        """
        import httpx2

        last: str | None = None
        give_up_at = 0.0
        while True:
            try:
                for identity, kind, data in self._stream(path, last):
                    last = identity or last
                    give_up_at = time.monotonic() + RECONNECT_S
                    yield kind, data
                    if kind == "end":
                        return
            except httpx2.TransportError as error:
                if time.monotonic() > give_up_at:
                    self._give_up_away(error)
            time.sleep(RECONNECT_PAUSE_S)

    def _stream(self, path: str, last: str | None) -> Iterator[tuple[str | None, str, Any]]:
        headers = {} if last is None else {"Last-Event-ID": last}
        with self._http.stream("GET", path, headers=headers, timeout=STREAM_SILENCE_S) as answer:
            if not answer.is_success:
                answer.read()
                self._refuse(answer.status_code, answer.text)
            yield from _parsed(answer.iter_lines())

    def _refuse(self, status: int, text: str) -> NoReturn:
        try:
            sentence = json.loads(text)["error"]
        except (ValueError, KeyError, TypeError):
            sentence = f"the server answered {status}"
        code = AWAY if status >= 500 else BY_STATUS.get(status, FAILED)  # noqa: PLR2004
        give_up(sentence + (AGENT_MAY if self._is_agent and code == FORBIDDEN else ""), code)

    def _give_up_away(self, error: Exception) -> NoReturn:
        give_up(f"{self.server} cannot be reached ({error}): is `understudy up` running?", AWAY)


def _parsed(lines: Iterator[str]) -> Iterator[tuple[str | None, str, Any]]:
    """Id, kind and data of each event; comments and `retry` are left out."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "event" in fields:
            yield fields.get("id"), fields["event"], json.loads(fields["data"])
            fields = {}
        else:
            fields = {}


def split_link(link: str) -> tuple[str, str]:
    """The server and the secret of a link that `login` or `join` printed."""
    parts = urlsplit(link)
    secret = parts.path.rpartition("/")[2]
    if parts.scheme not in {"http", "https"} or not parts.netloc or not secret:
        give_up(f"{link} is no link: give the whole of it, with http:// in front", USAGE)
    return f"{parts.scheme}://{parts.netloc}", secret


class UnspokenProxy(Exception):
    """The environment names a proxy that is none of HTTP's."""


def open_http(make: Callable[..., H], server: str, **settings: object) -> H:
    """`make`: of a client of httpx's. Raises `UnspokenProxy`."""
    import httpx2

    try:
        return make(base_url=server, trust_env=not is_loopback(server), **settings)
    except (ImportError, ValueError, httpx2.InvalidURL):
        raise UnspokenProxy(
            "the proxy in the environment is not spoken here: HTTPS_PROXY, HTTP_PROXY and ALL_PROXY"
            " have to name an HTTP proxy (http://host:port; SOCKS is not spoken), or NO_PROXY the"
            " server"
        ) from None


def is_loopback(server: str) -> bool:
    return "://127." in server or "://localhost" in server or "://[::1]" in server


def client() -> Client:
    known = credentials.load()
    if known.server is None or known.key is None:
        give_up(
            "not logged in: run `understudy up` here, or `understudy login <link>` with a link"
            " from the server",
            FORBIDDEN,
        )
    return Client(known.server, known.key)


@contextmanager
def quiet_interrupt() -> Iterator[None]:
    """Ctrl-C ends a watch as it should: without a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
