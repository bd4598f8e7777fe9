"""Comments that call agents: whom, at least once, and never without end (R10.1 to R10.3)."""

from __future__ import annotations

import pytest
import trio

from understudy.core.lifecycle import Status
from understudy.core.records import Issue
from understudy.store import issues, tasks
from understudy.store.connection import open_connection
from understudy.store.database import Database
from understudy.testing.board import Board
from understudy.testing.story import Story, held
from understudy.wire.board import Commented
from understudy.wire.daemon import ClaimedTask


def outcomes(comment: Commented) -> dict[str, str]:
    return {called.agent: called.outcome for called in comment.called}


async def number_of_tasks(story: Story, issue: Issue) -> int:
    return len(await tasks.of_issue(story.database, issue.id))


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ("@Zed have a look", ["Zed"]),
        ("what do you think, @zed?", ["Zed"]),
        ("(@ZED)", ["Zed"]),
        ("@Zed's turn; then @Zed again", ["Zed"]),
        ("@Zed: go", ["Zed"]),
        ("first line\n@Zed", ["Zed"]),
        ("@Zed Two have a look", ["Zed Two"]),
        ("@zed two, then @zed", ["Zed", "Zed Two"]),
        ("@Zed and @Zed-3.1!", ["Zed", "Zed-3.1"]),
        ("mail zed@zed.example or me@Zed", []),
        ("@Zedekiah and @Zed_x and @@Zed", []),
        ("Zed has no at", []),
        ("run `@Zed` or\n```\n@Zed\n```\nor\n```py\n@Zed Two", []),
        ("```\n@Zed\n``` but @Zed Two, `x`", ["Zed Two"]),
        ("@Gone is archived", []),
    ],
)
async def test_a_mention_is_a_whole_name_in_any_case_the_longest_first(
    story: Story, body: str, names: list[str]
) -> None:
    """R10.2"""
    for name in ("Zed", "Zed Two", "Zed-3.1", "Gone"):
        await story.board.agent(name)
    await story.database.pool.execute(
        "update understudy.agents set archived_at = now() where name = 'Gone'"
    )
    issue = await story.board.issue("Nobody's")
    made = await story.says(issue, body)
    assert outcomes(made) == dict.fromkeys(names, "enqueued")
    assert await number_of_tasks(story, issue) == len(names)


async def test_agents_of_another_workspace_are_not_called(story: Story) -> None:
    """R10.2: the tenant's own."""
    await story.board.agent("Zed")
    await story.database.pool.execute(
        "insert into understudy.workspaces (id, slug, name)"
        " values ('00000000-0000-0000-0000-000000000005', 'other', 'Other')"
    )
    await story.database.pool.execute(
        "update understudy.agents set workspace_id = '00000000-0000-0000-0000-000000000005'"
        " where name = 'Zed'"
    )
    assert (await story.says(await story.board.issue("A thing"), "@Zed go")).called == []


async def test_a_mention_starts_a_task_that_is_told_the_comment(story: Story) -> None:
    """R10.2"""
    issue = await story.board.issue("Nobody's")
    made = await story.says(issue, "@Nia have a look")
    claim = await story.claimed()
    assert (claim.trigger, claim.trigger_comment_id) == ("mention", made.id)
    assert claim.trigger_comment_content == "Ada: @Nia have a look"
    assert await story.answers(made) == [claim.id]


@pytest.mark.parametrize("status", [Status.QUEUED, Status.DEFERRED])
async def test_while_a_task_waits_comments_join_it(story: Story, status: Status) -> None:
    """R10.2: however many, it hears all of them, in order."""
    issue = await story.assigned()
    if status is Status.DEFERRED:
        await story.fail(await story.running(issue), "provider_overloaded")
    waiting = (await tasks.of_issue(story.database, issue.id))[0]
    waiting = await story.heir(waiting) if waiting.retry_task_id else waiting
    before = await number_of_tasks(story, issue)
    for body in ("@Nia one", "two"):
        await story.later(1)
        made = await story.says(issue, body)
        assert outcomes(made) == {"Nia": "joined"}
        assert await story.answers(made) == [waiting.id]
    assert await number_of_tasks(story, issue) == before
    await story.database.pool.execute("update understudy.tasks set fire_at = '2020-1-1'")
    await story.database.pool.fetch("select understudy.promote_tasks(9)")
    assert (await story.claimed()).trigger_comment_content == "Ada: @Nia one\n\nAda: two"


