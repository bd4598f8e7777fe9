"""What a person does and sees, in a real browser, on a whole node. The machine is played."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from understudy.config import Home, ServerConfig
from understudy.core.tree import Branch
from understudy.http.pages import words
from understudy.http.serve import open_listeners
from understudy.server import run_server
from understudy.store import tokens
from understudy.store.database import Database
from understudy.store.embedded import EmbeddedServer
from understudy.store.tokens import Owner
from understudy.testing.board import Board
from understudy.testing.browser import Page, open_page
from understudy.testing.node import Node

PAGES = ("/", "/issues/UND-1", "/agents", "/machines", "/system")
LIVE = "document.querySelector('#connection').dataset.state === 'live'"
FIRST_CARD = "document.querySelector('#card-UND-1').innerText"
LINK_S = 60.0
NAMELESS = """
    [...document.querySelectorAll('button, input:not([type=hidden]), select, textarea, a')]
        .filter(each => !(each.labels?.length || each.ariaLabel || each.textContent.trim()))
        .map(each => each.outerHTML)
"""


@dataclass(frozen=True)
class Machine:
    """A daemon with one runtime, as the daemon API sees it."""

    node: Node
    runtime: str

    async def post(self, path: str, body: object = None) -> Any:
        answer = await self.node.machine.post(f"/api/daemon/{path}", json=body or {})
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    async def claim(self) -> Run:
        task = (await self.post(f"runtimes/{self.runtime}/tasks/claim"))["task"]
        return Run(self, task["id"], task["claim_token"])


@dataclass(frozen=True)
class Run:
    machine: Machine
    id: str
    token: str

    async def tell(self, verb: str, **report: object) -> None:
        await self.machine.post(f"tasks/{self.id}/{verb}", report | {"claim_token": self.token})

    async def say(self, first: int, *messages: dict[str, Any]) -> None:
        numbered = [each | {"seq": seq} for seq, each in enumerate(messages, first)]
        await self.tell("messages", messages=numbered)


async def register(node: Node) -> Machine:
    offer = {"type": "scripted", "name": "", "version": "1.0", "status": "online"}
    body = {
        "workspace_id": str(node.workspace.id),
        "daemon_id": "d1",
        "device_name": "studio",
        "runtimes": [offer],
    }
    answer = await node.machine.post("/api/daemon/register", json=body)
    return Machine(node, answer.json()["runtimes"][0]["id"])


async def started(node: Node, title: str = "Write it down") -> Run:
    """An issue with a run that has begun."""
    machine = await register(node)
    await node.person.post("/api/agents", json={"name": "Nia", "provider": "scripted"})
    await node.person.post("/api/issues", json={"title": title, "agent": "Nia"})
    run = await machine.claim()
    await run.tell("start")
    return run


async def test_from_an_empty_board_to_a_finished_run_without_a_reload(
    page: Page, node: Node
) -> None:
    assert "Four steps to the first run" in await page.text("#welcome")
    await page.script("window.was_never_reloaded = true")
    machine = await register(node)
    await page.wait("document.querySelector('#welcome').innerText.includes('A machine is here')")
    await page.click("#welcome [data-opens=new-agent]")
    await page.write("#new-agent [name=name]", "Nia")
    await page.click("#new-agent button.main")
    await page.wait("document.querySelector('#welcome').innerText.includes('1 agent')")
    await page.press("c")
    await page.write("#new-issue [name=title]", "Write it down")
    await page.write("#new-issue [name=description]", "In <b>one</b> note.")
    await page.click("#new-issue button.main")
    await page.wait("document.querySelector('#column-todo #card-UND-1')")
    await page.choose("#card-UND-1 select", "Nia")
    await page.wait(f"{FIRST_CARD}.includes('Queued')")
    run = await machine.claim()
    await page.wait(f"{FIRST_CARD}.includes('Preparing')")
    await run.tell("start")
    await page.wait("document.querySelector('#column-in_progress #card-UND-1.card-running')")
    await run.tell("progress", summary="Half way", step=3, total=6)
    await page.wait(f"{FIRST_CARD}.includes('Half way')")
    await run.tell("complete", output="All is written.")
    await page.wait("document.querySelector('#column-in_review #card-UND-1.card-finished')")
    assert not await page.script("document.querySelector('#welcome')")
    assert await page.script("window.was_never_reloaded")
    await page.click("#card-UND-1 .title")
    assert "All is written." in await page.text("#comments")
    assert "In <b>one</b> note." in await page.text(".description")


async def test_a_transcript_grows_as_the_agent_talks_and_is_the_same_after_a_reload(
    page: Page, node: Node
) -> None:
    run = await started(node)
    await page.goto(f"{node.address}/issues/UND-1")
    await run.say(
        0,
        {"type": "thinking", "content": "Where is it?\nAh."},
        {"type": "text", "content": "I look for `it` <b>now</b>."},
        {"type": "tool_use", "tool": "Bash", "input": {"command": "make test"}},
    )
    tool = "document.querySelector('#talk .tool').dataset.state"
    await page.wait(f"{tool} === 'open'")
    await run.say(3, {"type": "tool_result", "tool": "Bash", "output": "Exit code 2\nno rule"})
    await page.wait(f"{tool} === 'failed'")
    shown = await page.text("#talk")
    assert "I look for it <b>now</b>." in shown
    assert "Where is it?" in shown
    assert "Ah." not in shown
    assert "$ make test" in shown
    assert "exit 2" in shown
    await page.goto(f"{node.address}/issues/UND-1")
    await page.wait(f"{tool} === 'failed'")
    assert await page.text("#talk") == shown
    await run.tell("complete", output="Done.")
    await page.wait("document.querySelector('.run-finished')")
    assert await page.text("#talk") == shown


async def test_a_reader_who_scrolled_up_is_left_there_until_they_ask_for_the_latest(
    page: Page, node: Node
) -> None:
    run = await started(node)
    lines = [{"type": "text", "content": f"Line {number}"} for number in range(80)]
    await run.say(0, *lines)
    await page.goto(f"{node.address}/issues/UND-1")
    at_end = "talk.scrollHeight - talk.scrollTop - talk.clientHeight < 2"
    await page.wait(f"talk.children.length === 80 && {at_end}")
    await page.script("talk.scrollTop = 0")
    await page.script("new Promise(requestAnimationFrame)")
    await run.say(80, {"type": "text", "content": "The latest"})
    await page.wait("talk.children.length === 81 && !jump.hidden")
    assert await page.script("talk.scrollTop") == 0
    await page.click("#jump")
    await page.wait(f"jump.hidden && {at_end}")


async def test_what_was_begun_survives_the_news(page: Page, node: Node) -> None:
    """Focus, a half-written comment, an open card: the page changes around them."""
    run = await started(node)
    await run.say(
        0,
        {"type": "tool_use", "tool": "Read", "input": {"path": "a"}},
        {"type": "tool_result", "tool": "Read", "output": "one\ntwo"},
    )
    await page.goto(f"{node.address}/issues/UND-1")
    await page.click("#talk .tool summary")
    await page.write("#say textarea", "I was about to say")
    await run.tell("complete", output="Done.")
    await page.wait(
        "document.querySelector('.run-finished') && document.querySelector('#comments')"
    )
    assert await page.script("document.activeElement.name") == "body"
    assert await page.script("document.activeElement.value") == "I was about to say"
    assert await page.script("document.querySelector('#talk .tool').open")


async def test_a_refused_form_says_why_and_keeps_what_was_written(page: Page, node: Node) -> None:
    await Board.set_up(node.database)
    await page.goto(f"{node.address}/agents")
    await page.click(".head [data-opens=new-agent]")
    await page.write("#new-agent [name=name]", "nia")
    await page.click("#new-agent button.main")
    await page.wait("document.querySelector('#new-agent .complaint').innerText.includes('already')")
    assert await page.script("document.querySelector('#new-agent').open")
    assert await page.script("document.querySelector('#new-agent [name=name]').value") == "nia"
    assert "409" in page.troubles.pop()  # The console names each failed request.


async def test_without_a_database_a_form_says_that_nothing_was_lost_and_works_again_later(
    page: Page, node: Node, server: EmbeddedServer
) -> None:
    await page.press("c")
    await page.write("#new-issue [name=title]", "Write it down")
    server.stop()
    try:
        await page.click("#new-issue button.main")
        complaint = "document.querySelector('#new-issue .complaint').innerText"
        await page.wait(f"{complaint}.includes('Nothing was lost')")
    finally:
        server.start()
    await page.click("#new-issue button.main")
    await page.wait("document.querySelector('#card-UND-1')")
    page.troubles.clear()  # The console names each failed request.


@asynccontextmanager
async def serving(dsn: str, port: int) -> AsyncIterator[int]:
    """A node on this port, or on a free one for 0; yields the port."""
    listeners = await open_listeners("127.0.0.1", port)
    config = ServerConfig(Home(Path("/nonexistent")), database_url=dsn, pool_size=2)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(run_server, config, Branch("server"), listeners))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def cut_off(devtools: str, dsn: str, board: Board) -> AsyncIterator[tuple[Page, int]]:
    """A signed-in tab, and the port at which its server was until a moment ago."""
    async with open_page(devtools) as page:
        async with serving(dsn, 0) as port:
            owner = Owner(user_id=board.user_id)
            code = await tokens.create(board.database, "login", owner, valid_s=LINK_S)
            await page.goto(f"http://127.0.0.1:{port}/login/{code}")
            await page.wait(LIVE)
            await page.script("window.was_never_reloaded = true")
        await page.wait("document.querySelector('#connection').innerText === 'reconnecting'")
        yield page, port


async def test_a_tab_outlives_its_server_and_shows_what_it_missed(
    devtools: str, dsn: str, database: Database, nursery: trio.Nursery
) -> None:
    """R11.4: nothing is missed over a reconnection; not even what has no event, a new agent."""
    board = await Board.set_up(database)
    async with cut_off(devtools, dsn, board) as (page, port):
        await board.agent("Otto")
        async with serving(dsn, port):
            choice = "document.querySelector('#new-issue').textContent"
            await page.wait(f"{LIVE} && {choice}.includes('Otto')")
        await board.issue("Meanwhile")
        async with serving(dsn, port):
            await page.wait(f"{LIVE} && document.querySelector('#card-UND-1')")
            assert await page.script("window.was_never_reloaded")


async def test_a_tab_whose_session_has_ended_is_led_to_the_door(
    devtools: str, dsn: str, database: Database, nursery: trio.Nursery
) -> None:
    """A stream that is refused does not come back by itself, as one that was cut does."""
    board = await Board.set_up(database)
    async with cut_off(devtools, dsn, board) as (page, port):
        await database.pool.execute("delete from understudy.tokens")
        async with serving(dsn, port):
            await page.wait("location.pathname === '/login'")


async def test_a_page_and_its_stream_leave_no_gap_between_them(page: Page, node: Node) -> None:
    """R11.4: the stream begins where the page was rendered, not when the browser opens it."""
    await node.person.post("/api/issues", json={"title": "In between"})
    await page.script(
        "const after = document.documentElement.dataset.cursor;"
        "window.late = new EventSource(`/api/events?after=${after}`);"
        "late.addEventListener('issue:created', () => { late.close(); window.was_told = true })"
    )
    await page.wait("window.was_told")


DRAG = """
    (column => {
        const carried = {bubbles: true, cancelable: true, dataTransfer: new DataTransfer()};
        const send = (where, kind) => where.dispatchEvent(new DragEvent(kind, carried));
        send(document.querySelector('#card-UND-1'), 'dragstart');
        send(column, 'dragover');
        send(column, 'drop');
    })
