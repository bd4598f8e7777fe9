"""The pages as HTML: who may see them, what they say, and that nothing lives in them but ours."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from understudy.core.failures import FailureReason
from understudy.core.records import Message, Usage
from understudy.http.pages.assets import load_static, load_templates
from understudy.store import issues, runtimes, tasks
from understudy.store.embedded import EmbeddedServer
from understudy.store.issues import Author
from understudy.store.tasks import Failure, Holder
from understudy.testing.board import Board
from understudy.testing.node import Node

PAGES = ("/", "/agents", "/machines", "/system")
PARTS = ("/fragments/board", "/fragments/agents", "/fragments/machines", "/fragments/system")
NASTY = "<img src=x onerror=alert(1)>\"'&{{7*7}}"


class Reader(HTMLParser):
    """What a browser would run, fetch or show."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def words(self) -> str:
        return " ".join(self.text.split())


async def read(node: Node, path: str, status: int = 200) -> Reader:
    answer = await node.person.get(path)
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"].startswith("text/html")
    return Reader(answer.text)


async def told(node: Node, path: str, **body: object) -> Any:
    answer = await node.person.post(path, json=body)
    assert answer.is_success, answer.text
    return answer.json()


def section(html: str, status: str) -> str:
    return html.partition(f'id="column-{status}"')[2].partition("</section>")[0]


@pytest.mark.parametrize("path", [*PAGES, "/issues/UND-1"])
async def test_a_stranger_is_shown_to_the_door(node: Node, path: str) -> None:
    answer = await node.stranger.get(path)
    assert answer.status_code == 302
    assert answer.headers["Location"] == "/login"


@pytest.mark.parametrize("path", [*PARTS, "/fragments/issues/UND-1"])
async def test_a_script_without_a_key_is_told_so_and_gets_no_login_page(
    node: Node, path: str
) -> None:
    answer = await node.stranger.get(path)
    assert answer.status_code == 401
    assert answer.json()["code"] == "unauthenticated"


async def test_the_door_says_where_the_key_is(node: Node) -> None:
    answer = await node.stranger.get("/login")
    assert answer.status_code == 200
    assert "understudy login" in answer.text
    assert "used before" in (await node.stranger.get("/login?spent=1")).text


@pytest.mark.parametrize("path", PAGES)
async def test_an_empty_page_says_what_to_do_next(node: Node, path: str) -> None:
    page = await read(node, path)
    wanted = {"/": "Four steps", "/agents": "New agent", "/machines": "No machine yet"}
    assert wanted.get(path, "supervision tree") in page.words()


async def test_a_finished_step_is_a_fact(node: Node) -> None:
    await Board.set_up(node.database)
    page = await read(node, "/")
    assert "A machine is here." in page.words()
    assert "1 agent can be assigned." in page.words()


async def test_a_page_runs_no_script_and_no_style_but_our_files(node: Node) -> None:
    """The content security policy refuses anything else, and so does this."""
    board = await Board.set_up(node.database)
    (claim,) = await board.dispatched("Write it down")
    await tasks.start(node.database, Holder(board.workspace_id, claim.task.id, claim.claim_token))
    for path in (*PAGES, "/issues/UND-1", "/login"):
        for tag, attributes in (await read(node, path)).tags:
            assert tag != "style", path
            assert tag != "script" or str(attributes["src"]).startswith("/static/"), path
            assert not {name for name in attributes if name.startswith("on")}, path
            assert "style" not in attributes, path
            for name in ("src", "href", "action"):
                assert str(attributes.get(name) or "/").startswith(("/", "#")), path


async def test_what_people_write_is_text(node: Node) -> None:
    board = await Board.set_up(node.database)
    nasty = await board.issue(NASTY, description=f"```\n{NASTY}\n```\n`{NASTY}`", repository=NASTY)
    author = Author(user_id=board.user_id)
    await issues.add_comment(node.database, nasty, f"**{NASTY}**", author)
    offer = runtimes.Offer("scripted", NASTY, NASTY, "1", "offline", NASTY)
    machine = runtimes.Machine(board.workspace_id, NASTY, NASTY, None)
    await runtimes.register(node.database, machine, [offer])
    (claim,) = await board.dispatched(NASTY)
    held = Holder(board.workspace_id, claim.task.id, claim.claim_token)
    await tasks.start(node.database, held)
    said = [Message(seq=0, type="text", content=NASTY)]
    await tasks.append_messages(node.database, held, said)
    await tasks.report_usage(node.database, held, [Usage(provider=NASTY, model=NASTY)])
    for path in ("/", "/machines", "/agents", "/system", "/issues/UND-1", "/issues/UND-2"):
        page = await read(node, path)
        ours = {"/static/mark.svg"}
        assert {each["src"] for tag, each in page.tags if tag == "img"} == ours, path
    assert NASTY in (await read(node, "/")).text
    assert (await read(node, "/issues/UND-1")).text.count(NASTY) == 6


