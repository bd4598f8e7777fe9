"""The pages as HTML: who may see them, what they say, and that nothing lives in them but ours."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from importlib import resources
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest

from understudy.core.failures import FailureReason
from understudy.core.lifecycle import EVENT_KIND
from understudy.core.records import Message, Usage
from understudy.http.pages.assets import load_static, load_templates
from understudy.store import issues, runtimes, sweeps, tasks
from understudy.store.embedded import EmbeddedServer
from understudy.store.issues import Author
from understudy.store.tasks import Failure, Holder
from understudy.testing.board import Board, Claim
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


@dataclass(frozen=True)
class Held:
    """A run that has begun, of Nia on a new issue."""

    board: Board
    holder: Holder

    @property
    def id(self) -> UUID:
        return self.holder.task_id

    async def fail(self, reason: FailureReason, error: str, **failure: Any) -> UUID | None:
        """Its retry."""
        kept: dict[str, Any] = {"session_id": None, "work_dir": None}
        told = Failure(reason, error, **failure)
        ended = (await tasks.fail(self.board.database, self.holder, told, **kept)).task
        assert ended is not None
        return ended.retry_task_id

    async def complete(self, output: str) -> None:
        kept: dict[str, Any] = {"session_id": None, "work_dir": None}
        await tasks.complete(self.board.database, self.holder, {"output": output}, **kept)

    async def give_up(self) -> UUID | None:
        """As when its daemon comes back and knows nothing of it; its retry."""
        board = self.board
        (lost,) = await sweeps.recover(
            board.database, board.workspace_id, board.runtime_id, kept=[], same_process=False
        )
        return lost.retry_task_id


async def begun(board: Board, title: str = "Write it down") -> Held:
    (claim,) = await board.dispatched(title)
    return await start(board, claim)


async def start(board: Board, claim: Claim) -> Held:
    held = Holder(board.workspace_id, claim.task.id, claim.claim_token)
    await tasks.start(board.database, held)
    return Held(board, held)


async def test_what_waits_says_why_on_every_page_that_shows_it(node: Node) -> None:
    """R10.4: the line of `understudy why`, and on the issue's page what would change it."""
    board = await Board.set_up(node.database)
    await runtimes.go_offline(node.database, [board.runtime_id], action="deregister")
    task = (await board.assign(await board.issue("Waits"))).task
    assert task is not None
    said = (await node.person.get(f"/api/tasks/{task.id}/why")).json()["sentence"]
    for path in ("/", "/agents", "/issues/UND-1"):
        assert said.removeprefix("queued: ") in (await read(node, path)).words(), path
    words = (await read(node, "/issues/UND-1")).words()
    assert f"Q{said[1:]}. It changes when it comes back: understudy daemon start" in words
    await runtimes.delete(node.database, board.workspace_id, board.runtime_id)
    assert "no machine offers provider scripted" in (await read(node, "/")).text


async def test_what_stands_still_on_a_machine_that_is_away_says_so_on_every_page(
    node: Node,
) -> None:
    """R10.4: the last thing it told is not what matters then."""
    board = await Board.set_up(node.database)
    run = await begun(board)
    await tasks.set_progress(node.database, run.holder, {"summary": "Half way"})
    assert "Half way" in (await read(node, "/machines")).words()
    await runtimes.go_offline(node.database, [board.runtime_id], action="silent")
    for path in ("/", "/agents", "/machines", "/issues/UND-1"):
        words = (await read(node, path)).words()
        assert "runtime laptop/scripted is offline since" in words, path
        assert "Half way" not in words, path


async def test_a_failed_run_says_why_in_words_and_leads_to_the_one_that_tries_again(
    node: Node,
) -> None:
    """R5.4"""
    board = await Board.set_up(node.database)
    run = await begun(board)
    retry = await run.fail(FailureReason.PROVIDER_OVERLOADED, "529", retry_after_s=1800.0)
    page = await read(node, f"/issues/UND-1?run={run.id}")
    assert "Model is overloaded. provider_overloaded 529 Tried again as attempt 2 of 2" in (
        page.words()
    )
    assert f"/issues/UND-1?run={retry}#runs-title" in links(page)
    page = await read(node, "/issues/UND-1")
    assert "Deferred: provider scripted was overloaded or out of reach" in page.words()
    assert "Follows attempt 1 of 2 (Model is overloaded)" in page.words()
    assert f"/issues/UND-1?run={run.id}#runs-title" in links(page)
    words = (await read(node, "/")).words()
    assert "Waiting to retry" in words
    assert "attempt 2 of 2 follows in 3" in words
    other = await begun(board, "Another")
    await other.fail(FailureReason.AUTH, "run `claude /login`")
    assert "It is not tried again by itself." in (await read(node, "/issues/UND-2")).words()


async def test_a_late_result_counts_and_what_it_superseded_is_not_in_the_way(node: Node) -> None:
    """R6.5"""
    board = await Board.set_up(node.database)
    run = await begun(board)
    retry = await run.give_up()
    await run.complete("Written.")
    card = section((await node.person.get("/")).text, "in_review")
    assert "Finished" in card
    assert "Superseded" not in card
    assert await shown_run(node, "/issues/UND-1") == str(run.id)
    assert "Its result came late" in (await read(node, "/issues/UND-1")).words()
    words = (await read(node, f"/issues/UND-1?run={retry}")).words()
    assert "Superseded: the attempt before it had succeeded after all" in words


