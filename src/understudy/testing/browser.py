"""A headless Chromium to look at pages with, over DevTools: click, write, wait."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeAlias, final

import msgspec
import trio
import trio_websocket

JSON: TypeAlias = Any  # What comes back is the script's business.

NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-proxy-server",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
LISTENING: Final = re.compile(rb"DevTools listening on (ws://\S+)")
MESSAGE_MAX_BYTES: Final = 64 * 1024 * 1024
STOP_S: Final = 10
WAIT_S: Final = 30
LOST_PAGE: Final = ("context was destroyed", "navigated or closed", "Cannot find context")
"""What a question is told whose page went away under it."""


class ScriptFailed(Exception):
    """A script threw, or the browser refused a command."""


def find_chromium() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def running_chromium(executable: str) -> Iterator[str]:
    """The address of its DevTools. Its profile and all its processes are gone afterwards."""
    with TemporaryDirectory(prefix="understudy-chromium-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [executable, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "HOME": profile},
        )
        try:
            yield _devtools(process)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOP_S)
            assert process.stderr is not None
            process.stderr.close()


def _devtools(process: subprocess.Popen[bytes]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if found := LISTENING.search(line):
            return found[1].decode()
    raise ScriptFailed(f"{process.args!r} ended with status {process.wait()} before it listened")


@asynccontextmanager
async def open_page(devtools: str) -> AsyncIterator[Page]:
    """A tab of its own, with no cookie of any other."""
    async with (
        trio_websocket.open_websocket_url(devtools, max_message_size=MESSAGE_MAX_BYTES) as socket,
        trio.open_nursery() as nursery,
    ):
        wire = _Wire(socket)
        nursery.start_soon(wire.read)
        context = await wire.ask("Target.createBrowserContext")
        target = await wire.ask("Target.createTarget", url="about:blank", **context)
        attached = await wire.ask("Target.attachToTarget", flatten=True, **target)
        page = Page(wire, attached["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            await page.ask(f"{domain}.enable")
        yield page
        await wire.ask("Target.disposeBrowserContext", **context)
        nursery.cancel_scope.cancel()


@final
@dataclass(eq=False)
class _Wire:
    socket: trio_websocket.WebSocketConnection
    troubles: list[str] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _asked: dict[int, trio.MemorySendChannel[dict[str, Any]]] = field(default_factory=dict)

    async def ask(self, method: str, session: str | None = None, **params: object) -> JSON:
        number = next(self._numbers)
        send, receive = trio.open_memory_channel[dict[str, Any]](1)
        self._asked[number] = send
        question = {"id": number, "method": method, "params": params}
        if session is not None:
            question["sessionId"] = session
        await self.socket.send_message(msgspec.json.encode(question).decode())
        answer = await receive.receive()
        if "error" in answer:
            raise ScriptFailed(f"{method}: {answer['error']['message']}")
        return answer["result"]

    async def read(self) -> None:
        while True:
            message = msgspec.json.decode(await self.socket.get_message())
            if "id" in message:
                self._asked.pop(message["id"]).send_nowait(message)
            elif trouble := _trouble(message["method"], message["params"]):
                self.troubles.append(trouble)


def _trouble(method: str, params: dict[str, Any]) -> str | None:
    """What the console shows in red: exceptions, refused scripts and styles, failed loads."""
    match method:
        case "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            return str(details.get("exception", {}).get("description") or details["text"])
        case "Log.entryAdded" if params["entry"]["level"] == "error":
            return f"{params['entry']['text']} {params['entry'].get('url', '')}"
        case "Runtime.consoleAPICalled" if params["type"] in {"error", "assert"}:
            return str(params["args"])
        case _:
            return None


@final
@dataclass(frozen=True, eq=False)
class Page:
    wire: _Wire
    session: str

    @property
    def troubles(self) -> list[str]:
        return self.wire.troubles

    async def ask(self, method: str, **params: object) -> JSON:
        return await self.wire.ask(method, self.session, **params)

    async def goto(self, url: str) -> None:
        """Returns when the page and its modules are loaded."""
        await self.ask("Page.navigate", url=url)
        await self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def script(self, expression: str) -> JSON:
        """The value of the expression, awaited. Raises `ScriptFailed`."""
        answer = await self.ask(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise ScriptFailed(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    async def wait(self, condition: str) -> JSON:
        """Until the expression is true in the page, over any number of navigations."""
        watch = (
            "new Promise(resolve => { const look = () => { const found = (() =>"
            f" {{ try {{ return {condition} }} catch {{ return false }} }})();"
            " if (found) resolve(found); else setTimeout(look, 20); }; look(); })"
        )
        with trio.move_on_after(WAIT_S):
            while True:
                try:
                    return await self.script(watch)
                except ScriptFailed as failure:
                    if not any(words in str(failure) for words in LOST_PAGE):
                        raise
        shown = await self.script("location.href + '\\n' + document.body.innerText")
        raise ScriptFailed(f"not within {WAIT_S} s: {condition}\nThe page shows {shown}")

    async def text(self, selector: str) -> str:
        """Waits for the element."""
        found: str = await self.wait(f"document.querySelector({_js(selector)}).innerText + ' '")
        return found.strip()

    async def click(self, selector: str) -> None:
        """Where the element is, as a user would; waits until it is there."""
        x, y = await self.wait(
            f"(() => {{ const element = document.querySelector({_js(selector)});"
            " element.scrollIntoView({block: 'nearest', inline: 'nearest', behavior: 'instant'});"
            " const box = element.getBoundingClientRect();"
            " return box.width && [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.ask(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
            )

    async def write(self, selector: str, text: str) -> None:
        await self.wait(f"(document.querySelector({_js(selector)}).focus(), true)")
        await self.ask("Input.insertText", text=text)

    async def choose(self, selector: str, label: str) -> None:
        """An option of a select, by its text."""
        await self.wait(
            f"(() => {{ const select = document.querySelector({_js(selector)});"
            f" const option = [...select.options].find(each => each.text === {_js(label)});"
            " select.value = option.value;"
            " select.dispatchEvent(new Event('change', {bubbles: true})); return true; })()"
        )

    async def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            await self.ask("Input.dispatchKeyEvent", type=kind, key=key, text=key)

    async def look_like(
        self, *, scheme: str = "light", width: int = 1280, height: int = 800
    ) -> None:
        """A colour scheme and a size; what is narrow is a phone."""
        await self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,  # noqa: PLR2004
        )
        wanted = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.ask("Emulation.setEmulatedMedia", features=wanted)


def _js(text: str) -> str:
    return msgspec.json.encode(text).decode()
