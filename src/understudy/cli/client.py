"""Speak with the server: one call, one answer, or a clear end with an exit code (R11.5)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn, final

import click

from understudy.cli import credentials

CALL_S: Final = 30.0
STREAM_SILENCE_S: Final = 60.0
"""The server pings a stream every 15 s."""

FAILED, USAGE, NOT_FOUND, CONFLICT, FORBIDDEN, AWAY = 1, 2, 3, 4, 5, 6
"""Exit codes, by the class of failure. `tasks.ENDS` has those of a run that was watched."""
BY_STATUS: Final = {400: USAGE, 401: FORBIDDEN, 403: FORBIDDEN, 404: NOT_FOUND, 409: CONFLICT}


def give_up(sentence: str, code: int) -> NoReturn:
    click.echo(f"understudy: {sentence}", err=True)
    sys.exit(code)


@final
class Client:
    """With the person's key of this machine."""

    def __init__(self, server: str, key: str) -> None:
        import httpx2

        self.server = server.rstrip("/")
        self._http = httpx2.Client(
            base_url=self.server,
            headers={"Authorization": f"Bearer {key}"},
            timeout=CALL_S,
            trust_env=not _is_loopback(self.server),
        )

    def get(self, path: str, **query: object) -> Any:
        return self._call("GET", path, params=query)

    def post(self, path: str, body: object = None) -> Any:
        return self._call("POST", path, json={} if body is None else body)

    def patch(self, path: str, body: object) -> Any:
        return self._call("PATCH", path, json=body)

    def _call(self, method: str, path: str, **how: Any) -> Any:
        import httpx2

        try:
            answer = self._http.request(method, path, **how)
        except httpx2.TimeoutException:
            give_up(f"{self.server} did not answer within {CALL_S:.0f} s", AWAY)
        except httpx2.TransportError as error:
            give_up(f"{self.server} cannot be reached ({error}): is `understudy up` running?", AWAY)
        if not answer.is_success:
            _refuse(answer.status_code, answer.text)
        return answer.json() if answer.content else None

    def events(self, path: str) -> Iterator[tuple[str, Any]]:
        """Server-sent events until the stream ends; reconnects with the last id it has seen."""
        import httpx2

        last: str | None = None
        while True:
            headers = {} if last is None else {"Last-Event-ID": last}
            try:
                with self._http.stream(
                    "GET", path, headers=headers, timeout=STREAM_SILENCE_S
                ) as answer:
                    if not answer.is_success:
                        answer.read()
                        _refuse(answer.status_code, answer.text)
                    for identity, kind, data in _parsed(answer.iter_lines()):
                        last = identity or last
                        yield kind, data
                        if kind == "end":
                            return
            except httpx2.TransportError:
                click.echo("the stream broke; connecting again", err=True)
            _pause()


def _pause() -> None:
    import time

    time.sleep(1)


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


def _refuse(status: int, text: str) -> NoReturn:
    try:
        sentence = json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        sentence = f"the server answered {status}"
    give_up(sentence, AWAY if status >= 500 else BY_STATUS.get(status, FAILED))  # noqa: PLR2004


def _is_loopback(server: str) -> bool:
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