@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize("end", ["complete", "fail"])
async def test_what_is_said_during_a_run_is_one_task_after_it(
    story: Story, *, starts: bool, end: str
) -> None:
    """R10.2: what is dispatched has been told already and would not hear of it."""
    issue = await story.assigned()
    claim = await story.running(issue) if starts else await story.claimed()
    made = [await story.says(issue, body) for body in ("@Nia one", "two", "@Nia three")]
    assert [outcomes(each) for each in made] == [{"Nia": "waiting"}] * 3
    assert await number_of_tasks(story, issue) == 1
    if end == "fail":
        await story.fail(claim, "auth")
    else:
        await tasks.start(story.database, held(claim))
        await story.complete(claim)
    assert await number_of_tasks(story, issue) == 2
    follow_up = await story.claimed()
    assert [await story.answers(each) for each in made] == [[follow_up.id]] * 3
    assert (follow_up.trigger_comment_content or "").count("Ada: ") == 3
    assert follow_up.attempt == 1


async def test_what_is_said_during_a_run_goes_to_its_retry(story: Story) -> None:
    """R10.2, R5.4: with what the run itself was told; there is no third task."""
    issue = await story.assigned()
    before = await story.says(issue, "@Nia one")
    claim = await story.running(issue)
    meanwhile = await story.says(issue, "@Nia two")
    failed = await story.fail(claim, "timeout")
    heir = await story.heir(failed)
    assert await story.answers(before) == await story.answers(meanwhile) == [heir.id]
    assert await number_of_tasks(story, issue) == 2
    assert (await story.claimed()).trigger_comment_content == "Ada: @Nia one\n\nAda: @Nia two"


async def test_what_is_said_while_a_claim_runs_out_is_told_with_the_next_one(story: Story) -> None:
    """R10.2, R3.8: no machine began to work on it, so there is nothing to wait for."""
    issue = await story.assigned()
    await story.claimed()
    await story.later(1)
    meanwhile = await story.says(issue, "@Nia two")
    assert await story.answers(meanwhile) == [None]
    await story.later(60)
    claim = await story.claimed()
    assert claim.trigger_comment_content == "Ada: @Nia two"
    assert await story.answers(meanwhile) == [claim.id]
    assert await number_of_tasks(story, issue) == 1


async def test_who_cancels_a_task_drops_what_it_was_to_answer(story: Story) -> None:
    """R10.2, R7.1"""
    issue = await story.board.issue("Nobody's")
    made = await story.says(issue, "@Nia go")
    (task_id,) = await story.answers(made)
    assert task_id is not None
    await story.cancel(task_id)
    assert await story.answers(made) == [task_id]
    assert await story.claim() == []


async def test_a_person_who_mentions_nobody_speaks_to_the_assignee(story: Story) -> None:
    """R10.2"""
    issue = await story.assigned()
    await story.complete(await story.running(issue))
    made = await story.says(issue, "Shorter, please.")
    assert outcomes(made) == {"Nia": "enqueued"}
    assert (await story.claimed()).trigger == "comment"


async def test_a_person_who_mentions_another_does_not_speak_to_the_assignee(story: Story) -> None:
    """R10.2"""
    await story.board.agent("Zed")
    issue = await story.assigned()
    assert outcomes(await story.says(issue, "@Zed what do you think?")) == {"Zed": "enqueued"}