"""


async def test_a_card_that_is_dragged_to_another_column_stays_there(page: Page, node: Node) -> None:
    await node.person.post("/api/issues", json={"title": "Write it down"})
    await page.wait("document.querySelector('#column-todo #card-UND-1')")
    await page.script(f"{DRAG}(document.querySelector('#column-done'))")
    await page.wait("document.querySelector('#column-done #card-UND-1.is-closed')")
    shown = await node.person.get("/api/issues/UND-1")
    assert shown.json()["issue"]["status"] == "done"


async def test_what_an_agent_has_in_hand_cannot_be_dragged(page: Page, node: Node) -> None:
    await started(node)
    await page.wait("document.querySelector('#column-in_progress #card-UND-1')")
    await page.script(f"{DRAG}(document.querySelector('#column-done'))")
    assert await page.script("document.querySelector('#column-in_progress #card-UND-1') !== null")


async def test_a_new_machine_gets_a_command_to_copy(page: Page, node: Node) -> None:
    await page.goto(f"{node.address}/machines")
    await page.click(".head [data-opens=new-machine]")
    await page.click("#new-machine form button:not([data-copies])")
    command = await page.wait(
        "document.querySelector('#new-machine [data-copies^=\"understudy join\"]').dataset.copies"
    )
    assert command.startswith(f"understudy join {node.address}/join/usd_")


async def test_signing_out_leads_to_the_door_and_closes_it(page: Page, node: Node) -> None:
    await page.click(".menu summary")
    await page.click("[data-logs-out]")
    await page.wait("location.pathname === '/login'")
    await page.goto(f"{node.address}/")
    await page.wait("location.pathname === '/login'")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 800), ("dark", 360)])
async def test_no_page_is_wider_than_its_window_and_every_control_has_a_name(
    page: Page, node: Node, scheme: str, width: int
) -> None:
    """And none turns the console red: the fixture looks."""
    run = await started(node, "An-issue-with-a-very-long-word-" * 8)
    await run.say(0, {"type": "tool_use", "tool": "Bash", "input": {"command": "x" * 400}})
    await page.look_like(scheme=scheme, width=width, height=800)
    for path in PAGES:
        await page.goto(f"{node.address}{path}")
        await page.wait(LIVE)
        root = "document.documentElement"
        assert await page.script(f"{root}.scrollWidth - {root}.clientWidth") == 0, path
        assert await page.script(NAMELESS) == [], path


async def test_a_phone_opens_the_board_where_something_happens(page: Page, node: Node) -> None:
    await started(node)
    await page.look_like(width=390, height=800)
    await page.goto(f"{node.address}/")
    current = "document.querySelector('.jumps [aria-current]').innerText"
    await page.wait(f"{current}.startsWith('In progress')")
    await page.click(".jumps [href='#column-in_review']")
    await page.wait(f"{current}.startsWith('In review')")


async def test_the_browser_tells_time_in_the_words_of_the_server(page: Page) -> None:
    moments = [-5, 0, 59.9, 60, 133, 3599, 3600, 3840, 86_399, 86_400, 180_000, 9_999_999]
    told = await page.script(
        "import('/static/clock.js').then(clock =>"
        f" {json.dumps(moments)}.map(each => [clock.duration(each), clock.age(each)]))"
    )
    assert told == [[words.duration(each), words.age(each)] for each in moments]


TALK = "document.querySelector('.transcript').innerText"
STATE = "document.querySelector('.issue-head .state').innerText"


async def test_a_run_is_cancelled_by_a_button_and_says_so_until_its_machine_has_confirmed(
    page: Page, node: Node
) -> None:
    """R7.1"""
    run = await started(node)
    await page.goto(f"{node.address}/issues/UND-1")
    await page.click(f"[data-call='POST /api/tasks/{run.id}/cancel']")
    await page.wait(f"{STATE}.includes('Cancelling') && {TALK}.includes('was told')")
    assert not await page.script(f"{TALK}.includes('Cancel run')")
    await run.tell("stopped")
    await page.wait(f"{STATE}.includes('Cancelled')")


async def test_an_issue_is_cancelled_with_all_its_runs(page: Page, node: Node) -> None:
    run = await started(node)
    await page.goto(f"{node.address}/issues/UND-1")
    await page.click("[data-call='POST /api/issues/UND-1/cancel']")
    await page.wait("document.querySelector('#status').value === 'cancelled'")
    await page.goto(f"{node.address}/")
    await page.wait("document.querySelector('#column-done .card-cancelling')")
    await run.tell("stopped")
    await page.wait("document.querySelector('#column-done #card-UND-1:not(.card-cancelling)')")


NEVER_LOOK = """
    const later = window.setTimeout;
    window.setTimeout = (act, ms) => later(act, ms > 1000 ? 2 ** 30 : ms);