async def test_a_card_stands_where_the_facts_put_it(node: Node) -> None:
    """A run in hand is in progress before the issue knows; a failed one is back in Todo (R5.6)."""
    board = await Board.set_up(node.database)
    for title in ("Fails", "Succeeds", "Prepares"):
        (claim,) = await board.dispatched(title)
        if title == "Prepares":
            break
        held = Holder(board.workspace_id, claim.task.id, claim.claim_token)
        await tasks.start(node.database, held)
        kept: dict[str, Any] = {"session_id": None, "work_dir": None}
        if title == "Fails":
            reason = FailureReason.AUTH
            await tasks.fail(node.database, held, Failure(reason, "run `claude /login`"), **kept)
        else:
            await tasks.complete(node.database, held, {"output": "Done."}, **kept)
    await board.issue("Sleeps", status="backlog")
    html = (await node.person.get("/fragments/board")).text
    assert "Sleeps" in section(html, "backlog")
    assert "Fails" in section(html, "todo")
    assert "Not signed in" in section(html, "todo")
    assert "claude /login" in section(html, "todo")
    assert "Preparing" in section(html, "in_progress")
    assert "Finished" in section(html, "in_review")


async def test_a_queued_card_says_who_has_to_come_back(node: Node) -> None:
    board = await Board.set_up(node.database)
    await board.assign(await board.issue("Waits"))
    assert "offline" not in (await read(node, "/")).text
    await runtimes.go_offline(node.database, [board.runtime_id], action="deregister")
    assert "scripted on laptop is offline" in (await read(node, "/")).text
    await node.database.pool.execute("delete from understudy.runtimes")
    assert "no machine offers scripted" in (await read(node, "/")).text


async def test_a_running_card_shows_the_last_thing_its_agent_did(node: Node) -> None:
    board = await Board.set_up(node.database)
    (claim,) = await board.dispatched("Write it down")
    held = Holder(board.workspace_id, claim.task.id, claim.claim_token)
    await tasks.start(node.database, held)
    use = Message(seq=0, type="tool_use", tool="Bash", input={"command": "make test"})
    result = Message(seq=1, type="tool_result", tool="Bash", output="all green")
    await tasks.append_messages(node.database, held, [use, result])
    assert "Bash: make test" in (await read(node, "/")).text
    await tasks.set_progress(node.database, held, {"summary": "Half way", "step": 3, "total": 6})
    page = await read(node, "/")
    assert "Half way" in page.text
    assert ("3", "6") in {(each.get("value"), each.get("max")) for _, each in page.tags}


async def test_an_issue_shows_every_run_with_what_became_of_it(node: Node) -> None:
    board = await Board.set_up(node.database)
    (claim,) = await board.dispatched("Write it down")
    held = Holder(board.workspace_id, claim.task.id, claim.claim_token)
    await tasks.start(node.database, held)
    spent = Usage(provider="p", model="m", input_tokens=1200, cache_read_tokens=80_000)
    await tasks.report_usage(node.database, held, [spent])
    result = {
        "output": "Written.",
        "branch_name": "understudy/nia/UND-1",
        "changes": {"commits": 1, "files": 2, "insertions": 9, "deletions": 0, "uncommitted": 0},
    }
    await tasks.complete(node.database, held, result, session_id=None, work_dir=None)
    words = (await read(node, "/issues/und-1")).words()
    for wanted in (
        "Nia on laptop · attempt 1",
        "81.2k tokens",
        "understudy/nia/UND-1",
        "1 commit, 2 files, +9 \N{MINUS SIGN}0",
        "Finished in",
        "Written.",
    ):
        assert wanted in words