@pytest.mark.parametrize("status", ["backlog", "done", "cancelled"])
async def test_where_nothing_is_to_be_done_only_a_mention_calls(story: Story, status: str) -> None:
    """R10.1, R10.2"""
    issue = await story.assigned()
    await story.complete(await story.running(issue))
    await issues.set_status(story.database, issue.workspace_id, issue.id, status)
    assert (await story.says(issue, "Thanks.")).called == []
    assert outcomes(await story.says(issue, "@Nia one more thing")) == {"Nia": "enqueued"}


async def test_nobody_is_called_on_an_issue_of_nobody(story: Story) -> None:
    """R10.2"""
    assert (await story.says(await story.board.issue("Nobody's"), "Hm.")).called == []


async def test_an_agent_that_mentions_itself_starts_nothing(story: Story) -> None:
    """R10.2: by a comment, by its final text, by taking the issue it is at."""
    issue = await story.assigned()
    claim = await story.running(issue)
    assert (await story.says(issue, "I, @Nia, think so", by=claim)).called == []
    nobodys = await story.board.issue("Nobody's")
    await story.database.pool.execute(
        "update understudy.issues set assignee_agent_id = null where id = $1", issue.id
    )
    where = issue.workspace_id, issue.id, claim.agent_id
    assert (await issues.assign(story.database, *where, by_task=claim.id)).outcome == "self"
    await story.complete(claim)
    assert await number_of_tasks(story, issue) == 1
    assert await number_of_tasks(story, nobodys) == 0


async def test_an_agents_plain_comment_calls_nobody(story: Story) -> None:
    """R10.2: the assignee is called by people."""
    zed = await story.board.agent("Zed")
    issue = await story.assigned(agent=zed)
    await story.says(issue, "@Nia have a look")
    claims = [await story.running(issue) for _ in range(2)]
    (nias,) = [claim for claim in claims if claim.agent_id == story.board.nia.id]
    assert (await story.says(issue, "I looked.", by=nias)).called == []


async def test_the_final_text_of_an_agent_calls_others(story: Story) -> None:
    """R10.3: as any comment of it would."""
    await story.board.agent("Zed")
    issue = await story.assigned()
    await story.complete(await story.running(issue), "Done. @Zed, please review.")
    claim = await story.claimed()
    assert (claim.agent.name, claim.trigger) == ("Zed", "mention")
    assert claim.trigger_comment_content == "Nia: Done. @Zed, please review."
    assert await story.status(issue) == "in_progress"


async def test_an_agent_that_has_spoken_does_not_say_its_final_text(story: Story) -> None:
    """R10.3"""
    await story.board.agent("Zed")
    issue = await story.assigned()
    claim = await story.running(issue)
    await story.says(issue, "Half way.", by=claim)
    await story.complete(claim, "Done. @Zed")
    said = await issues.comments(story.database, issue.id)
    assert [each.body for each in said] == ["Half way."]
    assert await story.claim() == []


async def hop(story: Story, issue: Issue, claim: ClaimedTask, name: str) -> dict[str, str]:
    made = await story.says(issue, f"@{name} your turn", by=claim)
    await story.complete(claim)
    return outcomes(made)


async def test_agents_that_call_each_other_come_to_an_end(story: Story) -> None:
    """R10.1: a budget of hops for each chain; retries and waiting calls do not renew it."""
    await story.board.agent("Zed")
    issue = await story.board.issue("Ping")
    await story.says(issue, "@Nia begin")
    for number in range(8):
        claim = await story.running(issue)
        if number == 3:
            await story.fail(claim, "timeout")
            claim = await story.running(issue)
        name = "Zed" if claim.agent.name == "Nia" else "Nia"
        assert await hop(story, issue, claim, name) == {name: "enqueued"}
    last = await story.running(issue)
    name = "Zed" if last.agent.name == "Nia" else "Nia"
    assert await hop(story, issue, last, name) == {name: "too_many_hops"}
    assert await story.claim() == []
    assert outcomes(await story.says(issue, "@Nia go on")) == {"Nia": "enqueued"}