async def test_a_result_that_came_too_late_is_kept_for_the_reader(node: Node) -> None:
    """R6.5"""
    board = await Board.set_up(node.database)
    run = await begun(board)
    await run.give_up()
    (claim,) = await board.claim()
    await start(board, claim)
    await run.complete("Written, too.")
    words = (await read(node, f"/issues/UND-1?run={run.id}")).words()
    assert "Lost when its daemon restarted." in words
    assert "Its result came after all, when the next attempt had begun" in words
    assert "Written, too." in words
    assert "Written, too." not in (await read(node, "/issues/UND-1")).words()


async def test_a_run_that_is_being_cancelled_looks_so_until_it_is_over(node: Node) -> None:
    """R7.1: also on the card of an issue that is closed."""
    board = await Board.set_up(node.database)
    run = await begun(board)
    cancel = f"POST /api/tasks/{run.id}/cancel"
    assert cancel in calls(await read(node, "/issues/UND-1"))
    await told(node, "/api/issues/UND-1/cancel")
    card = section((await node.person.get("/")).text, "done")
    assert "Cancelling" in card
    assert "has not confirmed the end" in card
    page = await read(node, "/issues/UND-1")
    assert "Cancelling: laptop/scripted was told" in page.words()
    assert cancel not in calls(page)
    await tasks.confirm_stop(node.database, run.holder)
    assert "Cancelling" not in (await node.person.get("/")).text
    page = await read(node, "/issues/UND-1")
    assert "Cancelled" in page.words()
    assert "POST /api/issues/UND-1/cancel" not in calls(page)


async def test_a_comment_shows_whom_it_called_and_the_form_whom_it_will(node: Node) -> None:
    """R10.2"""
    board = await Board.set_up(node.database)
    await begun(board)
    await board.agent("Otto")
    assert "Nia is called, unless you name another" in (await read(node, "/issues/UND-1")).words()
    await told(node, "/api/issues/UND-1/comments", body="And the title?")
    made = await told(node, "/api/issues/UND-1/comments", body="@Otto, look")
    page = await read(node, "/issues/UND-1")
    assert "called Nia, who hears of it when the run at work ends" in page.words()
    assert "called Otto: its run" in page.words()
    assert f"/issues/UND-1?run={made['called'][0]['task_id']}#runs-title" in links(page)
    await node.person.patch("/api/issues/UND-1", json={"status": "done"})
    words = (await read(node, "/issues/UND-1")).words()
    assert "@Name calls an agent." in words
    assert "is called, unless" not in words


async def test_to_run_again_stops_what_runs_unless_it_is_to_come_behind_it(node: Node) -> None:
    """R7.6: the menu says so."""
    board = await Board.set_up(node.database)
    run = await begun(board)
    bodies = [{"task_id": str(run.id)}, {"fresh": True, "task_id": str(run.id)}]
    page = await read(node, "/issues/UND-1")
    after = {"after": True, "task_id": str(run.id)}
    assert reruns(page) == [*bodies, after]
    assert page.words().count("Stops the run at work first.") == 2
    await run.complete("Done.")
    page = await read(node, "/issues/UND-1")
    assert reruns(page) == bodies
    assert "Stops the run at work" not in page.words()


def reruns(page: Reader) -> list[Any]:
    asked = "POST /api/issues/UND-1/rerun"
    bodies = [each["data-body"] for _, each in page.tags if each.get("data-call") == asked]
    return [json.loads(str(body)) for body in bodies]


def calls(page: Reader) -> set[str | None]:
    return {each["data-call"] for _, each in page.tags if "data-call" in each}


def links(page: Reader) -> set[str | None]:
    return {each.get("href") for tag, each in page.tags if tag == "a"}


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
        "Nia on laptop · attempt 1 of 2",
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


async def test_a_machine_out_of_quota_says_until_when(node: Node) -> None:
    """R5.4"""
    board = await Board.set_up(node.database)
    run = await begun(board)
    await run.fail(FailureReason.QUOTA_EXHAUSTED, "limit reached", retry_after_s=3600.0)
    assert "Its quota is used up and comes back at " in (await read(node, "/machines")).words()
    assert "the quota of provider scripted is used up" in (await read(node, "/")).words()
    await told(node, "/api/issues/UND-1/rerun")
    assert "quota" not in (await read(node, "/machines")).words()


async def test_who_is_there_can_be_pinged_and_who_is_away_and_idle_removed(node: Node) -> None:
    """R4.7, R4.12"""
    board = await Board.set_up(node.database)
    remove = f"DELETE /api/runtimes/{board.runtime_id}"
    run = await begun(board)
    page = await read(node, "/machines")
    assert [each["data-pings"] for _, each in page.tags if "data-pings" in each] == [
        f"/api/runtimes/{board.runtime_id}/pings"
    ]
    assert remove not in calls(page)
    await runtimes.go_offline(node.database, [board.runtime_id], action="silent")
    page = await read(node, "/machines")
    assert not [each for _, each in page.tags if "data-pings" in each]
    assert remove not in calls(page)
    await run.complete("Done.")
    assert remove in calls(await read(node, "/machines"))


def test_a_tab_hears_every_kind_of_event_that_is_written() -> None:
    """R11.4: a browser tells a page only of the kinds that it has asked for."""
    written = resources.files("understudy").joinpath("schema.sql").read_text()
    kinds = set(re.findall(r"'((?:task|issue|comment|agent):[a-z]+)'", written))
    asked = load_static()["events.js"].body.decode()
    assert {"task:cancelling", "agent:status"} <= kinds
    assert [kind for kind in kinds | set(EVENT_KIND.values()) if f'"{kind}"' not in asked] == []


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