async def test_a_chosen_run_stays_chosen_in_the_part_that_is_fetched_again(node: Node) -> None:
    board = await Board.set_up(node.database)
    issue = await board.issue("Write it down")
    older = (await board.assign(issue)).task
    newer = (await board.assign(issue, await board.agent("Otto"))).task
    assert older is not None
    assert newer is not None
    assert await shown_run(node, "/issues/UND-1") == str(newer.id)
    page = await read(node, f"/issues/UND-1?run={older.id}")
    (part,) = [str(each["data-part"]) for _, each in page.tags if "data-part" in each]
    assert part == f"/fragments/issues/UND-1?run={older.id}"
    assert await shown_run(node, part) == str(older.id)


async def shown_run(node: Node, path: str) -> str | None:
    (run,) = [each["data-task"] for _, each in (await read(node, path)).tags if "data-task" in each]
    return run


async def test_a_machine_shows_what_is_wrong_and_what_it_runs(node: Node) -> None:
    board = await Board.set_up(node.database)
    machine = runtimes.Machine(board.workspace_id, "second", "build-01", None)
    broken = runtimes.Offer(
        "claude", "claude", "build-01 · 2.1", "2.1", "offline", "Run `claude /login`"
    )
    await runtimes.register(node.database, machine, [broken])
    await board.dispatched("Write it down")
    words = (await read(node, "/machines")).words()
    assert "Run `claude /login`" in words
    assert "2.1 offline for" in words
    assert "UND-1 Write it down Nia Preparing" in words


async def test_the_system_page_names_actors_by_what_they_stand_for(node: Node) -> None:
    board = await Board.set_up(node.database)
    row = await runtimes.find(node.database, board.runtime_id)
    assert row is not None
    await node.site.cast.attend(row)
    words = (await read(node, "/system")).words()
    assert "scripted laptop actor running 1" in words
    assert "0/64" in words


async def test_a_browser_asks_again_and_is_told_that_nothing_changed(node: Node) -> None:
    first = await node.stranger.get("/static/base.css")
    assert first.headers["Content-Type"] == "text/css; charset=utf-8"
    known = {"If-None-Match": first.headers["ETag"]}
    again = await node.stranger.get("/static/base.css", headers=known)
    assert (again.status_code, again.content) == (304, b"")
    other = await node.stranger.get("/static/base.css", headers={"If-None-Match": '"older"'})
    assert (other.status_code, other.content) == (200, first.content)


async def test_pages_are_never_kept_by_a_cache(node: Node) -> None:
    assert (await node.person.get("/")).headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("name", ["missing.css", "../pages.py", "%2e%2e/pages.py", "templates/x"])
async def test_only_our_files_are_served(node: Node, name: str) -> None:
    answer = await node.stranger.get(httpx2.URL(f"{node.address}/static/{name}"))
    assert answer.status_code == 404


async def test_an_issue_that_is_not_there_is_a_page_that_leads_back(node: Node) -> None:
    page = await read(node, "/issues/UND-99", status=404)
    assert "Issue und-99 not found" in page.words()
    assert "/" in [each.get("href") for tag, each in page.tags if tag == "a"]


async def test_a_malformed_run_is_refused_and_an_unknown_one_ignored(node: Node) -> None:
    await told(node, "/api/issues", title="Write it down")
    await read(node, "/issues/UND-1?run=zero", status=400)
    await read(node, f"/issues/UND-1?run={uuid4()}")


async def test_nobody_sees_the_board_of_another_workspace(node: Node) -> None:
    await told(node, "/api/issues", title="Ours alone")
    elsewhere = node.database.new_id()
    await node.database.pool.execute(
        "insert into understudy.workspaces (id, slug, name) values ($1, 'away', 'Away')", elsewhere
    )
    await node.database.pool.execute("update understudy.issues set workspace_id = $1", elsewhere)
    assert "Ours alone" not in (await read(node, "/")).text
    await read(node, "/issues/UND-1", status=404)


async def test_without_a_database_a_page_says_that_nothing_was_lost(
    node: Node, server: EmbeddedServer
) -> None:
    server.stop()
    try:
        page = await read(node, "/", status=503)
        assert "Nothing was lost" in page.words()
        part = await node.person.get("/fragments/board")
        assert (part.status_code, part.json()["code"]) == (503, "unavailable")
    finally:
        server.start()
    await read(node, "/")


def test_every_file_that_a_template_names_exists() -> None:
    static = load_static()
    for name, template in load_templates().items():
        for tag, attributes in Reader(template).tags:
            path = attributes.get("src") or attributes.get("href") or ""
            if tag in {"link", "script", "img"} and "{" not in path:
                assert path.removeprefix("/static/") in static, name