"""


async def test_a_tab_hears_at_once_that_somebody_else_cancels(page: Page, node: Node) -> None:
    """R11.4: it does not wait for its next look, which never comes here."""
    run = await started(node)
    await page.ask("Page.addScriptToEvaluateOnNewDocument", source=NEVER_LOOK)
    await page.goto(f"{node.address}/")
    await page.wait(f"{LIVE} && document.querySelector('#card-UND-1.card-running')")
    await node.person.post(f"/api/tasks/{run.id}/cancel")
    await page.wait("document.querySelector('#card-UND-1.card-cancelling')")


async def test_an_older_run_is_run_again_and_the_page_goes_to_the_new_one(
    page: Page, node: Node
) -> None:
    """R7.6"""
    run = await started(node)
    await run.tell("fail", failure_reason="auth", error="run `claude /login`")
    await page.goto(f"{node.address}/issues/UND-1?run={run.id}")
    assert "Not signed in" in await page.text(".failure")
    await page.click("#again summary")
    await page.click("#again .choice:nth-child(2)")
    await page.wait(f"!location.search && {STATE}.includes('Queued')")
    assert "Follows attempt 1 of 2 (Not signed in)" in await page.text(".story")
    again = await run.machine.claim()
    assert again.id != run.id
    await page.wait(f"{TALK}.includes('prepares the work directory')")


async def test_a_retry_is_one_click_from_the_run_that_failed(page: Page, node: Node) -> None:
    """R5.4"""
    run = await started(node)
    await run.tell("fail", failure_reason="timeout", error="it was silent")
    await page.goto(f"{node.address}/issues/UND-1?run={run.id}")
    await page.click(".failure a")
    await page.wait("document.querySelector('#transcript-title').innerText.includes('2 of 2')")
    await page.click(".story a")
    await page.wait("document.querySelector('#transcript-title').innerText.includes('1 of 2')")


async def test_who_comments_is_told_whom_it_called(page: Page, node: Node) -> None:
    """R10.2"""
    run = await started(node)
    await page.goto(f"{node.address}/issues/UND-1")
    await page.write("#say textarea", "And the title?")
    await page.click("#say button")
    await page.wait("document.querySelector('#say .told').innerText.startsWith('Nia is at work')")
    await page.wait("document.querySelector('.call').innerText.includes('called Nia, who hears')")
    await run.tell("complete", output="Done.")
    await page.click(".call a")
    await page.wait(f"{STATE}.includes('Queued') && location.search")


async def test_every_way_to_be_called_has_words(page: Page) -> None:
    outcomes = ["enqueued", "joined", "waiting", "too_many_hops"]
    told = await page.script(
        "import('/static/called.js').then(({called}) => "
        f"{json.dumps(outcomes)}.map(outcome => called({{called: [{{agent: 'Nia', outcome}}]}})))"
    )
    assert len(set(told)) == len(outcomes)
    assert all(sentence.startswith("Nia ") for sentence in told)


async def answer_pings(machine: Machine) -> None:
    """What a daemon does that only asks."""
    while True:
        heard = await machine.post("heartbeat", {"runtime_id": machine.runtime})
        if "pending_ping" in heard:
            ping_id = heard["pending_ping"]["id"]
            await machine.post(f"runtimes/{machine.runtime}/pong", {"ping_id": ping_id})


async def test_a_machine_is_pinged_and_the_round_trip_stays_while_the_page_changes(
    page: Page, node: Node, nursery: trio.Nursery
) -> None:
    """R4.12"""
    run = await started(node)
    nursery.start_soon(answer_pings, run.machine)
    await page.goto(f"{node.address}/machines")
    await page.click("[data-pings]")
    await page.wait("/^\\d+ ms$/.test(document.querySelector('.pong').innerText)")
    told = await page.text(".pong")
    await run.tell("complete", output="Done.")
    await page.wait("document.querySelector('.machine').innerText.includes('idle')")
    assert await page.text(".pong") == told
    nursery.cancel_scope.cancel()


async def test_a_machine_that_went_away_can_be_removed(page: Page, node: Node) -> None:
    """R4.7"""
    machine = await register(node)
    await page.goto(f"{node.address}/machines")
    assert not await page.script("document.querySelector('[data-call^=DELETE]')")
    await machine.post("deregister", {"runtime_ids": [machine.runtime]})
    await page.click("[data-call^=DELETE]")
    await page.wait("document.querySelector('.empty').innerText.includes('No machine yet')")
