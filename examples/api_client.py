#!/usr/bin/env python3
"""Give an agent something to do and watch it, over HTTP with the standard library alone.

    UNDERSTUDY_TOKEN=... ./api_client.py nia "Fix the login page"

The token is the "key" in the `credentials.json` of Understudy's home (`~/.understudy`, or root's
`/var/lib/understudy`), or one that `POST /api/tokens` made.

The client makes an issue, assigns it, prints what the agent says and does, and ends with the run:
status 0 if it was completed. The stream may break at any time (a proxy, a laptop's lid, a server's
restart): it connects again with the id of the last event it has seen, and misses none.
"""

import json
import os
import sys
import time
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError

SERVER = os.environ.get("UNDERSTUDY_SERVER", "http://127.0.0.1:7717")
TOKEN = os.environ.get("UNDERSTUDY_TOKEN", "")
SILENCE_S = 60  # The server sends a comment every 15 s while nothing happens.
RECONNECT_S = 1


def main() -> int:
    if len(sys.argv) != 3:
        sys.exit("usage: api_client.py AGENT TITLE")
    agent, title = sys.argv[1:]
    issue = post("/api/issues", {"title": title})["issue"]
    task = post(f"/api/issues/{issue['key']}/assign", {"agent": agent})["task"]
    print(f"{issue['key']} is assigned to {agent}.")
    for kind, data in follow(f"/api/tasks/{task['id']}/stream"):
        if kind == "task:message":
            print(shown(data), flush=True)
        elif kind == "end":
            print(f"{data['status']}: {data['error'] or data['result']['output']}")
            return 0 if data["status"] == "completed" else 1
    return 1


def shown(message: dict[str, Any]) -> str:
    match message["type"]:
        case "tool_use":
            return f"-> {message['tool']} {json.dumps(message['input'])}"
        case "tool_result":
            return f"<- {message['output']}"
        case _:
            return str(message["content"])


def post(path: str, body: dict[str, Any]) -> Any:
    with call(path, json.dumps(body).encode(), {"Content-Type": "application/json"}) as answer:
        return json.load(answer)


def follow(path: str) -> Iterator[tuple[str, Any]]:
    """Kind and data of each event, once, whatever happens to the connection."""
    headers: dict[str, str] = {}
    while True:
        try:
            with call(path, None, headers) as answer:
                for event in events(answer):
                    if "id" in event:
                        headers["Last-Event-ID"] = event["id"]
                    yield event["event"], json.loads(event["data"])
        except (OSError, HTTPException) as error:
            if isinstance(error, HTTPError) and error.code < 500:
                raise  # It will say the same again.
        time.sleep(RECONNECT_S)


def events(answer: HTTPResponse) -> Iterator[dict[str, str]]:
    """Only what a blank line ended: an event that was cut off comes again."""
    event: dict[str, str] = {}
    for line in answer:
        if not line.strip():
            if "data" in event:
                yield event
            event = {}
        else:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            event[name] = value


def call(path: str, body: bytes | None, headers: dict[str, str]) -> Any:
    request = urllib.request.Request(SERVER + path, body, headers)
    request.add_header("Authorization", f"Bearer {TOKEN}")
    return urllib.request.urlopen(request, timeout=SILENCE_S)


if __name__ == "__main__":
    sys.exit(main())