async def test_an_agent_that_assigns_is_a_hop_too(story: Story) -> None:
    """R10.1"""
    issue = await story.assigned()
    claim = await story.running(issue)
    await story.database.pool.execute("update understudy.tasks set hops = 8")
    other = await story.board.issue("Another")
    zed = await story.board.agent("Zed")
    where = issue.workspace_id, other.id, zed.id
    done = await issues.assign(story.database, *where, by_task=claim.id)
    assert (done.outcome, done.task) == ("too_many_hops", None)


async def test_a_comment_and_a_claim_that_meet_do_not_miss_each_other(
    story: Story, dsn: str
) -> None:
    """R10.2: what the comment joins is not handed over without it."""
    issue = await story.board.issue("Nobody's")
    await story.says(issue, "@Nia one")
    other = await open_connection(dsn)
    async with other.transaction():
        row = await other.fetchrow(
            "select m.called from understudy.add_comment($1, $2, $3, $4, null, '@Nia two') m",
            issue.workspace_id,
            issue.id,
            story.database.new_id(),
            story.board.user_id,
        )
        assert row is not None
        assert row["called"][0]["outcome"] == "joined"
        assert await story.claim() == []
    other.close()
    assert (await story.claimed()).trigger_comment_content == "Ada: @Nia one\n\nAda: @Nia two"


async def test_a_comment_that_comes_during_a_claim_waits_for_the_run(
    story: Story, database: Database, dsn: str
) -> None:
    """R10.2: the task looks queued until the claim is committed, and is told already."""
    issue = await story.assigned()
    holder = await open_connection(dsn)
    made: list[Commented] = []

    async def comment() -> None:
        made.append(await story.says(issue, "@Nia two"))

    async with trio.open_nursery() as nursery, holder.transaction():
        (row,) = await holder.fetch(
            "select * from understudy.claim_tasks($1, $2, 'full', interval '60 s')",
            story.board.runtime_id,
            [story.database.new_id()],
        )
        nursery.start_soon(comment)
        with trio.fail_after(30):
            while not await is_somebody_waiting(database):  # noqa: ASYNC110
                await trio.sleep(0.01)
    holder.close()
    assert row["status"] == "dispatched"
    assert outcomes(made[0]) == {"Nia": "waiting"}
    assert await story.answers(made[0]) == [None]


async def test_a_claim_that_had_to_wait_tells_what_was_said_meanwhile(
    story: Story, database: Database, dsn: str
) -> None:
    """R10.2: and knows an issue that is younger than its own beginning."""
    holder = await open_connection(dsn)
    late = story.board.on(database)
    claims: list[ClaimedTask] = []
    await story.assigned("Older")

    async def claim() -> None:
        claims.extend(await story.claim(slots=2))

    async with trio.open_nursery() as nursery, holder.transaction():
        await holder.execute("select from understudy.agents for no key update")
        nursery.start_soon(claim)
        with trio.fail_after(30):
            while not await is_somebody_waiting(database):  # noqa: ASYNC110
                await trio.sleep(0.01)
        issue = await write_new_issue(late)
    holder.close()
    (found,) = [claim for claim in claims if claim.issue_id == issue.id]
    assert found.issue is not None
    assert found.issue.title == "Younger"
    assert found.trigger_comment_content == "Ada: @Nia go"


async def write_new_issue(board: Board) -> Issue:
    issue = await board.issue("Younger")
    author = issues.Author(user_id=board.user_id)
    await issues.add_comment(board.database, issue, "@Nia go", author)
    return issue


async def is_somebody_waiting(database: Database) -> bool:
    found: bool = await database.pool.fetchval(
        "select exists (select from pg_stat_activity"
        " where wait_event_type = 'Lock' and datname = current_database())"
    )
    return found
